"""Storage of the CA's generations and of their rollover: each method one transaction or one read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, insert, select, update

from ca_ra.authority import CaState, StoredCa, out_of_order, standing
from ca_ra.rows import ACTOR
from ca_ra.tables import authority, certificate, revocation
from nftrust.errors import NftrustError, Reason
from nftrust.messages import MAX_TRUSTED_CAS
from nftrust.storage import Executor, Store, Transaction


class SqlAuthorityStore:
    """Implements StoredCas, and the rollover's steps, on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def generations(self) -> Sequence[StoredCa]:
        return await self._store.read(_generations)

    async def announce(self, generation: int, chain: str, response_certificate: str, lead: timedelta) -> StoredCa:
        """Raises NftrustError(ROLLOVER_OUT_OF_ORDER)."""

        def work(tx: Transaction) -> StoredCa:
            if generation != next_generation(_generations(tx)):
                raise out_of_order("another rollover came first")
            new = StoredCa(
                generation=generation,
                chain=chain,
                response_certificate=response_certificate,
                announce_time=tx.now,
                activate_after=tx.now + lead,
                activate_time=None,
                retire_time=None,
            )
            tx.execute(insert(authority).values({name: getattr(new, name) for name in StoredCa.__slots__}))
            detail = {"activate_after": new.activate_after.isoformat()}
            tx.audit(actor=ACTOR, action="ca.announce", subject=_name(generation), detail=detail)
            return new

        return await self._store.write(work)

    async def activate(self, *, force: bool) -> int:
        """The announced one takes over; its generation.

        Raises NftrustError(ROLLOVER_OUT_OF_ORDER, ROLLOVER_TOO_EARLY).
        """

        def work(tx: Transaction) -> int:
            announced = [each for each, state, _ in standing(_generations(tx)) if state is CaState.ANNOUNCED]
            if not announced:
                raise out_of_order("no CA is announced")
            [new] = announced
            early = tx.now < new.activate_after
            if early and not force:
                until = f"the lead time ends at {new.activate_after:%Y-%m-%d %H:%M:%SZ}"
                raise NftrustError(Reason.ROLLOVER_TOO_EARLY, until)
            tx.execute(update(authority).where(authority.c.generation == new.generation).values(activate_time=tx.now))
            tx.audit(actor=ACTOR, action="ca.activate", subject=_name(new.generation), detail={"early": early})
            return new.generation

        return await self._store.write(work)

    async def retire(self, generation: int) -> None:
        """Withdraw an announced one, or end a superseded one; one that is retired stays as it is.

        Raises NftrustError(ROLLOVER_OUT_OF_ORDER).
        """

        def work(tx: Transaction) -> None:
            states = {each.generation: state for each, state, _ in standing(_generations(tx))}
            state = states.get(generation)
            if state is None or state is CaState.ACTIVE:
                raise out_of_order("there is no such CA" if state is None else "it is the active one")
            if state is CaState.RETIRED:
                return
            left = _good_certificates(tx, generation) if state is CaState.SUPERSEDED else 0
            if left:
                raise out_of_order(f"{left} certificates of it are good")
            tx.execute(update(authority).where(authority.c.generation == generation).values(retire_time=tx.now))
            tx.audit(actor=ACTOR, action="ca.retire", subject=_name(generation), detail={"was": state.value})

        await self._store.write(work)


def next_generation(stored: Sequence[StoredCa]) -> int:
    """Of the next CA. Raises NftrustError(ROLLOVER_OUT_OF_ORDER) while one is announced."""
    judged = standing(stored)
    if any(state is CaState.ANNOUNCED for _, state, _ in judged):
        raise out_of_order("a CA is announced: activate it or retire it first")
    if sum(state is not CaState.RETIRED for _, state, _ in judged) >= MAX_TRUSTED_CAS:
        raise out_of_order(f"there are {MAX_TRUSTED_CAS} already: retire those that nothing needs any more")
    return judged[-1][0].generation + 1


def _name(generation: int) -> str:
    return f"certificateAuthorities/{generation}"


def _generations(executor: Executor) -> list[StoredCa]:
    rows = executor.execute(select(authority).order_by(authority.c.generation)).all()
    return [StoredCa(**row._asdict()) for row in rows]


def _good_certificates(tx: Transaction, generation: int) -> int:
    """Neither ended nor revoked."""
    revoked = select(revocation.c.serial).where(revocation.c.serial == certificate.c.serial)
    good = select(func.count()).where(
        certificate.c.generation == generation, certificate.c.not_after > tx.now, ~revoked.exists()
    )
    return int(tx.execute(good).scalar_one())
