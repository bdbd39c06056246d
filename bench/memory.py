"""Memory of the server roles, whole process trees, after all that was done to them before."""

from __future__ import annotations

from bench import machine
from bench.figures import Figure, Run
from nftrust.lab import control
from nftrust.lab.layout import Lab

MOST_MB = 250.0


def measure(run: Run, lab: Lab) -> None:
    """Proportional set size: what processes share is divided among them."""
    for role, name in control.SERVERS.items():
        pids = machine.tree(control.processes(lab)[role][0])
        run.figures.append(
            Figure(
                name=f"memory.{role}",
                value=machine.proportional_memory(pids),
                unit="MB",
                meaning=f"{name}: {len(pids)} processes, proportional share of memory",
                at_most=MOST_MB,
            )
        )
