"""A retirement outlives the CM proxy's process and every failure of the CA/RA."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pytest

from cmproxy.changes import Changes
from cmproxy.machine import RetryPolicy
from cmproxy.model import NetworkFunction, ServiceState
from cmproxy.ports import CaRaPort
from cmproxy.retirement import Retirer
from cmproxy.retirement_store import SqlRetirements
from cmproxy.store import SqlProxyStore
from nftrust.clock import GuardedClock, SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

SOON = timedelta(milliseconds=20)
OAM = "urn:nftrust:oam:test"


@pytest.fixture
def proxy_database(empty: StoreConfig) -> StoreConfig:
    upgrade(empty, "cmproxy")
    return empty


@dataclass
class CaRa:
    """Refuses as often as it is told; remembers whom it closed."""

    refusals: list[Exception] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.closed.append(nf.nf_instance_id)


async def found(store: SqlProxyStore, name: str) -> NetworkFunction:
    nf = await store.find_network_function(name)
    assert nf is not None
    return nf


@dataclass
class Proxy:
    """The part of a CM proxy process that retires."""

    store: SqlProxyStore
    ca_ra: CaRa

    async def nf(self, name: str) -> NetworkFunction:
        return await found(self.store, name)

    async def until(self, nf_instance_id: str, service: ServiceState, reason: str = "") -> NetworkFunction:
        async with asyncio.timeout(30):
            while True:
                nf = await self.nf(nf_instance_id)
                if nf.service is service and nf.retire_reason == reason:
                    return nf
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def proxy(config: StoreConfig, *refusals: Exception) -> AsyncIterator[Proxy]:
    clock = GuardedClock(SystemClock())
    store = Store.open(config, clock)
    ca_ra = CaRa(list(refusals))
    retry = RetryPolicy(base=SOON, cap=SOON)
    retirer = Retirer(SqlRetirements(store, clock), cast("CaRaPort", ca_ra), retry)
    running = asyncio.create_task(retirer.run())
    try:
        yield Proxy(SqlProxyStore(store, timedelta(seconds=30), Changes()), ca_ra)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(store.close)


def network_function() -> NetworkFunction:
    now = SystemClock().now()
    nf_instance_id = str(uuid.uuid4())
    return NetworkFunction(
        nf_instance_id=nf_instance_id,
        nf_type="AMF",
        fqdns=(f"{nf_instance_id[:8]}.amf.example",),
        agent_endpoint="localhost:9",
        tenant="operator",
        day0_root="lab",
        transport_key_sha256=bytes(32),
        pin_on_first_contact=False,
        attestation_required=False,
        delivery_mode="wrapped",
        profile="nf",
        create_time=now,
        update_time=now,
    )


async def add(store: SqlProxyStore) -> str:
    nf = network_function()
    await store.create_network_function(nf, False, OAM, None, b"")
    return nf.nf_instance_id


async def test_it_is_tried_until_the_ca_ra_has_closed_the_end_entity(proxy_database: StoreConfig) -> None:
    down = NftrustError(Reason.PEER_UNAVAILABLE)
    async with proxy(proxy_database, down, RuntimeError("unexpected"), down) as running:
        name = await add(running.store)
        await running.store.retire_network_function(name, OAM)
        retired = await running.until(name, ServiceState.RETIRED)
        assert running.ca_ra.closed == [name]
        assert retired.retire_attempt == 3


async def test_a_refusal_is_told_and_the_intention_survives_the_process(proxy_database: StoreConfig) -> None:
    async with proxy(proxy_database, *[NftrustError(Reason.OUT_OF_SCOPE)] * 1000) as first:
        name = await add(first.store)
        await first.store.retire_network_function(name, OAM)
        waiting = await first.until(name, ServiceState.RETIRING, Reason.OUT_OF_SCOPE.name)
        with pytest.raises(NftrustError) as refusal:
            await first.store.delete_network_function(name, waiting.version, OAM)
        assert refusal.value.reason is Reason.RETIREMENT_UNDER_WAY
        assert first.ca_ra.closed == []
    async with proxy(proxy_database) as second:
        retired = await second.until(name, ServiceState.RETIRED)
        assert second.ca_ra.closed == [name]
        await second.store.retire_network_function(name, OAM)
        assert await second.nf(name) == retired
        await second.store.delete_network_function(name, retired.version, OAM)


async def test_killed_after_the_ca_ra_s_answer_it_asks_again(proxy_database: StoreConfig) -> None:
    """The effect is idempotent at the callee: that it was done, and not yet noted, makes no difference."""
    clock = GuardedClock(SystemClock())
    store = Store.open(proxy_database, clock)
    try:
        proxy_store = SqlProxyStore(store, timedelta(seconds=30), Changes())
        name = await add(proxy_store)
        await proxy_store.retire_network_function(name, OAM)
        await CaRa().retire(await found(proxy_store, name), ())  # and here the process is gone
    finally:
        await asyncio.to_thread(store.close)
    async with proxy(proxy_database) as second:
        await second.until(name, ServiceState.RETIRED)
        assert second.ca_ra.closed == [name]


async def test_more_than_one_batch_is_carried_out(proxy_database: StoreConfig) -> None:
    async with proxy(proxy_database) as running:
        names = [await add(running.store) for _ in range(40)]
        for name in names:
            await running.store.retire_network_function(name, OAM)
        for name in names:
            await running.until(name, ServiceState.RETIRED)
        assert sorted(running.ca_ra.closed) == sorted(names)
