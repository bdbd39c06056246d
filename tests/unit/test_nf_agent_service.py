"""What the NF agent tells whoever watches its status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from nf_agent.config import AgentConfig
from nf_agent.service import AgentServicer
from nf_agent.state import AgentState
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb
from nftrust.config import ListenerConfig, ServerTlsConfig, TokenConfig
from tests.unit.support import NF_ID, ec_key

NOWHERE = Path("/nonexistent")
CONFIG = AgentConfig(
    nf_instance_id=NF_ID,
    state_dir=NOWHERE,
    token=TokenConfig(module=NOWHERE, label="none", pin_file=NOWHERE),
    listener=ListenerConfig(address="127.0.0.1:0", tls=ServerTlsConfig(certificate=NOWHERE, private_key=NOWHERE)),
)


class Agent:
    """As much of an agent as can be watched."""

    def __init__(self) -> None:
        self.state = AgentState(nf_instance_id=NF_ID, instantiate_time=0.0)
        self.change = asyncio.Event()
        self.pending_hooks: frozenset[str] = frozenset()

    def becomes(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        changed, self.change = self.change, asyncio.Event()
        changed.set()

    async def deliver(self, enrolment_info: str, iak: bytes) -> None: ...

    async def renew(self) -> bytes:
        return b""


async def test_a_watcher_hears_of_what_has_changed_and_of_nothing_else() -> None:
    agent = Agent()
    servicer = AgentServicer(agent, CONFIG, b"", ec_key(), [], [])
    context: Any = None
    told: AsyncIterator[pb.AgentStatus] = servicer.WatchStatus(pb.WatchStatusRequest(), context)
    assert (await anext(told)).state == pb.AgentStatus.ARMED
    following = asyncio.ensure_future(anext(told))
    for _ in range(3):
        agent.becomes(instantiate_time=1.0)  # nobody is told of it
        for _ in range(3):
            await asyncio.sleep(0)
        assert not following.done()
    agent.becomes(phase="enrolling", reason="PEER_UNAVAILABLE")
    status = await asyncio.wait_for(following, 10)
    assert (status.state, status.reason) == (pb.AgentStatus.ENROLLING, "PEER_UNAVAILABLE")
