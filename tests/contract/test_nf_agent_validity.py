"""An NF agent whose certificate expires says so to everybody: health, status, metrics, the command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import tomli_w
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec.structs import replace

from nf_agent import AgentConfig, NfAgent, validity
from nf_agent.__main__ import main
from nf_agent.foreign import ForeignExpectations
from nf_agent.procedure import new_attempt
from nf_agent.state import AgentState, StateStore
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb
from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import AgentServiceStub
from nftrust.pkcs11.client import TokenClient
from nftrust.rpc import FileIdentity, open_channel
from nftrust.x509.path import der
from tests.hooks_kit import PATIENCE_SECONDS, operator_ca
from tests.pki import DAY, make_ca, service_leaf
from tests.unit.support import NF_ID
from tests.unit.test_acceptance import EXPECTED, info, signed

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIFETIME = 30 * DAY


class Clock:
    """The agent's clock, which the test sets."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(validity, "utc_now", made.now)
    monkeypatch.setattr(validity, "LOOK_SECONDS", 0.02)
    return made


@contextmanager
def agent_with_certificate(directory: Path) -> Iterator[tuple[NfAgent, Path]]:
    """With a confirmed certificate, and a token that is not there; and its configuration file."""
    services = make_ca("services")
    services.write(directory, "services-ca")
    service_leaf(services, "cm-proxy").write(directory, "client")
    service_leaf(services, "day0").write(directory, "day0")
    leaf = operator_ca().issue(lifetime=LIFETIME)
    chain = tuple(der(each).hex() for each in (leaf.certificate, operator_ca().certificate, operator_ca().certificate))
    attempt = replace(new_attempt(signed(info()), "registrations/1", None), chain=chain, key_label="nf-1")
    state = AgentState(nf_instance_id=NF_ID, instantiate_time=0.0, phase="confirmed", attempt=attempt, current=attempt)
    states = StateStore(directory, state)
    states.save(state)
    path = directory / "agent.toml"
    path.write_text(tomli_w.dumps(configuration(directory)))
    config = AgentConfig.from_file(path)
    client = TokenClient.in_process(config.token)
    try:
        yield NfAgent(config, states, client, EXPECTED, ForeignExpectations(NF_ID, bytes(32), (), (), None)), path
    finally:
        client.close()


def configuration(directory: Path) -> dict[str, Any]:
    return {
        "nf_instance_id": NF_ID,
        "state_dir": str(directory),
        "token": {"module": "/nonexistent/module.so", "label": "nf token", "pin_file": str(directory / "pin")},
        "listener": {
            "address": "127.0.0.1:0",
            "tls": {
                "certificate": str(directory / "day0.pem"),
                "private_key": str(directory / "day0.key"),
                "client_ca": str(directory / "services-ca.pem"),
            },
        },
        "hooks": {"command": ["/bin/false"]},
        "metrics_file": str(directory / "metrics.prom"),
    }


async def dialled(directory: Path, agent: NfAgent) -> grpc.aio.Channel:
    identity = FileIdentity(directory / "client.pem", directory / "client.key")
    roots = (directory / "services-ca.pem").read_bytes()
    return open_channel(f"localhost:{agent.port}", trust_roots=roots, identity=identity)


async def watched(statuses: AsyncIterator[pb.AgentStatus], condition: int) -> pb.AgentStatus:
    """The first status of a stream that says so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for status in statuses:
            if status.certificate.condition == condition:
                return status
    raise AssertionError("the stream has ended")


async def test_everybody_hears_of_the_end(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> tuple[int, str]:
        code = main(["status", "--config", str(path)])
        return code, capsys.readouterr().out

    def metrics() -> list[str]:
        return (tmp_path / "metrics.prom").read_text().splitlines()

    with agent_with_certificate(tmp_path) as (agent, path):
        async with agent._running(b"spki"):
            channel = await dialled(tmp_path, agent)
            health: Any = health_pb2_grpc.HealthStub(channel)
            statuses: Any = AgentServiceStub(channel).WatchStatus(pb.WatchStatusRequest())  # type: ignore[no-untyped-call]

            async def serves(service: str = "") -> int:
                request = health_pb2.HealthCheckRequest(service=service)
                return int((await health.Check(request, timeout=PATIENCE_SECONDS)).status)

            status = await watched(statuses, pb.CertificateStatus.VALID)
            assert status.state == pb.AgentStatus.CONFIRMED
            assert status.certificate.key_uri == "pkcs11:token=nf%20token;object=nf-1;type=private"
            assert status.certificate.not_after.ToDatetime(UTC) - clock.now() > LIFETIME - DAY
            assert await serves() == SERVING
            assert command()[0] == 0

            clock.ahead = LIFETIME * 0.9
            await watched(statuses, pb.CertificateStatus.EXPIRING)
            assert await serves() == SERVING
            code, text = command()
            assert (code, "certificate  expiring\n" in text) == (0, True)
            assert 'nftrust_agent_certificate{condition="expiring"} 1' in metrics()

            clock.ahead = LIFETIME + DAY
            status = await watched(statuses, pb.CertificateStatus.EXPIRED)
            assert status.state == pb.AgentStatus.CONFIRMED
            assert await serves() == NOT_SERVING
            assert await serves("nftrust.api.nf_agent.v1.AgentService") == SERVING  # a CM proxy may bring another one
            assert 'nftrust_agent_certificate{condition="expired"} 1' in metrics()
            assert 'nftrust_agent_certificate{condition="valid"} 0' in metrics()
            code, text = command()
            assert (code, "certificate  expired\n" in text) == (1, True)
            assert "pin-source=file:" in text

            clock.ahead = timedelta(0)
            await watched(statuses, pb.CertificateStatus.VALID)
            assert await serves() == SERVING
            await channel.close()


async def test_a_hook_that_fails_is_told_of(tmp_path: Path) -> None:
    with agent_with_certificate(tmp_path) as (agent, _):
        async with agent._running(b"spki"):
            channel = await dialled(tmp_path, agent)
            stub: Any = AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            async with asyncio.timeout(PATIENCE_SECONDS):
                async for status in stub.WatchStatus(pb.WatchStatusRequest()):
                    if list(status.certificate.pending_hooks) == ["command"]:
                        break
            assert 'nftrust_agent_hook_pending{hook="command"} 1' in agent.metrics()
            assert 'nftrust_agent_hook_pending{hook="files"} 0' in agent.metrics()
            assert (tmp_path / "current" / "certificate.pem").exists()
            await channel.close()
