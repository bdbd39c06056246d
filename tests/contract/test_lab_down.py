"""The end of a lab is the end of its processes, also of those that an interrupted start has not written down."""

from __future__ import annotations

import sys
from pathlib import Path

from nftrust.lab import control
from nftrust.lab.layout import Lab


def test_down_ends_what_the_description_does_not_name(tmp_path: Path) -> None:
    lab, other = Lab.make(tmp_path / "lab", 0), Lab.make(tmp_path / "lab2", 0)
    waiting = [sys.executable, "-c", "import time; time.sleep(60)", "--config", "none"]
    started, spared = (control._spawn(waiting, each.directory) for each in (lab, other))
    try:
        assert not (lab.directory / "lab.json").exists()
        control.down(lab)
        assert not control.alive(started)
        assert control.alive(spared)
    finally:
        control.end(started, spared)
    assert not control.alive(spared)
