"""Files that are whole or not there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from nftrust.errors import Reason
from nftrust.files import read_file, write_atomically
from tests.unit.support import refused


@pytest.mark.parametrize("data", [b"", b"x", b"\0\xff" * 100_000])
def test_round_trip(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, data)
    assert read_file(path) == data


def test_mode_is_private_unless_told(tmp_path: Path) -> None:
    for mode, arguments in ((0o600, ()), (0o644, (0o644,)), (0o400, (0o400,))):
        write_atomically(tmp_path / "file", b"x", *arguments)
        assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


def test_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for number in range(5):
        write_atomically(path, str(number).encode())
    assert read_file(path) == b"4"
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_the_name_and_not_what_it_links_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"old", b"new", False)


def test_missing_directory(tmp_path: Path) -> None:
    with refused(Reason.STORAGE_UNAVAILABLE) as caught:
        write_atomically(tmp_path / "no" / "file", b"secret")
    assert "file" in caught.value.message
    assert "secret" not in caught.value.message


def test_failure_leaves_the_old_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    (path / "inside").write_bytes(b"x")
    with refused(Reason.STORAGE_UNAVAILABLE):
        write_atomically(path, b"y")
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "inside").read_bytes() == b"x"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([letter]) * 50_000 for letter in b"ab"}
    write_atomically(path, min(contents))
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(read_file(path))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for data in contents:
            write_atomically(path, data)
    stop.set()
    reader.join()
    assert seen
    assert seen <= contents


def test_read_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    assert read_file(path, 11) == b"x" * 11
    with refused(Reason.CONFIG_INVALID) as caught:
        read_file(path, 10)
    assert str(path) in caught.value.message


def test_read_of_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with refused(Reason.CONFIG_INVALID) as caught:
            read_file(path)
        assert str(path) in caught.value.message
