"""What an NF agent says of itself reaches an operator's terminal: it may be anything."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cmproxy.adapters.diagnosis import agent_report
from cmproxy.adapters.nf import NfLook
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb

END = datetime(2031, 1, 1, tzinfo=UTC)


def look(version: str = "1.2.3", reason: str = "", state: int = 1, time: Timestamp | None = None) -> NfLook:
    info = pb.AgentInfo(version=version, time=time)
    return NfLook(info, pb.AgentStatus(state=state, reason=reason), b"", END)  # type: ignore[arg-type]


def test_what_an_honest_agent_says_is_passed_on() -> None:
    report = agent_report(look("1.2.3.dev4+g0a", "PEER_UNAVAILABLE", time=Timestamp(seconds=1_900_000_000)))
    assert (report.version, report.reason) == ("1.2.3.dev4+g0a", "PEER_UNAVAILABLE")
    assert report.state == pb.AgentStatus.State.Name(1)
    assert report.time.seconds == 1_900_000_000
    assert report.day0_expire_time.ToDatetime(UTC) == END


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "1.2\n3", "1 2", "v" * 65, "\u202e1"])
def test_what_is_no_word_is_not(text: str) -> None:
    report = agent_report(look(version=text, reason=text, state=99))
    assert (report.version, report.reason, report.state) == ("", "", "")


@pytest.mark.parametrize("time", [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1)])
def test_a_time_that_there_is_not_is_not(time: Timestamp) -> None:
    assert not agent_report(look(time=time)).HasField("time")
