"""Disks that are full, read-only or gone under running roles: nothing is lost, and service goes on by itself."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Code, NftrustError, Reason
from nftrust.lab import control
from nftrust.lab.layout import Lab
from tests.lab_kit import CALL_SECONDS, RunningLab, refused

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 60.0
DISK_MIB = 6
SERVERS = ("ca_ra", "cmproxy")


class SmallDisks:
    """A lab of one NF in which CA/RA, CM proxy and NF agent each have a file system of their own."""

    def __init__(self, running: RunningLab, disks: dict[str, Path]) -> None:
        self.running = running
        self.lab = running.lab
        self.disks = disks
        [self.nf] = running.lab.settings.nfs
        self.name = running.create_nf(running.network_function(self.nf)).name

    @contextlib.contextmanager
    def full(self, role: str) -> Iterator[None]:
        filler = self.disks[role] / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"f" * 4096)
        try:
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def gone(self, role: str) -> Iterator[None]:
        """The database is moved away, and back."""
        files = [self.disks[role] / f"store.sqlite{end}" for end in ("", "-wal", "-shm")]
        for file in files:
            if file.exists():
                file.rename(file.with_name(f"away-{file.name}"))
        try:
            yield
        finally:
            for file in files:
                away = file.with_name(f"away-{file.name}")
                if away.exists():
                    away.rename(file)

    def enrol(self) -> str:
        return str(self.running.start(self.name, allow_re_enrolment=True).name)

    def succeeds(self, enrolment: str) -> None:
        self.running.wait_for(enrolment, pb.Enrolment.SUCCEEDED)

    def serving(self, role: str) -> bool:
        channel = self.running.oam.health(role)
        return bool(channel.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS).status == 1)

    def audited(self, role: str) -> int:
        return int(self.query(role, "SELECT count(*) FROM audit_event WHERE action = 'storage.back'")[0][0])

    def query(self, role: str, statement: str) -> list[tuple[object, ...]]:
        database = self.lab.role(role) / "store.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisks]:
    directory = tmp_path_factory.mktemp("disks")
    lab = Lab.make(directory / "lab", 1)
    [nf] = lab.settings.nfs
    folders = {**{role: lab.role(role) for role in SERVERS}, "amf": lab.nf(nf)}
    try:
        for folder in folders.values():
            folder.mkdir(mode=0o700, parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", folder], check=True)
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            yield SmallDisks(RunningLab(lab, stack, directory), folders)
    finally:
        control.down(lab)
        for folder in folders.values():
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_an_enrolment_survives_the_ca_ras_disk(disks: SmallDisks, fault: str) -> None:
    before = disks.audited("ca_ra")
    with getattr(disks, fault)("ca_ra"):
        enrolment = disks.enrol()
        # A full disk is noticed by who writes, a missing file by itself.
        eventually(lambda: not disks.serving("ca_ra"), "health tells")
    disks.succeeds(enrolment)
    eventually(lambda: disks.serving("ca_ra"), "health tells")
    eventually(lambda: disks.audited("ca_ra") == before + 1, "one line of audit")
    per_registration = disks.query("ca_ra", "SELECT count(*) FROM certificate GROUP BY registration_id")
    assert set(per_registration) == {(1,)}


@pytest.mark.parametrize(("fault", "reason"), [("full", Reason.STORAGE_FULL), ("gone", Reason.STORAGE_UNAVAILABLE)])
def test_oam_hears_what_is_wrong_with_the_proxys_disk(disks: SmallDisks, fault: str, reason: Reason) -> None:
    with getattr(disks, fault)("cmproxy"):

        def told() -> bool:
            """SQLite may still find room for a few rows in pages that it has."""
            with contextlib.suppress(AssertionError), refused(reason):
                disks.running.create_nf(disks.running.unborn())
                return False
            return True

        eventually(told, "OAM hears of it")
        eventually(lambda: not disks.serving("cmproxy"), "health tells")
    eventually(lambda: disks.serving("cmproxy"), "back by itself")
    disks.succeeds(disks.enrol())


def test_an_enrolment_survives_the_nfs_full_disk(disks: SmallDisks) -> None:
    [agent] = control.processes(disks.lab)["nfs"]
    with disks.full("amf"):
        enrolment = disks.enrol()
        disks.running.wait_for(enrolment, pb.Enrolment.WAITING, reason=Reason.STORAGE_FULL)
    disks.succeeds(enrolment)
    assert control.alive(agent)


def test_a_lab_is_made_to_its_end_once_there_is_room(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    directory.mkdir()
    # Enough for the tokens, not for the first database.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k,mode=700", "tmpfs", directory], check=True)
    lab = Lab.make(directory, 1)
    try:
        with pytest.raises(NftrustError) as caught:
            control.up(lab, print)
        assert caught.value.reason.code is Code.UNAVAILABLE
        subprocess.run(["mount", "-o", f"remount,size={10 * DISK_MIB}m", directory], check=True)
        control.up(lab, print)
        assert all(control.status(lab).values())
    finally:
        control.down(lab)
        subprocess.run(["umount", "-l", directory], check=True)
