"""The runner on a real database: killed at any call to a peer, an enrolment comes to the same end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cmproxy.changes import Changes
from cmproxy.lease_store import SqlEnrolmentLease
from cmproxy.machine import RetryPolicy
from cmproxy.model import Claimed, Enrolment, NetworkFunction, State
from cmproxy.ports import CaRegistration, NfInfo, NfStatus, RegistrationAnswer
from cmproxy.runner import Runner, RunnerPolicy
from cmproxy.store import SqlProxyStore
from nftrust.clock import SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

LEASE = timedelta(minutes=5)
KEY = bytes(32)
OWNER = "cmproxy-test"
STARTED = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class World:
    """The NF and the CA/RA: they outlive the CM proxy. Both keep what they are asked to."""

    #: At which of the calls to it the proxy is killed: before it has an effect, or after.
    kill_at: int = 0
    before: bool = False
    calls: int = 0
    intents: set[bytes] = field(default_factory=set)
    registrations: dict[bytes, str] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, *, before: bool) -> None:
        self.calls += before
        if self.calls == self.kill_at and before == self.before:
            self.dead.set()
            await asyncio.Event().wait()  # until the process is gone

    # The NF

    @asynccontextmanager
    async def connect(self, nf: NetworkFunction) -> AsyncIterator[World]:
        yield self

    async def info(self, enrolment_id: str, nonce: bytes) -> NfInfo:
        await self.call(before=True)
        return NfInfo(KEY, nonce.hex(), (b"leaf",), STARTED)

    async def deliver(self, enrolment_info: str, iak: bytes) -> None:
        await self.call(before=True)
        if enrolment_info in self.given[:-1]:
            raise NftrustError(Reason.AGENT_NOT_ARMED)
        if enrolment_info not in self.given:
            self.given.append(enrolment_info)
        await self.call(before=False)

    async def watch(self) -> AsyncIterator[NfStatus]:
        await self.call(before=True)
        now, registration = datetime.now(UTC), self.given[-1].removeprefix("info of ")
        yield NfStatus("enrolling", "", registration, now, now, None, None)
        yield NfStatus("confirmed", "", registration, now, now, now, now)

    # The CA/RA

    async def registration_intent(self, nf: NetworkFunction, enrolment: Enrolment, info: NfInfo) -> bytes:
        return f"{enrolment.id} {info.statement}".encode()

    async def register(self, intent: bytes) -> RegistrationAnswer:
        await self.call(before=True)
        name = self.registrations.setdefault(intent, f"registrations/{len(self.registrations)}")
        await self.call(before=False)
        return RegistrationAnswer(CaRegistration(name, "open", "", None), f"info of {name}", b"", "wrapped")

    def hands_over(self, registration: str) -> bool:
        return False

    async def get(self, registration: str) -> CaRegistration:
        await self.call(before=True)
        state: Any = "confirmed" if f"info of {registration}" in self.given else "open"
        return CaRegistration(registration, state, "certificates/1", datetime.now(UTC))

    def confirmed(self, enrolment: Enrolment, confirmation: str) -> None:
        """The NF of this world shows nothing."""

    # Nobody asks the verifier; nobody listens

    def step(self, number: int) -> None: ...

    def refused(self, state: str, reason: Reason) -> None: ...

    def ended(self, state: str, duration: timedelta) -> None: ...


@dataclass
class Proxy:
    """What is left of the CM proxy when its process is gone: the database."""

    config: StoreConfig
    commits: int = 0

    @asynccontextmanager
    async def process(self, world: World) -> AsyncIterator[tuple[SqlProxyStore, Runner, Changes]]:
        """One life."""
        clock, changes = SystemClock(), Changes()
        store = Store.open(self.config, clock, observe=self._count)
        proxy_store = SqlProxyStore(store, LEASE, changes)
        leases = SqlEnrolmentLease(store, LEASE, changes, clock)
        retry = RetryPolicy(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=5))
        policy = RunnerPolicy(owner=OWNER, lease=LEASE, retry=retry, poll=timedelta(milliseconds=20))
        other: Any = world
        runner = Runner(policy, leases, other, other, other, clock, other)
        running = asyncio.create_task(runner.run())
        try:
            yield proxy_store, runner, changes
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.to_thread(store.close)

    def _count(self, units: int, reason: Reason | None, seconds: float, queued: int) -> None:
        self.commits += units


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    config = StoreConfig(url=f"sqlite:///{tmp_path / 'store.sqlite'}")
    upgrade(config, "cmproxy")
    return Proxy(config)


async def provision(store: SqlProxyStore) -> NetworkFunction:
    nf = NetworkFunction(
        nf_instance_id=str(uuid.uuid4()),
        nf_type="AMF",
        fqdns=("one.example",),
        agent_endpoint="localhost:1",
        tenant="default",
        day0_root="root",
        transport_key_sha256=KEY,
        pin_on_first_contact=False,
        attestation_required=False,
        delivery_mode="wrapped",
        profile="nf",
        create_time=STARTED,
        update_time=STARTED,
    )
    return await store.create_network_function(nf, False, "urn:nftrust:oam:test", None, b"")


async def start(store: SqlProxyStore, nf: NetworkFunction, owner: str) -> Any:
    now = datetime.now(UTC)

    def begin(known: NetworkFunction | None) -> Enrolment:
        return Enrolment(
            id=str(uuid.uuid4()),
            nf_instance_id=nf.nf_instance_id,
            tenant=nf.tenant,
            state=State.ATTESTING,
            working=State.ATTESTING,
            allow_re_enrolment=False,
            create_time=now,
            update_time=now,
            next_time=now,
        )

    return await store.start_enrolment(nf.nf_instance_id, begin, "urn:nftrust:oam:test", None, b"", owner)


async def spare(runner: Runner) -> str:
    """The owner's name, once the runner is open."""
    async with asyncio.timeout(30):
        while not runner.spare:  # noqa: ASYNC110 - nothing tells it, nor needs to
            await asyncio.sleep(0.01)
    return runner.spare


async def ended(store: SqlProxyStore, changes: Changes, enrolment_id: str) -> Enrolment:
    with changes.watch(enrolment_id) as feed:
        found = await store.find_enrolment(enrolment_id)
        assert found is not None
        feed.put(found)
        async with asyncio.timeout(60):
            while not (current := await feed.next()).state.ended:
                pass
    return current


async def test_an_enrolment_that_starts_with_a_place_costs_four_commits(proxy: Proxy) -> None:
    """Start, intent, delivered, succeeded; before them the leases of an earlier life and the NF."""
    async with proxy.process(World()) as (store, runner, changes):
        nf = await provision(store)
        started = await start(store, nf, await spare(runner))
        assert started.claimed == Claimed(started.enrolment, nf)
        runner.drive(started.claimed)
        last = await ended(store, changes, started.enrolment.id)
    assert last.state is State.SUCCEEDED
    assert [step.number for step in last.steps] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert proxy.commits == 2 + 4


#: The calls of one enrolment by number, and those that have an effect after which to be killed.
INFO, REGISTER, DELIVER, WATCH, GET = range(1, 6)
EFFECTS = (REGISTER, DELIVER)


@pytest.mark.parametrize(
    ("kill_at", "before"),
    [*((call, True) for call in (INFO, REGISTER, DELIVER, WATCH, GET)), *((call, False) for call in EFFECTS)],
)
async def test_killed_at_any_call_it_comes_to_the_same_end(proxy: Proxy, kill_at: int, before: bool) -> None:
    world = World(kill_at=kill_at, before=before)
    async with proxy.process(world) as (store, runner, _):
        started = await start(store, await provision(store), await spare(runner))
        runner.drive(started.claimed)
        await asyncio.wait_for(world.dead.wait(), 60)
    world.kill_at = 0
    async with proxy.process(world) as (store, _, changes):  # a new process finds it all in the database
        last = await ended(store, changes, started.enrolment.id)
    assert last.state is State.SUCCEEDED
    assert len(world.registrations) == 1
    assert world.given == ["info of registrations/0"]
    assert last.certificate == "certificates/1"


async def test_after_the_end_a_lease_is_left_to_the_next_process(proxy: Proxy) -> None:
    world = World()
    async with proxy.process(world) as (store, runner, _):
        nf, owner = await provision(store), await spare(runner)
    assert runner.spare == ""
    async with proxy.process(World(kill_at=1, before=True)) as (store, _, _):
        started = await start(store, nf, owner)
        runner.drive(started.claimed)  # of the process that has ended
        assert not world.calls
    async with proxy.process(world) as (store, _, changes):
        assert (await ended(store, changes, started.enrolment.id)).state is State.SUCCEEDED
