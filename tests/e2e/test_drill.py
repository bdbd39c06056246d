"""`nftrust drill reissue` with real agents, one of which is down at first."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nf_agent.state import read_state
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.main import main
from nftrust.errors import Reason
from nftrust.lab import control
from nftrust.lab.layout import Lab
from tests.lab_kit import CALL_SECONDS, WAIT_SECONDS, RunningLab, refused

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(400)]

EXIT_LEFT = 3


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[RunningLab]:
    """A lab of its own: a drill renews every certificate that there is."""
    lab = Lab.make(tmp_path / "lab", 2)
    try:
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            yield RunningLab(lab, stack, tmp_path)
    finally:
        control.down(lab)


def drill(running: RunningLab, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main(["--config", str(running.config), "drill", "reissue", "--output", "json", *options])
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else output.err


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def knows_the_cas(lab: Lab, nf: control.NfSettings) -> bool:
    state = read_state(lab.nf(nf) / "state")
    return state is not None and len(state.bundle) == 1


def renew(running: RunningLab, name: str) -> Any:
    request = pb.RenewNetworkFunctionRequest(name=name)
    return running.oam.provisioning.RenewNetworkFunction(request, timeout=CALL_SECONDS)


def test_every_nf_gets_a_new_certificate_and_a_second_run_goes_on(
    own_lab: RunningLab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = own_lab.lab
    first, second = lab.settings.nfs
    names = [own_lab.create_nf(own_lab.network_function(nf)).name for nf in (first, second)]
    with refused(Reason.NOT_ENROLLED):
        renew(own_lab, names[0])
    for enrolment in [own_lab.start(name) for name in names]:
        own_lab.wait_for(enrolment.name, pb.Enrolment.SUCCEEDED)

    def serial(nf: control.NfSettings) -> str:
        state = read_state(lab.nf(nf) / "state")
        assert state is not None
        assert state.current is not None
        return state.current.chain[0]

    before = {nf.folder: serial(nf) for nf in (first, second)}
    for nf in (first, second):  # the agents fetch the trust bundle by themselves (docs/rollover.md)
        until(partial(knows_the_cas, lab, nf), "no trust bundle")

    down = control.processes(lab)["nfs"][1]
    control._signal(down, signal.SIGTERM)
    control._children[down].wait(WAIT_SECONDS)
    code, said = drill(own_lab, capsys)
    assert code == EXIT_LEFT, said
    assert (said["reissued"], said["left"], said["failed"]) == (1, 1, {names[1]: "NF_UNREACHABLE"})
    assert said["p50_seconds"] > 0
    assert serial(second) == before[second.folder]
    renewed = serial(first)
    assert renewed != before[first.folder]

    started = control.start_agent(lab, second)
    try:
        until((lab.nf(second) / control.READY_FILE).exists, "the agent did not start again")
        code, said = drill(own_lab, capsys)
        assert (code, said["reissued"], said["left"], said["failed"]) == (0, 2, 0, {}), said
        assert serial(second) != before[second.folder]
        assert serial(first) == renewed  # nothing is renewed twice
        assert not (own_lab.config.parent / "drill-reissue.json").exists()
    finally:
        control._signal(started, signal.SIGTERM)
        control._children.pop(started).wait(WAIT_SECONDS)
    unborn = own_lab.create_nf(own_lab.unborn())
    with refused(Reason.NF_UNREACHABLE):
        renew(own_lab, unborn.name)
    own_lab.oam.provisioning.RetireNetworkFunction(pb.RetireNetworkFunctionRequest(name=unborn.name))
    with refused(Reason.NF_RETIRED):
        renew(own_lab, unborn.name)
