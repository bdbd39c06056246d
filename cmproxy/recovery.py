"""An NF whose last certificate has ended is enrolled again, where OAM's policy allows it without hands.

The CA/RA says what an NF holds; it is asked once in a certificate's life, and
every ``interval`` while something is wrong. What OAM or a theft signal has
revoked, or suspended, is not for this to bring back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from cmproxy.model import Enrolment, NetworkFunction, State
from cmproxy.ports import Holding, HoldingPort, Recoveries
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason

log = logging.getLogger("cmproxy.recovery")

#: How often an idle proxy looks for NFs that are due.
POLL = timedelta(seconds=1)
#: Asked about at a time.
CONCURRENCY = 16


class Recoverer:
    """One per process."""

    def __init__(
        self, store: Recoveries, ca_ra: HoldingPort, clock: Clock, interval: timedelta, wake: Callable[[], None]
    ) -> None:
        self._store = store
        self._ca_ra = ca_ra
        self._clock = clock
        self._interval = interval
        self._wake = wake

    async def run(self) -> None:
        """Until cancelled; a failing database slows it down and does not end it."""
        while True:
            try:
                due = await self._store.due(CONCURRENCY)
                await asyncio.gather(*(self._look(nf) for nf in due))
                if len(due) == CONCURRENCY:
                    continue  # there may be more
            except NftrustError as error:
                log.warning("NFs cannot be looked up", extra={"reason": error.reason.name})
            except Exception:
                log.exception("NFs cannot be looked up")
            await asyncio.sleep(POLL.total_seconds())

    async def _look(self, nf: NetworkFunction) -> None:
        now = self._clock.now()
        try:
            holding = await self._ca_ra.holding(nf)
        except NftrustError as error:
            log.warning("NF not looked at", extra={"nf": nf.name, "reason": error.reason.name})
            await self._store.look_again(nf, now + self._interval)
            return
        if has_to_recover(holding, now):
            await self._enrol(nf, now)
        else:
            await self._store.look_again(nf, max(holding.not_after or now, now) + self._interval)

    async def _enrol(self, nf: NetworkFunction, now: datetime) -> None:
        enrolment = Enrolment(
            id=str(uuid.uuid4()),
            nf_instance_id=nf.nf_instance_id,
            tenant=nf.tenant,
            state=State.ATTESTING,
            working=State.ATTESTING,
            allow_re_enrolment=False,  # the NF holds nothing that is good
            create_time=now,
            update_time=now,
            next_time=now,
        )
        # The next look first: killed in between, nothing is started twice, and it is looked at again.
        await self._store.look_again(nf, now + self._interval)
        with contextlib.suppress(_Unneeded):
            await self._start(enrolment)
            log.warning("NF is enrolled again: its certificate has ended", extra={"nf": nf.name})
            self._wake()

    async def _start(self, enrolment: Enrolment) -> None:
        try:
            await self._store.start(enrolment)
        except NftrustError as error:
            if error.reason in (Reason.ENROLMENT_ACTIVE, Reason.NF_RETIRED, Reason.NF_NOT_FOUND):
                raise _Unneeded from None
            raise


class _Unneeded(Exception):
    """Somebody else was first, or the NF is gone."""


def has_to_recover(holding: Holding, now: datetime) -> bool:
    """Whether the last certificate has ended by itself: neither revoked, nor never there, nor still good."""
    return holding.not_after is not None and not holding.revoked and holding.not_after <= now
