"""Hostile peers at every listener: legitimate enrolments go on, nobody goes down, nothing is kept of the flood."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.lab import control
from nftrust.lab.layout import HOST, Lab
from tests.floods_kit import BELOW_GRPC, Target, flood
from tests.lab_kit import RunningLab, refused, remote_error
from tests.processes_kit import fronts

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

CONNECTIONS = 150
PATIENCE_SECONDS = 60.0
MIB = 1 << 20
#: What a server may be larger by after all floods.
GROWTH_BYTES = 96 * MIB
LISTENERS = ("enrolment", "ca_ra", "cmproxy", "verifier", "agent")


class Flooded:
    """A lab of one NF and what its processes hold."""

    def __init__(self, running: RunningLab) -> None:
        self.running = running
        self.lab = running.lab
        [self.nf] = running.lab.settings.nfs
        self.name = running.create_nf(running.network_function(self.nf)).name
        self.enrol()
        self.processes = self._processes()
        self.sockets = {pid: sockets(pid) for pid in self.processes}
        self.memory = {pid: resident(pid) for pid in self.processes}

    def enrol(self) -> None:
        self.running.enrol_and_wait(self.name, allow_re_enrolment=True)

    def target(self, listener: str) -> Target:
        pki = self.lab.pki
        roots, client = pki / "services-ca.pem", (pki / "oam.pem", pki / "oam.key")
        if listener == "agent":  # its day-0 root is not the services' CA
            return Target(HOST, self.nf.port, roots)
        port = int(self.running.targets[listener].rpartition(":")[2])
        return Target(HOST, port, roots, None if listener == "enrolment" else client)

    def _processes(self) -> list[int]:
        """Fronts and the NF agent."""
        found = control.processes(self.lab)
        return [pid for role in control.SERVERS for pid in fronts(found[role][0])] + found["nfs"]

    def check(self) -> None:
        """The same processes as before the first flood, and what the flood opened is closed again."""
        assert self._processes() == self.processes
        for pid in self.processes:
            eventually(lambda pid=pid: sockets(pid) <= self.sockets[pid] + 20, "connections are closed")  # type: ignore[misc]
            assert resident(pid) < self.memory[pid] + GROWTH_BYTES


def sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    directory = tmp_path_factory.mktemp("flooded")
    lab = Lab.make(directory / "lab", 1)
    try:
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            yield Flooded(RunningLab(lab, stack, directory))
    finally:
        control.down(lab)


@pytest.mark.parametrize("kind", BELOW_GRPC, ids=lambda kind: kind.__name__)
def test_enrolments_go_on_under_broken_connections(flooded: Flooded, kind: Callable[[Target], socket.socket]) -> None:
    with contextlib.ExitStack() as stack:
        for listener in LISTENERS:
            stack.enter_context(flood(flooded.target(listener), kind, CONNECTIONS // len(LISTENERS)))
        stack.enter_context(flood(flooded.target("enrolment"), kind, CONNECTIONS))
        flooded.enrol()
    flooded.check()


def raw(flooded: Flooded, listener: str, method: str) -> Any:
    """A method that takes bytes as they are."""
    caller = flooded.running.nobody if listener == "enrolment" else flooded.running.oam
    return caller.channel(listener).unary_unary(method)


ENROL = "/nftrust.api.ca_ra.v1.EnrolmentService/EnrolCertificate"
CREATE = "/nftrust.api.cmproxy.v1.ProvisioningService/CreateNetworkFunction"


@pytest.mark.parametrize(("listener", "method"), [("enrolment", ENROL), ("cmproxy", CREATE)])
def test_enrolments_go_on_under_messages_that_are_none(flooded: Flooded, listener: str, method: str) -> None:
    call = raw(flooded, listener, method)

    def garbage(_: int) -> None:
        with refused(Reason.MALFORMED_MESSAGE, Reason.RATE_LIMITED):
            call(b"\xff" * 1000, timeout=20)

    def oversize(_: int) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(MIB), timeout=20)
        # gRPC itself refuses before anything of ours has seen it.
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as pool:
        flow = [pool.submit(flooded.enrol)]
        flow += [pool.submit(garbage, number) for number in range(300)]
        flow += [pool.submit(oversize, number) for number in range(50)]
        for each in flow:
            each.result()
    flooded.check()


def test_streams_that_are_left_open_are_bounded_per_principal(flooded: Flooded) -> None:
    enrolment = flooded.running.start(flooded.name, allow_re_enrolment=True)
    flooded.running.wait_for(enrolment.name, pb.Enrolment.SUCCEEDED)
    request = pb.GetNetworkFunctionRequest(name=flooded.name)
    # An enrolment of an NF that nobody serves stays active, and so do the streams that watch it.
    with flooded.running.provisioned(flooded.running.unborn()) as unborn:
        waiting = flooded.running.start(unborn.name)
        watch = pb.WatchEnrolmentRequest(name=waiting.name)
        streams = [flooded.running.oam.provisioning.WatchEnrolment(watch) for _ in range(64)]
        for stream in streams:
            assert next(stream).enrolment.name == waiting.name
        with pytest.raises(grpc.RpcError) as caught:
            next(flooded.running.oam.provisioning.WatchEnrolment(watch))
        seen = remote_error(caught.value)
        assert seen.reason is Reason.RATE_LIMITED
        assert seen.retry_after
        flooded.running.oam.provisioning.GetNetworkFunction(request, timeout=20)
        flooded.enrol()
        for stream in streams:
            stream.cancel()
    flooded.check()


def test_enrolments_go_on_under_a_flood_of_calls(flooded: Flooded) -> None:
    call = raw(flooded, "enrolment", ENROL)
    futures = [call.future(b"\xff", timeout=30) for _ in range(4000)]
    flooded.enrol()
    heard = set()
    for future in futures:
        seen = remote_error(future.exception())
        heard.add(seen.reason)
        if seen.reason is Reason.RATE_LIMITED:
            assert seen.retry_after
    # gRPC itself refuses streams beyond what it queues; its clients may send those again.
    refusals = {Reason.RATE_LIMITED, Reason.OVERLOADED, Reason.PEER_UNAVAILABLE}
    assert heard <= {Reason.MALFORMED_MESSAGE, *refusals}
    assert heard & refusals
    flooded.check()
