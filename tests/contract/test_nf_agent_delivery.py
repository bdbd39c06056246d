"""Which deliveries the NF agent refuses because their IAK may have been spent already."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from nf_agent.state import Phase
from nftrust.errors import Reason
from tests.contract.test_nf_agent_storage import agent_of
from tests.unit.support import refused
from tests.unit.test_acceptance import info, signed


def tomorrow() -> int:
    return int(datetime.now(UTC).timestamp()) + 86400


@pytest.mark.parametrize("phase", ["failed", "armed"])
async def test_an_iak_that_went_out_once_is_not_taken_again(tmp_path: Path, phase: Phase) -> None:
    """A CM proxy that was killed delivers again; a second key for the same IAK would suspend the NF."""
    text = signed(info(expire_time=tomorrow(), re_enrolment=True))
    with agent_of(tmp_path, text) as agent:
        attempt = agent.state.attempt
        assert attempt is not None
        agent._states.save(replace(agent.state, phase=phase, attempt=replace(attempt, proof="sent")))
        before = agent.state
        for again in (text, signed(info(expire_time=tomorrow(), re_enrolment=True))):
            with refused(Reason.AGENT_NOT_ARMED):
                await agent.deliver(again, b"")
        assert agent.state == before
        other = signed(info(expire_time=tomorrow(), registration="registrations/2"))
        await agent.deliver(other, b"")
        assert agent.state.attempt is not None
        assert (agent.state.phase, agent.state.attempt.registration) == ("enrolling", "registrations/2")


async def test_one_that_never_went_out_is_taken_again(tmp_path: Path) -> None:
    text = signed(info(expire_time=tomorrow()))
    with agent_of(tmp_path, text) as agent:
        agent._states.save(replace(agent.state, phase="failed"))
        await agent.deliver(text, b"")
        assert agent.state.phase == "enrolling"


async def test_while_its_attempt_runs_a_repeated_delivery_has_no_effect(tmp_path: Path) -> None:
    text = signed(info(expire_time=tomorrow()))
    with agent_of(tmp_path, text) as agent:
        before = agent.state
        await agent.deliver(text, b"")
        assert agent.state is before
