"""The runner ends when it is told, also at the very moment at which something wakes it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from cmproxy.machine import RetryPolicy
from cmproxy.runner import Runner, RunnerPolicy
from nftrust.clock import SystemClock

HOUR = timedelta(hours=1)


class Idle:
    """A store with nothing to do."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def release_all(self, owner: str) -> None:
        pass

    async def claim(self, owner: str, limit: int) -> list[Any]:
        self.asked.set()
        return []


async def test_a_wake_up_does_not_undo_the_end() -> None:
    store, nothing = Idle(), None
    policy = RunnerPolicy(owner="test", lease=HOUR, retry=RetryPolicy(cap=HOUR, lifetime=HOUR), concurrency=1)
    runner = Runner(policy, store, nothing, nothing, nothing, SystemClock(), nothing)  # type: ignore[arg-type]
    running = asyncio.create_task(runner.run())
    await asyncio.wait_for(store.asked.wait(), 10)
    for _ in range(5):  # it waits now
        await asyncio.sleep(0)
    runner.wake()
    await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=10)
    running.cancel()
    assert done
    assert running.cancelled()
