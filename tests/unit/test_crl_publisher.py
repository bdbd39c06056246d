"""The publisher of CRLs outlives whatever its database or its token may raise."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from ca_ra.authority import Authority
from ca_ra.crl import CrlPublisher
from ca_ra.model import PublishedCrl
from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.http import Request
from tests.unit.support import NfCa, authorities

CA = NfCa("crl")


class Unchanged:
    """CAs of which none is ever rolled over."""

    async def refresh(self) -> None:
        pass


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
        Unchanged(),  # type: ignore[arg-type]
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


class Published:
    """A store with one CRL at a time; counts how often the content is read."""

    def __init__(self) -> None:
        self.number = 1
        self.reads = 0

    async def latest_crl(self, generation: int) -> PublishedCrl:
        return PublishedCrl(self.number, SystemClock().now(), 0)

    async def crl_content(self, generation: int, number: int) -> bytes:
        self.reads += 1
        return f"CRL {number}".encode()


async def test_a_crl_is_read_once_for_all_who_ask_for_it() -> None:
    store: Any = Published()
    nothing: Any = None
    hour = timedelta(hours=1)
    authority = Authority.of(
        CA.chain, CA.response, public_url="http://localhost:1", country="DE", home_domain="5gc.example"
    )
    publisher = CrlPublisher(
        authorities(authority), nothing, store, GuardedClock(SystemClock()), lifetime=hour, confirm_within=hour
    )

    async def get() -> bytes:
        return (await publisher.handle(Request("GET", "/crl/issuing.crl"))).body

    assert [await get() for _ in range(3)] == [b"CRL 1"] * 3
    store.number = 2
    assert [await get() for _ in range(3)] == [b"CRL 2"] * 3
    assert store.reads == 2
