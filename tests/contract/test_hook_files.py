"""The NF's credential as files: whole sets only, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nf_agent.hooks import CredentialFiles
from nf_agent.hooks.files import contents
from nftrust.errors import Reason
from tests.hooks_kit import PATIENCE_SECONDS, credential
from tests.unit.support import refused

NAMES = {"certificate.pem", "trust-bundle.pem", "key.uri", "status.json"}


def read_set(directory: Path) -> dict[str, bytes]:
    """As a reader has to that wants files which belong together: ``current`` is opened once."""
    opened = os.open(directory / "current", os.O_RDONLY | os.O_DIRECTORY)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, dir_fd=opened)

    try:
        found = {}
        for name in NAMES:
            with open(name, "rb", opener=opener) as handle:
                found[name] = handle.read()
        return found
    finally:
        os.close(opened)


def test_what_is_there(tmp_path: Path) -> None:
    directory = tmp_path / "nf" / "tls"
    one = credential("one")
    before = os.umask(0o077)
    try:
        CredentialFiles(directory).publish(one)
    finally:
        os.umask(before)
    assert read_set(directory) == contents(one)
    for name in NAMES:
        assert (directory / name).read_bytes() == contents(one)[name]
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o644  # another user serves with it
    assert stat.S_IMODE((directory / "current").stat().st_mode) == 0o755
    status = json.loads((directory / "status.json").read_bytes())
    assert status["serial_number"] == f"{one.certificate.serial_number:x}"
    assert status["not_after"] == one.certificate.not_valid_after_utc.isoformat().replace("+00:00", "Z")
    assert status["key_uri"] + "\n" == (directory / "key.uri").read_text() == one.pkcs11_uri + "\n"


def test_the_same_again_touches_nothing(tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path)
    files.publish(credential("one"))
    before = (tmp_path / "current").readlink()
    files.publish(credential("one"))
    assert (tmp_path / "current").readlink() == before


def test_a_reader_never_sees_a_mixed_set(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    whole = [contents(credential(name)) for name in names]
    files = CredentialFiles(tmp_path)
    files.publish(credential("one"))
    ended = threading.Event()
    seen: set[bytes] = set()

    def change() -> None:
        deadline, turn = time.monotonic() + PATIENCE_SECONDS, 0
        try:
            while turn < 30 or (len(seen) < 2 and time.monotonic() < deadline):
                files.publish(credential(names[turn % 3]))
                turn += 1
        finally:
            ended.set()

    changing = threading.Thread(target=change)
    changing.start()
    while not ended.is_set():
        with contextlib.suppress(FileNotFoundError):  # two changes while it was read
            found = read_set(tmp_path)
            assert found in whole
            seen.add(found["key.uri"])
    changing.join()
    assert len(seen) > 1, "it was changed while it was read"


def test_the_set_before_is_kept_and_older_ones_are_not(tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path)
    files.publish(credential("one"))
    first = files.find(credential("one"))
    files.publish(credential("two"))
    assert first is not None
    assert (first / "certificate.pem").read_bytes() == contents(credential("one"))["certificate.pem"]
    assert files.find(credential("one")) is None
    files.publish(credential("three"))
    assert not first.exists()
    assert len(list((tmp_path / "sets").iterdir())) == 2


def test_damage_and_leftovers_are_mended(tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path)
    files.publish(credential("one"))
    (tmp_path / "current" / "certificate.pem").write_bytes(b"")  # a power cut, or a person
    (tmp_path / "sets" / "half").mkdir()
    (tmp_path / ".current.new").symlink_to("nowhere")
    (tmp_path / "key.uri").unlink()
    (tmp_path / "trust-bundle.pem").unlink()
    (tmp_path / "trust-bundle.pem").write_bytes(b"as an earlier version left it")
    files.publish(credential("one"))
    assert read_set(tmp_path) == contents(credential("one"))
    assert (tmp_path / "key.uri").read_text().startswith("pkcs11:")
    assert (tmp_path / "trust-bundle.pem").is_symlink()
    assert not (tmp_path / "sets" / "half").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_set(small_disk: Path) -> None:
    files = CredentialFiles(small_disk)
    files.publish(credential("one"))
    with pytest.raises(OSError, match="space"):
        (small_disk / "filler").write_bytes(b"f" * (256 << 10))
    with refused(Reason.STORAGE_FULL):
        files.publish(credential("two"))
    assert read_set(small_disk) == contents(credential("one"))
    assert len(list((small_disk / "sets").iterdir())) == 1
    (small_disk / "filler").unlink()
    files.publish(credential("two"))
    assert read_set(small_disk) == contents(credential("two"))


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(Reason.STORAGE_UNAVAILABLE):
        CredentialFiles(tmp_path / "file" / "tls").publish(credential("one"))


async def test_what_was_just_published_is_not_looked_at_twice_but_later_it_is(tmp_path: Path) -> None:
    files, one = CredentialFiles(tmp_path), credential("one")
    files.publish(one)
    (tmp_path / "current").unlink()
    await files.tell(one)
    assert not (tmp_path / "current").exists()
    await files.tell(one)
    assert read_set(tmp_path) == contents(one)
    files.publish(one)
    await files.tell(credential("two"))
    assert read_set(tmp_path) == contents(credential("two"))
