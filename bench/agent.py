"""What the NF agent costs the NF that it lives in: the time to import it, and memory while it waits."""

from __future__ import annotations

import subprocess
import sys

from bench import machine
from nftrust.lab import control
from nftrust.lab.layout import Lab

IMPORTS = 5
_PROGRAM = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"


def measure(lab: Lab) -> dict[str, float]:
    """Import in seconds, the best of five; proportional memory of the lab's idle agents in MB, the largest."""
    importing, bare = _best("nf_agent"), _best("grpc, cryptography.x509")
    agents = [(machine.proportional_memory([pid]), machine.resident_memory([pid])) for pid in _agents(lab)]
    proportional, resident = max(agents)
    print(f"NF agent  import {importing:5.2f} s (target 0.5 s; grpc and cryptography alone {bare:.2f} s)")
    print(f"NF agent  idle {proportional:6.0f} MB proportional, {resident:.0f} MB resident (target 80 MB)")
    return {"agent_import_s": importing, "agent_pss_mb": proportional, "agent_rss_mb": resident}


def _best(names: str) -> float:
    def once() -> float:
        command = [sys.executable, "-c", _PROGRAM.format(names)]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    return min(once() for _ in range(IMPORTS))


def _agents(lab: Lab) -> list[int]:
    return control.processes(lab)["nfs"]
