"""Tokens that fail under running roles: nobody goes down, callers hear UNAVAILABLE, enrolments end well."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import msgspec
import pytest

from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.config import TokenConfig
from nftrust.errors import Reason
from nftrust.lab import control
from nftrust.lab.layout import Lab
from nftrust.rpc.status import from_rpc_error
from softhsm import open_config
from tests import processes_kit
from tests.e2e.test_pools import NOT_SERVING, SERVING, health
from tests.lab_kit import RunningLab, read_toml
from tests.shim_kit import CRASH, DEVICE_ERROR, FAULTS, HANG, LOGGED_OUT, SESSION_GONE, TOKEN_GONE, Fault, Shim

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 60.0
#: The agent has the module in its own process, which a crash ends.
SURVIVED = (SESSION_GONE, DEVICE_ERROR, TOKEN_GONE, LOGGED_OUT)
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


class FaultyLab:
    """A lab of one NF whose CA/RA, CM proxy and NF agent have the shim before their tokens."""

    def __init__(self, running: RunningLab, shims: dict[str, Shim]) -> None:
        self.running = running
        self.lab = running.lab
        self.shims = shims
        [self.nf] = running.lab.settings.nfs
        self.name = running.create_nf(running.network_function(self.nf)).name

    def enrol(self) -> str:
        """Start one; its name."""
        return str(self.running.start(self.name, allow_re_enrolment=True).name)

    def meets(self, name: str) -> None:
        """Wait until the fault that was just set has been met."""
        eventually(lambda: self.shims[name].met, f"{name} meets the fault")

    def succeeds(self, enrolment: str) -> None:
        self.running.wait_for(enrolment, pb.Enrolment.SUCCEEDED)

    def fronts(self, role: str) -> list[int]:
        [supervisor] = control.processes(self.lab)[role]
        return processes_kit.fronts(supervisor)

    def audited(self, role: str) -> tuple[int, int]:
        """Losses and returns of the token in the audit log."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.lab.role(role) / 'store.sqlite'}?mode=ro", uri=True)
        ) as db:
            query = "SELECT count(*) FROM audit_event WHERE action = ?"
            lost, back = (db.execute(query, (f"token.{what}",)).fetchone()[0] for what in ("lost", "back"))
        return int(lost), int(back)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyLab]:
    directory = tmp_path_factory.mktemp("faulty")
    lab = Lab.make(directory / "lab", 1)
    try:
        control.up(lab, print)
        control.down(lab)
        shims = {name: Shim(open_config(lab.token(name)), directory / name) for name in ("ca_ra", "cmproxy", "amf")}
        folders = {"ca_ra": lab.role("ca_ra"), "cmproxy": lab.role("cmproxy"), "amf": lab.nf(lab.settings.nfs[0])}
        for name, shim in shims.items():
            write_token(lab.token(name), shim.config)
            assert folders[name].exists()
        control.up(lab, print)
        assert "pkcs11_shim.so" in str(read_toml(folders["ca_ra"] / "config.toml")["token"]["module"])
        with contextlib.ExitStack() as stack:
            yield FaultyLab(RunningLab(lab, stack, directory), shims)
    finally:
        control.down(lab)


def write_token(directory: Path, config: TokenConfig) -> None:
    (directory / "token.json").write_bytes(msgspec.json.encode(config, enc_hook=str))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def trust_bundle(faulty: FaultyLab) -> Reason | None:
    """Needs the response key of the CA/RA's token; the reason where it is refused, which comes with RetryInfo."""
    request = enrolment_pb.GetTrustBundleRequest(nonce=os.urandom(16))
    try:
        faulty.running.nobody.enrolments.GetTrustBundle(request, timeout=30)
    except grpc.RpcError as error:
        seen = from_rpc_error(error)  # type: ignore[arg-type]
        assert seen.code.name == "UNAVAILABLE"
        assert seen.retry_after is not None
        return seen.reason
    return None


def calm(faulty: FaultyLab) -> None:
    """Wait for the end of what went before, in the audit log too."""
    eventually(lambda: trust_bundle(faulty) is None, "the token is well")
    eventually(lambda: health(faulty.lab) == {SERVING}, "so is the server")

    def told() -> bool:
        lost, back = faulty.audited("ca_ra")
        return lost == back

    eventually(told, "and its former outages have ended")


@each_fault
def test_callers_of_the_ca_ra_hear_that_the_token_is_away(faulty: FaultyLab, fault: Fault) -> None:
    calm(faulty)
    fronts, (lost, back) = faulty.fronts("ca_ra"), faulty.audited("ca_ra")
    with faulty.shims["ca_ra"].failing(fault):
        if fault is HANG:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(trust_bundle, faulty)
                faulty.meets("ca_ra")
                faulty.shims["ca_ra"].set(None)
                # Answered when the token goes on, unless it was given up before.
                assert waiting.result(60) in (None, Reason.TOKEN_UNAVAILABLE)
        else:
            heard = {trust_bundle(faulty) for _ in range(5)}
            assert heard == {Reason.TOKEN_UNAVAILABLE}
    eventually(lambda: trust_bundle(faulty) is None, "the token is back")
    if fault.name != "hang":
        eventually(lambda: faulty.audited("ca_ra") == (lost + 1, back + 1), "one line for the loss, one for the return")
    assert faulty.fronts("ca_ra") == fronts


@pytest.mark.parametrize("fault", [SESSION_GONE, LOGGED_OUT], ids=lambda fault: fault.name)
def test_an_outage_with_logins_that_succeed_is_one_outage(faulty: FaultyLab, fault: Fault) -> None:
    calm(faulty)
    lost, back = faulty.audited("ca_ra")
    with faulty.shims["ca_ra"].failing(fault):
        logins = faulty.shims["ca_ra"].logins
        # Each login seems to be the end, until the token is asked for something.
        eventually(lambda: trust_bundle(faulty) is not None and faulty.shims["ca_ra"].logins > logins + 5, "logins")
    eventually(lambda: trust_bundle(faulty) is None, "the token is back")
    eventually(lambda: faulty.audited("ca_ra")[1] > back, "which is audited")
    assert faulty.audited("ca_ra") == (lost + 1, back + 1)


def test_callers_do_not_wait_for_a_token_that_hangs(faulty: FaultyLab) -> None:
    calm(faulty)
    fronts, (lost, back) = faulty.fronts("ca_ra"), faulty.audited("ca_ra")
    with ThreadPoolExecutor(1) as pool:
        with faulty.shims["ca_ra"].failing(HANG):
            waiting = pool.submit(trust_bundle, faulty)
            eventually(lambda: health(faulty.lab) == {NOT_SERVING}, "it is noticed")
            assert {trust_bundle(faulty) for _ in range(5)} == {Reason.TOKEN_UNAVAILABLE}
        assert waiting.result() in (None, Reason.TOKEN_UNAVAILABLE)
    eventually(lambda: trust_bundle(faulty) is None, "the token is back")
    eventually(lambda: faulty.audited("ca_ra") == (lost + 1, back + 1), "one line for the loss, one for the return")
    assert faulty.fronts("ca_ra") == fronts


@each_fault
def test_an_enrolment_survives_the_ca_ras_token(faulty: FaultyLab, fault: Fault) -> None:
    with faulty.shims["ca_ra"].failing(fault):
        enrolment = faulty.enrol()
        faulty.meets("ca_ra")
    faulty.succeeds(enrolment)


@each_fault
def test_an_enrolment_survives_the_proxys_token(faulty: FaultyLab, fault: Fault) -> None:
    fronts = faulty.fronts("cmproxy")
    with faulty.shims["cmproxy"].failing(fault):
        enrolment = faulty.enrol()
        faulty.meets("cmproxy")
    faulty.succeeds(enrolment)
    assert faulty.fronts("cmproxy") == fronts


@pytest.mark.parametrize("fault", SURVIVED, ids=lambda fault: fault.name)
def test_an_enrolment_survives_the_nfs_token(faulty: FaultyLab, fault: Fault) -> None:
    [agent] = control.processes(faulty.lab)["nfs"]
    with faulty.shims["amf"].failing(fault):
        enrolment = faulty.enrol()
        faulty.meets("amf")
    faulty.succeeds(enrolment)
    assert control.alive(agent)


def test_an_agent_whose_module_crashed_goes_on_after_its_restart(faulty: FaultyLab) -> None:
    started = dict(control.processes(faulty.lab))
    [agent] = started["nfs"]
    with faulty.shims["amf"].failing(CRASH):
        enrolment = faulty.enrol()
        eventually(lambda: not control.alive(agent), "the module takes the process with it")
    started["nfs"] = [control.start_agent(faulty.lab, faulty.nf)]
    faulty.lab.write_description(started)
    faulty.succeeds(enrolment)


def test_an_agent_ends_while_its_token_hangs(faulty: FaultyLab) -> None:
    """Its module is in its own process and does not return; nobody waits for it."""
    started = dict(control.processes(faulty.lab))
    [agent] = started["nfs"]
    with faulty.shims["amf"].failing(HANG):
        enrolment = faulty.enrol()
        faulty.meets("amf")
        os.kill(agent, signal.SIGTERM)
        eventually(lambda: not control.alive(agent), "it ends")
    started["nfs"] = [control.start_agent(faulty.lab, faulty.nf)]
    faulty.lab.write_description(started)
    faulty.succeeds(enrolment)
