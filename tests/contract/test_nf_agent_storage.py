"""The NF agent while its state cannot be written: it waits, tells why, and goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nf_agent.agent import NfAgent
from nf_agent.config import AgentConfig
from nf_agent.foreign import ForeignExpectations
from nf_agent.procedure import new_attempt
from nf_agent.state import AgentState, StateStore, read_state
from nftrust.config import ListenerConfig, ServerTlsConfig, TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.client import TokenClient
from tests.unit.support import NF_ID
from tests.unit.test_acceptance import EXPECTED, info, signed

RETRY = "attempt failed, will be retried"


@contextmanager
def agent_of(directory: Path, enrolment_info: str) -> Iterator[NfAgent]:
    """With an attempt under way, and a token that is not there."""
    attempt = new_attempt(enrolment_info, "registrations/1", None)
    states = StateStore(directory, AgentState(nf_instance_id=NF_ID, instantiate_time=0.0))
    states.save(AgentState(nf_instance_id=NF_ID, instantiate_time=0.0, phase="enrolling", attempt=attempt))
    token = TokenConfig(module=Path("/nonexistent/module.so"), label="none", pin_file=directory / "pin")
    tls = ServerTlsConfig(certificate=directory / "day0.pem", private_key=directory / "day0.key")
    config = AgentConfig(
        nf_instance_id=NF_ID,
        state_dir=directory,
        token=token,
        listener=ListenerConfig(address="127.0.0.1:0", tls=tls),
        retry_cap_seconds=0.05,
    )
    client = TokenClient.in_process(token)
    try:
        yield NfAgent(config, states, client, EXPECTED, ForeignExpectations(NF_ID, bytes(32), (), (), None))
    finally:
        client.close()


async def retried(caplog: pytest.LogCaptureFixture, reason: Reason, times: int) -> None:
    def seen() -> int:
        return [getattr(r, "reason", None) for r in caplog.records if r.message == RETRY].count(reason.name)

    deadline = time.monotonic() + 30
    while seen() < times:
        assert time.monotonic() < deadline, "it is retried"
        await asyncio.sleep(0.01)


async def test_a_refusal_that_cannot_be_kept_is_not_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    with agent_of(directory, "no enrolment information") as agent, caplog.at_level(logging.INFO, "nf_agent"):
        attempt = agent.state.attempt
        assert attempt is not None
        kept = read_state(directory)
        running = asyncio.create_task(agent._run_attempt(attempt))
        directory.rename(tmp_path / "away")
        await retried(caplog, Reason.STORAGE_UNAVAILABLE, 3)
        assert not running.done()
        assert agent.state.reason == Reason.STORAGE_UNAVAILABLE.name  # the CM proxy hears of it
        assert agent.state.phase == "enrolling"
        assert read_state(tmp_path / "away") == kept
        (tmp_path / "away").rename(directory)
        await asyncio.wait_for(running, 30)
    found = read_state(directory)
    assert found is not None
    assert (found.phase, found.reason) == ("failed", Reason.ENROLMENT_INFO_INVALID.name)
    assert [path.name for path in directory.iterdir()] == ["state.json"]


async def test_a_retry_that_cannot_be_noted_is_still_paced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    tomorrow = int(datetime.now(UTC).timestamp()) + 86400

    def unanswered(*_: object) -> None:
        raise NftrustError(Reason.PEER_UNAVAILABLE)

    enrolment_info = signed(info(expire_time=tomorrow))
    with agent_of(directory, enrolment_info) as agent, caplog.at_level(logging.INFO, "nf_agent"):
        agent._accept_again = unanswered  # type: ignore[assignment]
        attempt = agent.state.attempt
        assert attempt is not None
        running = asyncio.create_task(agent._run_attempt(attempt))
        directory.rename(tmp_path / "away")
        await retried(caplog, Reason.PEER_UNAVAILABLE, 3)
        assert not running.done()
        assert agent.state.reason == Reason.PEER_UNAVAILABLE.name
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
