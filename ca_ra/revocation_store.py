"""Storage of revocations and of the CRLs that list them: each method one transaction or one read."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, func, select

from ca_ra.model import IssuedCertificate, PublishedCrl, Revocation
from ca_ra.rows import ACTOR, certificate_of, find_certificate, is_revoked, revoke
from ca_ra.tables import certificate, crl, revocation
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.transaction import Executor
from nftrust.x509.crl import RevocationReason, Revoked


class SqlRevocationStore:
    """Implements RevocationStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def revoke(
        self, serial: str, reason: RevocationReason, actor: str, tenants: tuple[str, ...]
    ) -> tuple[IssuedCertificate, Revocation]:
        """Revoke, or find it revoked for the same reason.

        Raises NftrustError(CERTIFICATE_NOT_FOUND, CERTIFICATE_REVOKED, CERTIFICATE_EXPIRED).
        """

        def work(tx: Transaction) -> tuple[IssuedCertificate, Revocation]:
            known = find_certificate(tx, serial)
            if known is None or ("*" not in tenants and known.tenant not in tenants):
                raise NftrustError(Reason.CERTIFICATE_NOT_FOUND)
            before = tx.execute(select(revocation).where(revocation.c.serial == serial)).one_or_none()
            if before is not None:
                if before.reason != reason:
                    raise NftrustError(Reason.CERTIFICATE_REVOKED)
                return known, revocation_of(before)
            if known.not_after <= tx.now:
                raise NftrustError(Reason.CERTIFICATE_EXPIRED)
            return known, revoke(tx, known, reason, actor)

        return await self._store.write(work)

    async def revocations(self, serials: list[str]) -> dict[str, Revocation]:
        """Those of these certificates that are revoked."""
        statement = select(revocation).where(revocation.c.serial.in_(serials))
        return await self._store.read(lambda c: {row.serial: revocation_of(row) for row in c.execute(statement)})

    async def status(self, generation: int, serial: str) -> tuple[bool, Revocation | None]:
        """Whether that CA has issued it, and its revocation."""
        statement = (
            select(certificate.c.serial.label("issued"), revocation)
            .outerjoin_from(certificate, revocation, revocation.c.serial == certificate.c.serial)
            .where(certificate.c.serial == serial, certificate.c.generation == generation)
        )

        def work(executor: Executor) -> tuple[bool, Revocation | None]:
            row = executor.execute(statement).one_or_none()
            if row is None:
                return False, None
            return True, None if row.reason is None else revocation_of(row)

        return await self._store.read(work)

    async def revoke_unconfirmed(self, now: datetime, within: timedelta, limit: int) -> int:
        """Revoke what was not confirmed ``within`` that time of its issue (security rule 13); how many.

        Certificates that have ended by themselves are left alone.
        """
        unconfirmed = (
            select(certificate)
            .outerjoin_from(certificate, revocation, revocation.c.serial == certificate.c.serial)
            .where(certificate.c.confirm_time.is_(None), certificate.c.create_time < now - within)
            .where(certificate.c.not_after > now, revocation.c.serial.is_(None))
            .limit(limit)
        )

        def due(executor: Executor) -> list[IssuedCertificate]:
            return [certificate_of(row) for row in executor.execute(unconfirmed)]

        if not await self._store.read(due):
            return 0  # nothing is written where nothing is to be done

        def work(tx: Transaction) -> int:
            found = [each for each in due(tx) if not is_revoked(tx, each.serial) and each.not_after > tx.now]
            for each in found:
                revoke(tx, each, RevocationReason.CESSATION_OF_OPERATION, ACTOR)
            return len(found)

        return await self._store.write(work)

    async def entries(self, generation: int, not_before: datetime) -> tuple[int, list[Revoked]]:
        """What a CA's CRL has to list: revoked certificates of its own that end after ``not_before``.

        And the sequence of its last revocation.
        """
        listed = select(revocation.c.serial, revocation.c.revoke_time, revocation.c.reason).where(
            revocation.c.generation == generation, revocation.c.not_after > not_before
        )

        def work(executor: Executor) -> tuple[int, list[Revoked]]:
            rows = executor.execute(listed.order_by(revocation.c.sequence)).all()
            return _last(executor, generation), [
                Revoked(int(row.serial, 16), row.revoke_time, RevocationReason(row.reason)) for row in rows
            ]

        return await self._store.read(work)

    async def last_revocation(self, generation: int) -> int:
        """The sequence of that CA's last one; 0 before the first."""
        return await self._store.read(lambda executor: _last(executor, generation))

    async def latest_crl(self, generation: int) -> PublishedCrl | None:
        columns = (crl.c.number, crl.c.next_update, crl.c.revocations)
        of_ca = select(*columns).where(crl.c.generation == generation)
        statement = of_ca.order_by(crl.c.number.desc()).limit(1)

        def work(executor: Executor) -> PublishedCrl | None:
            row = executor.execute(statement).one_or_none()
            return None if row is None else PublishedCrl(row.number, row.next_update, row.revocations)

        return await self._store.read(work)

    async def crl_content(self, generation: int, number: int) -> bytes | None:
        """DER; None where that CA has no CRL of this number, or no longer."""
        statement = select(crl.c.der).where(crl.c.generation == generation, crl.c.number == number)
        found = await self._store.read(lambda c: c.execute(statement).scalar_one_or_none())
        return None if found is None else bytes(found)

    async def record_responder(self, serial: str, sha256: bytes) -> None:
        """The CA key has certified an OCSP responder: the audit log is to know of every use."""
        detail = {"sha256": sha256.hex()}
        await self._store.write(
            lambda tx: tx.audit(
                actor=ACTOR, action="ocsp.certificate", subject=f"ocspCertificates/{serial}", detail=detail
            )
        )

    async def add_crl(
        self, generation: int, new: PublishedCrl, der: bytes, this_update: datetime, keep: timedelta
    ) -> bool:
        """Publish; False where another front was first with this number. Those that ended long ago are dropped."""

        def work(tx: Transaction) -> bool:
            added = tx.execute(
                tx.insert(crl)
                .values(
                    generation=generation,
                    number=new.number,
                    der=der,
                    this_update=this_update,
                    next_update=new.next_update,
                    revocations=new.revocations,
                )
                .on_conflict_do_nothing(index_elements=[crl.c.generation, crl.c.number])
            )
            if added.rowcount != 1:
                return False
            tx.execute(crl.delete().where(crl.c.next_update < tx.now - keep))
            tx.audit(actor=ACTOR, action="crl.publish", subject=f"crls/{generation}-{new.number}")
            return True

        return await self._store.write(work)


def revocation_of(row: Row[Any]) -> Revocation:
    return Revocation(row.revoke_time, RevocationReason(row.reason))


def _last(executor: Executor, generation: int) -> int:
    last = select(func.coalesce(func.max(revocation.c.sequence), 0)).where(revocation.c.generation == generation)
    return int(executor.execute(last).scalar_one())
