"""The reissue drill: which NFs it has to do with, how many at a time, and what an interruption leaves."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli import drill
from nftrust.cli.drill import Mark, Tally, plan, run
from nftrust.errors import NftrustError, Reason
from tests.unit.support import NOW, refused

HOUR = timedelta(hours=1)


def stamp(after: timedelta) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(NOW + after)
    return made


def nf(name: str, state: pb.NetworkFunction.State.ValueType = pb.NetworkFunction.IN_SERVICE) -> pb.NetworkFunction:
    return pb.NetworkFunction(name=f"networkFunctions/{name}", nf_instance_id=name, state=state)


def certificate(name: str, after: timedelta, *, confirmed: bool = True) -> certificate_pb.Certificate:
    made = certificate_pb.Certificate(nf_instance_id=name, create_time=stamp(after))
    if confirmed:
        made.confirm_time.CopyFrom(stamp(after))
    return made


MARK = Mark(stamp(timedelta(0)).ToMicroseconds())


def test_what_is_left_is_what_the_ca_ra_says() -> None:
    issued = [  # the newest first
        certificate("unconfirmed", HOUR, confirmed=False),
        certificate("done", HOUR),
        certificate("last", timedelta(0)),
        certificate("old", -HOUR),
        certificate("unconfirmed", -HOUR),
        certificate("done", -HOUR),
        certificate("gone", -HOUR),
        certificate("retired", -HOUR),
    ]
    nfs = [nf(name) for name in ("done", "last", "old", "unconfirmed", "none")]
    nfs += [nf("retired", pb.NetworkFunction.RETIRED), nf("retiring", pb.NetworkFunction.RETIRING)]
    found = plan(nfs, issued, MARK)
    assert found.due == tuple(f"networkFunctions/{name}" for name in ("last", "old", "unconfirmed"))
    assert found.done == 1
    assert found.without == ("networkFunctions/none",)


def names(count: int) -> list[str]:
    return [f"nf{number}" for number in range(count)]


def test_all_are_renewed_and_no_more_at_a_time_than_allowed() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def renew(name: str) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    tally, told = Tally(total=50, done=0), []
    run(names(50), renew, tally, lambda _: told.append(1), concurrency=4)
    assert (tally.done, tally.left, len(tally.seconds), len(told)) == (50, 0, 50, 50)
    assert 1 <= most <= 4


def test_what_fails_stays_left_with_its_reason() -> None:
    def renew(name: str) -> None:
        if name in ("nf3", "nf7"):
            raise NftrustError(Reason.NF_UNREACHABLE)

    tally = Tally(total=11, done=1)
    run(names(10), renew, tally, lambda _: None, concurrency=3)
    assert (tally.done, tally.left) == (9, 2)
    assert {name: error.reason for name, error in tally.failed.items()} == {
        "nf3": Reason.NF_UNREACHABLE,
        "nf7": Reason.NF_UNREACHABLE,
    }


def test_an_interruption_waits_for_those_under_way_and_begins_no_other() -> None:
    begun: list[str] = []
    interrupted = False

    def interrupt(tally: Tally) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    tally = Tally(total=100, done=0)
    with pytest.raises(KeyboardInterrupt):
        run(names(100), begun.append, tally, interrupt, concurrency=4)
    assert 1 <= len(begun) <= 4
    assert tally.done == len(begun)


def test_the_figures() -> None:
    tally = Tally(total=100, done=100, seconds=[number / 100 for number in range(1, 101)])
    assert (tally.percentile(0.5), tally.percentile(0.99)) == (0.5, 0.99)
    assert Tally(total=1, done=0).percentile(0.99) == 0
    assert "100 of 100 reissued, 0 left, 0 failed" in tally.line()


def test_the_mark_is_the_ca_ra_s_and_survives(tmp_path: Path) -> None:
    memory = tmp_path / "drill.json"
    assert drill._recall(memory) is None
    begun = drill._begin(memory, [certificate("a", -HOUR), certificate("b", timedelta(0))])
    assert begun == MARK
    assert drill._recall(memory) == MARK
    memory.write_text("{")
    with refused(Reason.STATE_CORRUPT):
        drill._recall(memory)
