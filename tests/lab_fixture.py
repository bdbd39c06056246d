"""One lab for the tests that drive real processes (a pytest plugin)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.lab import control
from nftrust.lab.layout import Lab
from tests.lab_kit import RunningLab, SpareAgent

NFS = 4
#: The lab's NFs that are enrolled once for all; the others are for tests to use and give back.
ENROLLED = 3


@pytest.fixture(scope="session")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """CA/RA, CM proxy, verifier and NF agents as processes, each with its own SoftHSM token."""
    directory = tmp_path_factory.mktemp("running")
    lab = Lab.make(directory / "lab", NFS)
    try:
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            made = RunningLab(lab, stack, directory)
            made.reconfigure()
            yield made
    finally:
        control.down(lab)


@pytest.fixture(scope="session")
def enrolled(running_lab: RunningLab) -> dict[str, pb.Enrolment]:
    """The enrolments of the first NFs, all started at once, by instance id."""
    names = [running_lab.create_nf(running_lab.network_function(nf)).name for nf in nfs(running_lab)]
    started = [running_lab.start(name) for name in names]
    ended = [running_lab.wait_for(each.name, pb.Enrolment.SUCCEEDED) for each in started]
    return {nf.nf_instance_id: enrolment for nf, enrolment in zip(nfs(running_lab), ended, strict=True)}


def nfs(running_lab: RunningLab) -> tuple[control.NfSettings, ...]:
    """Those that ``enrolled`` enrols."""
    return running_lab.lab.settings.nfs[:ENROLLED]


@pytest.fixture(scope="session")
def spare_agent(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> SpareAgent:
    """An initialised agent that a test may start with whatever day-0 certificate."""
    return SpareAgent.make(running_lab, tmp_path_factory.mktemp("spare"))
