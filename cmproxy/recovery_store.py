"""Storage of recoveries: each method one transaction or one read."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update

from cmproxy.model import Enrolment, NetworkFunction
from cmproxy.rows import network_function_of
from cmproxy.store import SqlProxyStore
from cmproxy.tables import network_function
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction

_ACTOR = "urn:nftrust:cm-proxy"


class SqlRecoveries:
    """Implements Recoveries on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store, enrolments: SqlProxyStore, clock: Clock) -> None:
        self._store = store
        self._enrolments = enrolments
        self._clock = clock

    async def due(self, limit: int) -> list[NetworkFunction]:
        statement = (
            select(network_function)
            .where(network_function.c.recovery_next_time <= self._clock.now())
            .where(network_function.c.retire_request_time.is_(None))
            .order_by(network_function.c.recovery_next_time)
            .limit(limit)
        )
        return await self._store.read(lambda c: [network_function_of(row) for row in c.execute(statement).all()])

    async def look_again(self, nf: NetworkFunction, time: datetime) -> None:
        """Unless OAM has changed its mind meanwhile."""

        def work(tx: Transaction) -> None:
            tx.execute(
                update(network_function)
                .where(network_function.c.nf_instance_id == nf.nf_instance_id)
                .where(network_function.c.recovery_next_time.is_not(None))
                .values(recovery_next_time=time)
            )

        await self._store.write(work)

    async def start(self, enrolment: Enrolment) -> None:
        def begin(nf: NetworkFunction | None) -> Enrolment:
            if nf is None:
                raise NftrustError(Reason.NF_NOT_FOUND)
            return enrolment

        await self._enrolments.start_enrolment(enrolment.nf_instance_id, begin, _ACTOR, None, b"", "")
