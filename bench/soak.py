"""Enrolments over and over: memory and handles after the first tenth of the time, and at the end."""

from __future__ import annotations

import time

from bench import enrolling, machine
from bench.figures import Figure, Run
from nftrust.cli.session import Session
from nftrust.lab import control
from nftrust.lab.layout import OPERATOR_FILE, Lab

Footprint = tuple[float, int]
ROUNDS = 5


def measure(run: Run, lab: Lab) -> None:
    """For as many seconds as the setting says."""
    seconds = run.settings["seconds"]
    first: dict[str, Footprint] = {}
    count = 0
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        enrolling.provision(lab, session)
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            if not first and elapsed > seconds / 10:
                first = _footprints(lab)
            enrolling.enrol(lab, session, ROUNDS)
            count += ROUNDS * len(lab.settings.nfs)
        last = _footprints(lab)
    run.figures.append(Figure(name="soak.enrolments", value=count, unit="", meaning=f"enrolments in {seconds} s"))
    for name, (memory, handles) in last.items():
        before, open_before = first.get(name, (memory, handles))
        run.figures += [
            Figure(name=f"soak.{name}_memory", value=memory, unit="MB", meaning=f"{name}: {before:.0f} MB at first"),
            Figure(
                name=f"soak.{name}_handles", value=handles, unit="", meaning=f"{name}: {open_before} handles at first"
            ),
        ]


def _footprints(lab: Lab) -> dict[str, Footprint]:
    found = {}
    for name, pids in control.processes(lab).items():
        trees = [pid for top in pids for pid in machine.tree(top)]
        found[name] = (machine.proportional_memory(trees), machine.handles(trees))
    return found
