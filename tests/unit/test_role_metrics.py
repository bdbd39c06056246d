"""The directory in which fronts keep their metrics: there for the supervisor's life, and not left behind for ever."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from nftrust.role.metrics import DIRECTORY_VARIABLE, values_of


def test_what_a_killed_supervisor_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(DIRECTORY_VARIABLE, "")
    names = (
        f"nftrust-ca-ra-{2**22 + 1}-dead",
        f"nftrust-ca-ra-{os.getpid()}-alive",
        "nftrust-cmproxy-1-other",
        "foreign",
    )
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "counter_1.db").touch()
    with values_of("ca-ra"):
        own = Path(os.environ[DIRECTORY_VARIABLE])
        assert own.parent == tmp_path
        assert own.stat().st_mode & 0o077 == 0
        assert sorted(path.name for path in tmp_path.iterdir() if path != own) == sorted(names[1:])
    assert not own.exists()
