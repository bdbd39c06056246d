"""The kill test: NFs enrol while random processes get SIGKILL and come back.

Every enrolment succeeds in the end, and no IAK has yielded two certificates.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import Parse

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.audit import verify_chain
from nftrust.cli.inspection import AUDITED, chained, events
from nftrust.cli.session import Session
from nftrust.errors import Code
from nftrust.lab import control
from nftrust.lab.layout import OPERATOR_FILE, Lab, NfSettings
from nftrust.rpc.status import from_rpc_error
from tests.processes_kit import descendants

NFS = int(os.environ.get("NFTRUST_CHAOS_NFS", "50"))
KILLS = NFS
DEADLINE_SECONDS = 240.0

pytestmark = [pytest.mark.chaos, pytest.mark.process, pytest.mark.timeout(900)]


class Killer:
    """Kills supervisors, fronts, token workers and agents at random; restarts what nobody else restarts."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.servers = {role: self._pid(role) for role in control.SERVERS}
        self.agents = dict(zip(lab.settings.nfs, control.processes(lab)["nfs"], strict=True))
        self.killed: list[str] = []

    def _pid(self, role: str) -> int:
        [pid] = control.processes(self.lab)[role]
        return pid

    def kill_one(self) -> None:
        kind = self.random.choice(["supervisor", "front", "worker", "agent", "agent"])
        if kind == "agent":
            nf = self.random.choice(list(self.agents))
            os.kill(self.agents[nf], signal.SIGKILL)
            self.agents[nf] = self._restart_agent(nf)
        else:
            self._kill_server(kind, self.random.choice(["ca_ra", "cmproxy"]))
        self.killed.append(kind)

    def _kill_server(self, kind: str, role: str) -> None:
        below = descendants(self.servers[role])
        if kind == "supervisor":
            os.kill(self.servers[role], signal.SIGKILL)
            self.servers[role] = self._restart_server(role)
        elif below:
            # Fronts come before their token workers.
            victim = below[0] if kind == "front" else below[-1]
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _restart_server(self, role: str) -> int:
        """As a service manager would: again until it stays (the old front may still hold the port)."""
        while True:
            pid = control.start_server(self.lab, role)
            while control.alive(pid):
                if (self.lab.role(role) / control.READY_FILE).exists():
                    return pid
                time.sleep(0.02)

    def _restart_agent(self, nf: NfSettings) -> int:
        while True:
            pid = control.start_agent(self.lab, nf)
            time.sleep(0.1)
            if control.alive(pid):
                return pid

    def describe(self) -> dict[str, list[int]]:
        """The processes as they are now, for ``lab down``."""
        servers = {role: [pid] for role, pid in self.servers.items()}
        return servers | {"nfs": list(self.agents.values())}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path / "lab", NFS, replicas=2)
    control.up(made, print)
    try:
        yield made
    finally:
        control.down(made)


def patiently(call: object, *arguments: object) -> object:
    """Call until the service answers."""
    while True:
        try:
            return call(*arguments)  # type: ignore[operator]
        except grpc.RpcError as error:
            if from_rpc_error(error).reason.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):  # type: ignore[arg-type]
                raise
            time.sleep(0.2)


def enrol(lab: Lab, nf: NfSettings) -> pb.Enrolment:
    """Provision and enrol as a stubborn OAM would: the same request until it is answered."""
    body = Parse((lab.nf(nf) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())
    create = pb.CreateNetworkFunctionRequest(network_function=body, request_id=str(uuid.uuid4()))
    start = pb.StartEnrolmentRequest(parent=f"networkFunctions/{nf.nf_instance_id}", request_id=str(uuid.uuid4()))
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        stub = session.provisioning()
        patiently(lambda: stub.CreateNetworkFunction(create, timeout=10))
        started = patiently(lambda: stub.StartEnrolment(start, timeout=10))
        assert isinstance(started, pb.Enrolment)
        deadline = time.monotonic() + DEADLINE_SECONDS
        request = pb.GetEnrolmentRequest(name=started.name)
        while True:
            current = patiently(lambda: stub.GetEnrolment(request, timeout=10))
            assert isinstance(current, pb.Enrolment)
            if current.HasField("end_time") or time.monotonic() > deadline:
                return current
            time.sleep(0.5)


def test_every_enrolment_succeeds_and_no_iak_yields_two_certificates(lab: Lab) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    killer = Killer(lab, seed)
    done = threading.Event()

    def kill() -> None:
        for _ in range(KILLS):
            if done.is_set():
                return
            killer.kill_one()
            time.sleep(killer.random.uniform(0.0, 0.3))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with ThreadPoolExecutor(max_workers=NFS) as pool:
            enrolments = list(pool.map(lambda nf: enrol(lab, nf), lab.settings.nfs))
    finally:
        done.set()
        thread.join()
        lab.write_description(killer.describe())

    states = {pb.Enrolment.State.Name(enrolment.state) for enrolment in enrolments}
    failures = [(enrolment.name, enrolment.error.reason) for enrolment in enrolments if enrolment.error.reason]
    assert states == {"SUCCEEDED"}, failures
    assert len(killer.killed) >= 5, killer.killed
    database = sqlite3.connect(f"file:{lab.role('ca_ra') / 'store.sqlite'}?mode=ro", uri=True)
    per_registration = database.execute("SELECT count(*) FROM certificate GROUP BY registration_id").fetchall()
    confirmed = database.execute(
        "SELECT count(*), count(DISTINCT nf_instance_id) FROM certificate WHERE confirm_time IS NOT NULL"
    ).fetchone()
    database.close()
    assert {count for (count,) in per_registration} == {1}
    assert confirmed == (NFS, NFS)
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        for role in AUDITED:
            assert verify_chain(map(chained, events(session, role))) is None
