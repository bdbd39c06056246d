"""Two fronts on PostgreSQL: NFs enrol while one front is killed and the other one stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.lab import control
from nftrust.lab.layout import Lab
from tests.contract.storage_kit import Cluster, cluster
from tests.e2e.test_kill import enrol
from tests.e2e.test_pools import SERVING, eventually, fronts, health

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(240)]

NFS = 3


@pytest.fixture
def postgresql(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster() as running:
        for role in control.SERVERS:
            running.new_database(f"nftrust_{role}")
        # Found by libpq in every role's process.
        monkeypatch.setenv("PGHOST", str(running.directory))
        yield running


@pytest.fixture
def lab(postgresql: Cluster, tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path / "lab", NFS, replicas=2, store="postgresql+psycopg://nftrust@")
    control.up(made, print)
    try:
        yield made
    finally:
        control.down(made)


def certificates(postgresql: Cluster) -> list[int]:
    """How many there are of each registration that has one."""
    with psycopg.connect(host=str(postgresql.directory), user="nftrust", dbname="nftrust_ca_ra") as connection:
        rows = connection.execute("SELECT count(*) FROM certificate GROUP BY registration_id").fetchall()
    return [int(count) for (count,) in rows]


def test_enrolments_go_on_while_fronts_are_killed_and_stopped(lab: Lab, postgresql: Cluster) -> None:
    before = fronts(lab, "ca_ra")
    assert len(before) == 2
    with ThreadPoolExecutor(NFS) as pool:
        enrolling = [pool.submit(enrol, lab, nf) for nf in lab.settings.nfs]
        eventually(lambda: bool(certificates(postgresql)) or all(e.done() for e in enrolling), "under way")
        for front, blow in zip(before, (signal.SIGKILL, signal.SIGSTOP), strict=True):
            os.kill(front, blow)
        ended = [enrolment.result() for enrolment in enrolling]
    assert {enrolment.state for enrolment in ended} == {pb.Enrolment.SUCCEEDED}
    assert certificates(postgresql) == [1] * NFS
    eventually(lambda: len(set(fronts(lab, "ca_ra")) - set(before)) == 2, "both are replaced")
    eventually(lambda: health(lab) == {SERVING}, "healthy")
