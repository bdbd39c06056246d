"""The runner's hold on enrolments in storage: each method one transaction or one read."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Integer, bindparam, select, update

from cmproxy.changes import Changes
from cmproxy.model import Claimed, Enrolment
from cmproxy.rows import ACTOR, enrolment_of, network_function_of, write_enrolment
from cmproxy.tables import enrolment, network_function
from nftrust.clock import Clock
from nftrust.storage import Store, Transaction

_DUE = select(enrolment.c.id).where(enrolment.c.next_time <= bindparam("now")).order_by(enrolment.c.next_time)
_ANY_DUE = _DUE.limit(1)
_CLAIM = _DUE.limit(bindparam("places", type_=Integer)).with_for_update(skip_locked=True)
_TAKE = (
    update(enrolment)
    .where(enrolment.c.id.in_(bindparam("ids", expanding=True)))
    .values(owner=bindparam("by"), next_time=bindparam("until"), epoch=enrolment.c.epoch + 1)
)
_TAKEN = select(enrolment).where(enrolment.c.id.in_(bindparam("ids", expanding=True)))
_TAKEN_NFS = select(network_function).where(network_function.c.nf_instance_id.in_(bindparam("ids", expanding=True)))
_RENEW = (
    update(enrolment)
    .where(enrolment.c.id == bindparam("held_id"), enrolment.c.epoch == bindparam("held_epoch"))
    .values(next_time=bindparam("until"))
)
_RELEASE = (
    update(enrolment)
    .where(enrolment.c.owner == bindparam("by"), enrolment.c.next_time.is_not(None))
    .values(next_time=bindparam("now"), epoch=enrolment.c.epoch + 1)
)
_PIN = (
    update(network_function)
    .where(network_function.c.nf_instance_id == bindparam("id"))
    .values(pinned_sha256=bindparam("pin"), version=network_function.c.version + 1, update_time=bindparam("now"))
)


class SqlEnrolmentLease:
    """Implements EnrolmentLease on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store, lease: timedelta, changes: Changes, clock: Clock) -> None:
        self._store = store
        self._lease = lease
        self._changes = changes
        self._clock = clock

    async def claim(self, owner: str, limit: int) -> list[Claimed]:
        def work(tx: Transaction) -> list[Claimed]:
            claimed = list(tx.execute(_CLAIM, {"now": tx.now, "places": limit}).scalars())
            if not claimed:
                return []
            tx.execute(_TAKE, {"ids": claimed, "by": owner, "until": tx.now + self._lease})
            taken = [enrolment_of(row) for row in tx.execute(_TAKEN, {"ids": claimed}).all()]
            rows = tx.execute(_TAKEN_NFS, {"ids": [each.nf_instance_id for each in taken]}).all()
            nfs = {row.nf_instance_id: network_function_of(row) for row in rows}
            return [Claimed(each, nfs.get(each.nf_instance_id)) for each in taken]

        now = self._clock.now()
        if await self._store.read(lambda c: c.execute(_ANY_DUE, {"now": now}).first()) is None:
            return []  # a proxy that has nothing to claim writes nothing
        return await self._store.write(work)

    async def renew(self, held: Enrolment) -> bool:
        def work(tx: Transaction) -> bool:
            lease = {"held_id": held.id, "held_epoch": held.epoch, "until": tx.now + self._lease}
            return tx.execute(_RENEW, lease).rowcount == 1

        return await self._store.write(work)

    async def save(self, held: Enrolment, *, hold: bool, pin: bytes | None = None) -> Enrolment | None:
        def work(tx: Transaction) -> Enrolment | None:
            saved = write_enrolment(tx, replace(held, next_time=tx.now + self._lease) if hold else held, held.epoch)
            if saved is None:
                return None
            if pin is not None:
                _pin(tx, held, pin)
            if saved.state.ended and not hold and not saved.cleanup:
                _audit_end(tx, saved)
            return saved

        saved = await self._store.write(work)
        if saved is not None:
            self._changes.publish(saved)
        return saved

    async def release_all(self, owner: str) -> None:
        def work(tx: Transaction) -> None:
            tx.execute(_RELEASE, {"by": owner, "now": tx.now})

        await self._store.write(work)


def _pin(tx: Transaction, held: Enrolment, pin: bytes) -> None:
    """Record the transport key of the first verified contact (security rule 2)."""
    tx.execute(_PIN, {"id": held.nf_instance_id, "pin": pin, "now": tx.now})
    tx.audit(
        actor=ACTOR,
        action="networkfunction.pin",
        subject=f"networkFunctions/{held.nf_instance_id}",
        detail={"transport_key_sha256": pin.hex(), "enrolment": held.name},
    )


def _audit_end(tx: Transaction, saved: Enrolment) -> None:
    reason = "" if saved.problem is None else saved.problem.reason
    tx.audit(
        actor=ACTOR,
        action=f"enrolment.{saved.state.value}",
        subject=saved.name,
        detail={"reason": reason, "registration": saved.registration, "certificate": saved.certificate},
    )
