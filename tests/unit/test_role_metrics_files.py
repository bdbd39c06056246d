"""The directory in which fronts keep their metrics: there for the supervisor's life, and not left behind for ever."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from nftrust.role.metrics_files import DIRECTORY_VARIABLE, metrics_files


def test_what_a_killed_supervisor_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(DIRECTORY_VARIABLE, "")
    locked = f"nftrust-ca-ra-{2**22 + 2}-other-container"
    names = (
        f"nftrust-ca-ra-{2**22 + 1}-dead",
        f"nftrust-ca-ra-{os.getpid()}-alive",
        "nftrust-cmproxy-1-other",
        "foreign",
        locked,
    )
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "counter_1.db").touch()
    lock = os.open(tmp_path / locked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with metrics_files("ca-ra", 1) as own:
        os.close(lock)
        assert str(own) == os.environ[DIRECTORY_VARIABLE]
        assert own.parent == tmp_path
        assert own.stat().st_mode & 0o077 == 0
        assert sorted(path.name for path in tmp_path.iterdir() if path != own) == sorted(names[1:])
    assert not own.exists()
    with metrics_files("ca-ra", 1):
        assert not (tmp_path / locked).exists()
