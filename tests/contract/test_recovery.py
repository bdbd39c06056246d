"""An NF whose certificate has ended is enrolled again, where OAM allows it, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from cmproxy.changes import Changes
from cmproxy.model import Enrolment, NetworkFunction
from cmproxy.ports import Holding
from cmproxy.recovery import Recoverer, has_to_recover
from cmproxy.recovery_store import SqlRecoveries
from cmproxy.store import SqlProxyStore
from nftrust.clock import GuardedClock, SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

OAM = "urn:nftrust:oam:test"
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
ENDED = Holding(NOW - HOUR, revoked=False)
GOOD = Holding(NOW + HOUR, revoked=False)
REVOKED = Holding(NOW - HOUR, revoked=True)
NONE = Holding(None, revoked=False)


@pytest.fixture
def proxy_database(empty: StoreConfig) -> StoreConfig:
    upgrade(empty, "cmproxy")
    return empty


@dataclass
class CaRa:
    """Says what an NF holds, or refuses as often as it is told."""

    holds: Holding
    refusals: list[NftrustError] = field(default_factory=list)
    asked: int = 0

    async def holding(self, nf: NetworkFunction) -> Holding:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return self.holds


@dataclass
class Proxy:
    """The part of a CM proxy process that recovers."""

    store: SqlProxyStore
    ca_ra: CaRa
    woken: asyncio.Event

    async def create(self, **changes: object) -> NetworkFunction:
        nf_instance_id = str(uuid.uuid4())
        nf = NetworkFunction(
            nf_instance_id=nf_instance_id,
            nf_type="AMF",
            fqdns=(f"a{nf_instance_id}.example",),
            agent_endpoint="localhost:1",
            tenant="t",
            day0_root="root",
            transport_key_sha256=bytes(32),
            pin_on_first_contact=False,
            attestation_required=False,
            delivery_mode="wrapped",
            profile="nf",
            create_time=NOW,
            update_time=NOW,
            re_enrol_after_expiry=True,
            recovery_next_time=NOW,
        )
        changed = replace(nf, **changes)  # type: ignore[arg-type]
        return await self.store.create_network_function(changed, False, OAM, None, b"")

    async def enrolments(self, nf: NetworkFunction) -> list[Enrolment]:
        return [each for _, each in await self.store.list_enrolments(nf.nf_instance_id, ("*",), 10, None)]

    async def looked_at(self, nf: NetworkFunction) -> NetworkFunction:
        """As it is once the next look is put off."""
        async with asyncio.timeout(30):
            while True:
                now = await self.store.find_network_function(nf.nf_instance_id)
                assert now is not None
                if now.recovery_next_time is not None and now.recovery_next_time > NOW + timedelta(minutes=1):
                    return now
                await asyncio.sleep(0.02)

    async def until_started(self, nf: NetworkFunction) -> Enrolment:
        async with asyncio.timeout(30):
            while True:
                found = await self.enrolments(nf)
                if found:
                    return found[0]
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def proxy(
    config: StoreConfig, holds: Holding, *refusals: NftrustError, interval: float = 300
) -> AsyncIterator[Proxy]:
    clock = GuardedClock(SystemClock())
    store = Store.open(config, clock)
    enrolments = SqlProxyStore(store, timedelta(seconds=30), Changes())
    made = Proxy(enrolments, CaRa(holds, list(refusals)), asyncio.Event())
    recoverer = Recoverer(
        SqlRecoveries(store, enrolments, clock),
        made.ca_ra,
        clock,
        timedelta(seconds=interval),
        made.woken.set,
    )
    running = asyncio.create_task(recoverer.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(store.close)


async def test_an_nf_whose_certificate_has_ended_is_enrolled_again(proxy_database: StoreConfig) -> None:
    async with proxy(proxy_database, ENDED) as made:
        nf = await made.create()
        started = await made.until_started(nf)
        assert not started.allow_re_enrolment
        await made.looked_at(nf)
        async with asyncio.timeout(30):
            await made.woken.wait()
        assert len(await made.enrolments(nf)) == 1


@pytest.mark.parametrize("holds", [GOOD, REVOKED, NONE], ids=["good", "revoked", "none"])
async def test_any_other_is_left_alone(proxy_database: StoreConfig, holds: Holding) -> None:
    async with proxy(proxy_database, holds) as made:
        nf = await made.create()
        after = await made.looked_at(nf)
        assert await made.enrolments(nf) == []
        if holds is GOOD:
            assert after.recovery_next_time is not None
            assert after.recovery_next_time > NOW + HOUR


async def test_without_oams_leave_nobody_is_asked(proxy_database: StoreConfig) -> None:
    async with proxy(proxy_database, ENDED) as made:
        other = await made.create(re_enrol_after_expiry=False, recovery_next_time=None)
        retired = await made.create()
        await made.store.retire_network_function(retired.nf_instance_id, OAM)
        await made.until_started(await made.create())
        assert await made.enrolments(other) == []
        retired_started = await made.enrolments(retired)
        assert [each for each in retired_started if not each.state.ended] == []


async def test_a_ca_ra_that_cannot_be_asked_is_asked_again(proxy_database: StoreConfig) -> None:
    away = NftrustError(Reason.PEER_UNAVAILABLE)
    async with proxy(proxy_database, ENDED, away, away, interval=0.01) as made:
        nf = await made.create()
        await made.until_started(nf)
        assert made.ca_ra.asked >= 3
        assert len(await made.enrolments(nf)) == 1  # the active one is not doubled


def test_what_has_to_recover() -> None:
    assert has_to_recover(ENDED, NOW)
    assert has_to_recover(Holding(NOW, revoked=False), NOW)
    for other in (GOOD, REVOKED, NONE):
        assert not has_to_recover(other, NOW)
