"""Values of fronts that are processes: summed up, kept over a front's end, and in files that do not become more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from nftrust.process.control import FRONT_VARIABLE
from nftrust.role import metrics_files as files

_FRONT = """
from nftrust.role import metrics
metrics.call("/m", "OK", "", 0.01)
metrics.TOKEN_QUEUE.set(3)
metrics.AVAILABLE.labels("token").set({available})
metrics.ENROLMENTS.labels("parked").set(2)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.DIRECTORY_VARIABLE, "")  # put back as it was


def front(number: int, *, available: int = 1) -> None:
    """Lives shortly and ends without a word."""
    environment = {**os.environ, FRONT_VARIABLE: str(number)}
    subprocess.run([sys.executable, "-c", _FRONT.format(available=available)], env=environment, check=True)


def samples(folder: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    found = (sample for family in registry.collect() for sample in family.samples)
    return {sample.name: sample.value for sample in found if sample.labels.get("le", "+Inf") == "+Inf"}


def test_a_front_counts_on_from_where_its_forerunner_ended() -> None:
    with files.metrics_files("test", 2) as folder:
        made = {path.name: path.stat().st_blocks for path in folder.iterdir()}
        assert samples(folder) == {}
        front(0)
        front(1, available=0)
        both = samples(folder)
        assert both["nftrust_rpc_calls_total"] == both["nftrust_rpc_call_seconds_count"] == 2
        assert (both["nftrust_token_queue"], both["nftrust_available"], both["nftrust_enrolments"]) == (6, 0, 2)
        files.forget_gauges(folder, 1)
        assert (samples(folder)["nftrust_token_queue"], samples(folder)["nftrust_available"]) == (3, 1)
        assert samples(folder)["nftrust_rpc_calls_total"] == 2
        front(1)
        assert samples(folder)["nftrust_rpc_calls_total"] == samples(folder)["nftrust_rpc_call_seconds_count"] == 3
        assert samples(folder)["nftrust_token_queue"] == 6
        # No file is new, and none needed more of the disk than it had.
        assert {path.name: path.stat().st_blocks for path in folder.iterdir()} == made
        assert min(made.values()) > 0
    assert not folder.exists()
    files.forget_gauges(folder, 1)
