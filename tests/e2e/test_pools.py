"""Two fronts behind one port: one that is killed or stopped is replaced, and health answers for both."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.lab import control
from nftrust.lab.layout import HOST, Lab
from tests import processes_kit

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Fresh connections, so that in all likelihood (1 - 2^-15) both fronts are asked.
ASKED = 16
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.make(tmp_path_factory.mktemp("pool") / "lab", 1, replicas=2)
    control.up(made, print)
    try:
        yield made
    finally:
        control.down(made)


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def fronts(lab: Lab, role: str) -> list[int]:
    [supervisor] = control.processes(lab)[role]
    return processes_kit.fronts(supervisor)


def workers(lab: Lab, role: str) -> list[int]:
    [supervisor] = control.processes(lab)[role]
    return processes_kit.token_workers(supervisor)


def call(lab: Lab, what: Callable[[grpc.Channel], Any]) -> Any:
    """Over a connection of its own."""
    roots = grpc.ssl_channel_credentials((lab.pki / "services-ca.pem").read_bytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"{HOST}:{lab.settings.ca_ra_enrolment_port}", roots, options) as channel:
        return what(channel)


def health(lab: Lab) -> set[int]:
    """What the server says over many connections."""

    def check(channel: grpc.Channel) -> int:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return int(answer.status)

    return {call(lab, check) for _ in range(ASKED)}


def bundle(lab: Lab) -> Any:
    """A signed answer: needs a front and its token. Tried again as a client would."""
    request = enrolment_pb.GetTrustBundleRequest(nonce=os.urandom(16))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call(lab, lambda channel: EnrolmentServiceStub(channel).GetTrustBundle(request, timeout=2))
        except grpc.RpcError as error:
            if error.code() not in AWAY or time.monotonic() > deadline:  # type: ignore[attr-defined]
                raise
            time.sleep(0.05)


def audited(lab: Lab, role: str, action: str) -> int:
    database = sqlite3.connect(f"file:{lab.role(role) / 'store.sqlite'}?mode=ro", uri=True)
    [count] = database.execute("SELECT count(*) FROM audit_event WHERE action = ?", (action,)).fetchone()
    database.close()
    return int(count)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_calls_go_on_while_a_front_is_replaced(lab: Lab, blow: signal.Signals) -> None:
    before = fronts(lab, "ca_ra")
    assert len(before) == 2
    os.kill(before[0], blow)
    for _ in range(10):
        assert bundle(lab).signed_response
    eventually(lambda: before[0] not in fronts(lab, "ca_ra") and len(fronts(lab, "ca_ra")) == 2, "replaced")
    eventually(lambda: len(workers(lab, "ca_ra")) == 2, "with its token worker")
    eventually(lambda: health(lab) == {SERVING}, "healthy again")


def test_every_front_tells_of_the_token_that_one_of_them_lacks(lab: Lab) -> None:
    eventually(lambda: health(lab) == {SERVING}, "healthy")
    lost, back = (audited(lab, "ca_ra", action) for action in ("token.lost", "token.back"))
    victims = set()

    def noticed() -> bool:
        # Again and again: on a loaded machine the first may be replaced before all have been asked.
        victims.add(victim := workers(lab, "ca_ra")[0])
        os.kill(victim, signal.SIGSTOP)
        # It is noticed when it is needed.
        return bool(bundle(lab)) and health(lab) == {NOT_SERVING}

    eventually(noticed, "both fronts say so")
    eventually(lambda: not victims & set(workers(lab, "ca_ra")), "the worker that hangs is killed")
    eventually(lambda: health(lab) == {SERVING}, "healthy again")

    def outages() -> tuple[int, int]:
        return audited(lab, "ca_ra", "token.lost") - lost, audited(lab, "ca_ra", "token.back") - back

    eventually(lambda: outages()[0] == outages()[1], "one line tells the end")
    assert 1 <= outages()[0] <= len(victims)


def test_a_proxy_without_its_token_drains_when_told(lab: Lab) -> None:
    """Nobody waits for a signature that does not come."""
    [supervisor] = control.processes(lab)["cmproxy"]
    [worker] = workers(lab, "cmproxy")
    os.kill(worker, signal.SIGSTOP)
    # A CA/RA that comes back is dialled again: a handshake that needs the key.
    for front in fronts(lab, "ca_ra"):
        os.kill(front, signal.SIGKILL)
    eventually(lambda: len(fronts(lab, "ca_ra")) == 2, "replaced")
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: not control.alive(supervisor), "the proxy ends")
    log = (lab.role("cmproxy") / control.LOG_FILE).read_text()
    assert "killed" not in log
