"""What is measured on, and how CPU time and memory of a process tree are read."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """The machine in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a process tree, children that ended not included."""

    cpu: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu - other.cpu)


def tree(pid: int) -> list[int]:
    """A process and its live descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, queue = [pid], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def usage(pids: Iterable[int]) -> Usage:
    """CPU time used so far by these processes."""
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return Usage(total)


def threads(pid: int) -> dict[int, float]:
    """CPU seconds used so far by each thread of a process that lives."""
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def proportional_memory(pids: Iterable[int]) -> float:
    """Proportional set size in MB."""
    return _memory(pids, "Pss:")


def resident_memory(pids: Iterable[int]) -> float:
    """Resident set size in MB: with what is shared counted in full."""
    return _memory(pids, "Rss:")


def _memory(pids: Iterable[int], field: str) -> float:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(field))
    return total / 1024


def handles(pids: Iterable[int]) -> int:
    """Open file descriptors."""
    total = 0
    for pid in pids:
        try:
            total += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
    return total
