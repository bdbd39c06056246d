"""Storage of retirements: each method one transaction or one read."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Update, select, update

from cmproxy.model import NetworkFunction
from cmproxy.rows import ACTOR, network_function_of
from cmproxy.tables import enrolment, network_function, network_function_fqdn
from nftrust.clock import Clock
from nftrust.errors import Reason
from nftrust.storage import Executor, Store, Transaction


class SqlRetirements:
    """Implements Retirements on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def due(self, limit: int) -> list[tuple[NetworkFunction, tuple[str, ...]]]:
        statement = (
            select(network_function)
            .where(network_function.c.retire_next_time <= self._clock.now())
            .order_by(network_function.c.retire_next_time)
            .limit(limit)
        )

        def work(executor: Executor) -> list[tuple[NetworkFunction, tuple[str, ...]]]:
            found = [network_function_of(row) for row in executor.execute(statement).all()]
            return [(nf, _registrations(executor, nf)) for nf in found]

        return await self._store.read(work)

    async def finish(self, nf: NetworkFunction) -> None:
        def work(tx: Transaction) -> None:
            done = tx.execute(
                _pending(nf).values(
                    retire_time=tx.now,
                    retire_next_time=None,
                    retire_reason="",
                    update_time=tx.now,
                    version=network_function.c.version + 1,
                )
            )
            if done.rowcount != 1:
                return  # another instance was first
            # Whatever takes the NF's place may bear its name.
            names = network_function_fqdn
            tx.execute(names.delete().where(names.c.nf_instance_id == nf.nf_instance_id))
            tx.audit(actor=ACTOR, action="networkfunction.retired", subject=nf.name)

        await self._store.write(work)

    async def put_off(self, nf: NetworkFunction, reason: Reason, delay: timedelta) -> None:
        def work(tx: Transaction) -> None:
            tx.execute(
                _pending(nf).values(
                    retire_next_time=tx.now + delay, retire_attempt=nf.retire_attempt + 1, retire_reason=reason.name
                )
            )

        await self._store.write(work)


def _pending(nf: NetworkFunction) -> Update:
    return update(network_function).where(
        network_function.c.nf_instance_id == nf.nf_instance_id, network_function.c.retire_time.is_(None)
    )


def _registrations(executor: Executor, nf: NetworkFunction) -> tuple[str, ...]:
    """Those that the NF's enrolments led to."""
    known = select(enrolment.c.registration).where(
        enrolment.c.nf_instance_id == nf.nf_instance_id, enrolment.c.registration != ""
    )
    return tuple(executor.execute(known.order_by(enrolment.c.sequence)).scalars())
