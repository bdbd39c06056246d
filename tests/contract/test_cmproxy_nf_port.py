"""Dialling an NF that was dialled before: its leaf is not fetched again, and judged as strictly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from cmproxy.adapters import nf as adapter
from cmproxy.adapters.nf import GrpcNfPort
from cmproxy.model import NetworkFunction
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb
from nftrust.clock import SystemClock
from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.errors import Reason
from nftrust.identity import day0_name, urn
from nftrust.rpc import SignerIdentity
from nftrust.rpc.preflight import FetchedPeer, fetch_peer
from tests.contract.rpc_kit import Kit
from tests.pki import SERVER, Leaf, make_ca, service_leaf
from tests.unit.support import HOME, NF_ID, OTHER_ID, refused

ROOT = make_ca("day-0 root")
NAMES: dict[str, Any] = {"uri_sans": [urn(NF_ID)], "dns_sans": [day0_name(NF_ID, HOME)], "eku": [SERVER]}


class MovableClock(SystemClock):
    """Ahead of the time by as much as a test says."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Day0:
    """A server with a day-0 certificate that can be changed, and the port that dials it."""

    kit: Kit
    clock: MovableClock = field(default_factory=MovableClock)
    fetched: int = 0

    def __post_init__(self) -> None:
        client = service_leaf(self.kit.ca, "cm-proxy")
        identity = SignerIdentity(client.chain_pem, client.key)
        self.port = GrpcNfPort(identity, {"root": ROOT.certificate}, HOME, self.clock, 20.0)

    def show(self, leaf: Leaf) -> ServerTlsConfig:
        certificate, key = leaf.write(self.kit.directory, "day0")
        client_ca = self.kit.directory / "services-ca.pem"
        return ServerTlsConfig(certificate=certificate, private_key=key, client_ca=client_ca)

    def nf(self) -> NetworkFunction:
        return NetworkFunction(
            nf_instance_id=NF_ID,
            nf_type="AMF",
            fqdns=("one.example",),
            agent_endpoint=f"localhost:{self.kit.port}",
            tenant="default",
            day0_root="root",
            transport_key_sha256=bytes(32),
            pin_on_first_contact=False,
            attestation_required=False,
            delivery_mode="wrapped",
            profile="nf",
            create_time=self.clock.now(),
            update_time=self.clock.now(),
        )

    async def dial(self) -> Leaf | Any:
        """The leaf of the session, over which the server has answered."""
        async with self.port.connect(self.nf()) as session:
            with pytest.raises(grpc.aio.AioRpcError) as answered:
                await session.stub.GetStatus(pb.GetStatusRequest(), timeout=20)
            assert answered.value.code() is grpc.StatusCode.UNIMPLEMENTED
            return session.leaf


@pytest.fixture
async def day0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Day0]:
    served = Day0(Kit(tmp_path))

    async def counting(*arguments: Any, **options: Any) -> FetchedPeer:
        served.fetched += 1
        return await fetch_peer(*arguments, **options)

    monkeypatch.setattr(adapter, "fetch_peer", counting)
    async with serving(served, ROOT.issue(**NAMES)):
        yield served


@asynccontextmanager
async def serving(day0: Day0, leaf: Leaf) -> AsyncIterator[None]:
    async with day0.kit.serving(ListenerConfig(address="127.0.0.1:0", tls=day0.show(leaf))):
        yield


async def test_a_leaf_is_fetched_once(day0: Day0) -> None:
    assert await day0.dial() == await day0.dial() == await day0.dial()
    assert day0.fetched == 1


async def test_another_good_leaf_is_fetched_and_taken(day0: Day0) -> None:
    first, second = await day0.dial(), ROOT.issue(**NAMES)
    day0.show(second)
    assert await day0.dial() == second.certificate != first
    assert day0.fetched == 2
    await day0.dial()
    assert day0.fetched == 2


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (make_ca("day-0 root").issue(**NAMES), Reason.DAY0_CHAIN_UNTRUSTED),
        (ROOT.issue(**NAMES | {"uri_sans": [urn(OTHER_ID)]}), Reason.DAY0_IDENTITY_MISMATCH),
    ],
)
async def test_a_server_that_has_taken_the_nfs_place_is_refused(day0: Day0, leaf: Leaf, reason: Reason) -> None:
    await day0.dial()
    day0.show(leaf)
    for _ in range(2):
        with refused(reason):
            await day0.dial()


async def test_a_remembered_leaf_expires_like_any_other(day0: Day0) -> None:
    await day0.dial()
    day0.clock.ahead = timedelta(days=3650)
    with refused(Reason.DAY0_CERTIFICATE_EXPIRED):
        await day0.dial()


async def test_what_is_remembered_is_bounded(day0: Day0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MAX_KNOWN", 1)
    await day0.dial()
    known = day0.port._known[NF_ID]
    day0.port._known.clear()
    day0.port._known[OTHER_ID] = known
    await day0.dial()
    assert set(day0.port._known) == {NF_ID}
