"""What the NF agent costs the NF that it lives in: the time to import it, and memory while it waits."""

from __future__ import annotations

import subprocess
import sys

from bench import machine
from bench.figures import Figure, Run
from nftrust.lab import control
from nftrust.lab.layout import Lab

IMPORTS = 5
_PROGRAM = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"


def measure(run: Run, lab: Lab) -> None:
    """Import, the best of five; proportional memory of the lab's idle agents, the largest."""
    proportional, resident = max(
        (machine.proportional_memory([pid]), machine.resident_memory([pid])) for pid in control.processes(lab)["nfs"]
    )
    run.figures += [
        Figure(name="agent.import", value=_best("nf_agent"), unit="s", meaning="import nf_agent", at_most=0.5),
        Figure(
            name="agent.import_libraries",
            value=_best("grpc, cryptography.x509"),
            unit="s",
            meaning="of it, gRPC and cryptography alone",
        ),
        Figure(
            name="agent.memory",
            value=proportional,
            unit="MB",
            meaning="idle agent, proportional share of memory",
            at_most=80,
        ),
        Figure(name="agent.resident", value=resident, unit="MB", meaning="the same, all that is resident", at_most=80),
    ]


def _best(names: str) -> float:
    def once() -> float:
        command = [sys.executable, "-c", _PROGRAM.format(names)]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    return min(once() for _ in range(IMPORTS))
