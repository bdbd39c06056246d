"""The publisher of CRLs outlives whatever its database or its token may raise."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from ca_ra.crl import CrlPublisher
from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import NftrustError, Reason


class Failing:
    """A store; ``turns`` counts what was asked of it."""

    def __init__(self) -> None:
        self.turns = 0
        self.asked = asyncio.Event()

    async def revoke_unconfirmed(self, now: datetime, within: timedelta, limit: int) -> int:
        self.turns += 1
        self.asked.set()
        raise [RuntimeError("of a library"), NftrustError(Reason.STORAGE_UNAVAILABLE)][self.turns % 2]


async def test_no_error_ends_it() -> None:
    store: Any = Failing()
    nothing: Any = None
    publisher = CrlPublisher(
        nothing,
        nothing,
        store,
        GuardedClock(SystemClock()),
        lifetime=timedelta(hours=1),
        confirm_within=timedelta(hours=1),
    )
    running = asyncio.create_task(publisher.run())
    for _ in range(4):
        await asyncio.wait_for(store.asked.wait(), 10)
        store.asked.clear()
        publisher.wake()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert store.turns >= 4
