"""`make bench`: what a certificate, a connection, an enrolment and 100,000 NFs cost, in one run.

  python -m bench [ROOM …]        measure; all but floods and soak where none is named
  python -m bench report FILE     a run's figures as Markdown
  python -m bench picture FILE    a run's layers as docs/pictures/where-the-time-goes.svg

Each room is a module of this package. Bounds are told, not asserted. SQLite is
durable (`synchronous=FULL`) and everything is audited, as in production.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import (
    agent,
    fleet,
    floods,
    handshakes,
    irreducible,
    issuance,
    labs,
    machine,
    memory,
    report,
    scale,
    soak,
    where,
)
from bench.figures import Run, ratio
from bench.picture import PICTURE, draw
from nftrust.lab.layout import Lab

RESULTS = Path(".bench")
#: The CA/RA's own bound: CPU of a certificate over its irreducible cost.
MOST_RATIO = 8.0

#: Measured on one lab with one NF agent, in this order.
SHARED: Mapping[str, Callable[[Run, Lab], None]] = {
    "agent": agent.measure,
    "issuance": issuance.measure,
    "where": where.measure,
    "handshakes": handshakes.measure,
    "fleet": fleet.measure,
    "memory": memory.measure,
}
#: Those with no lab, or labs of their own.
ALONE: Mapping[str, Callable[[Run], None]] = {"irreducible": irreducible.measure, "scale": scale.measure}
#: Only where named: they take long.
NAMED: Mapping[str, Callable[[Run, Lab], None]] = {"floods": floods.measure, "soak": soak.measure}
USUAL = (*ALONE, *SHARED)


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["report"]:
        print("\n".join(report.markdown(Run.read(Path(argv[1])))))
        return 0
    if argv[:1] == ["picture"]:
        print(draw(Run.read(Path(argv[1])), PICTURE))
        return 0
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _measure(arguments)
    except KeyboardInterrupt:
        labs.say("interrupted")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of: {', '.join((*USUAL, *NAMED))}")
    for name, default, meaning in (
        ("certificates", 1000, "certificates to issue at the CA/RA"),
        ("concurrency", 64, "calls under way"),
        ("fleet", 48, "NF agents in one process"),
        ("rounds", 6, "enrolments of each NF"),
        ("registered", 100_000, "registered NFs"),
        ("nfs", 1, "NF agents with processes of their own"),
        ("seconds", 600, "length of the soak"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--json", type=Path, help="where the figures go, beside the table (.bench/TIME.json)")
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    rooms = arguments.rooms or list(USUAL)
    if unknown := set(rooms) - {*USUAL, *NAMED}:
        sys.exit(f"bench: no such room: {', '.join(sorted(unknown))}")
    console, started = Console(width=100), time.monotonic()
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int)}
    stamp = datetime.now(UTC).replace(microsecond=0)
    run = Run(machine=machine.describe(), revision=_revision(), started=stamp.isoformat(), settings=settings)
    console.print(f"{run.machine}, {run.revision}\n")
    with_lab = [name for name in (*SHARED, *NAMED) if name in rooms]
    for name in (name for name in ALONE if name in rooms):
        _one(console, run, name, ALONE[name])
    if with_lab:
        with labs.running(arguments.nfs) as lab:
            for name in with_lab:
                _one(console, run, name, {**SHARED, **NAMED}[name], lab)
    _derive(run)
    run.seconds = time.monotonic() - started
    report.show_room(console, "in one run", [figure for figure in run.figures if figure.name.endswith("_ratio")])
    report.show_verdict(console, run)
    path = arguments.json or RESULTS / f"{stamp:%Y%m%dT%H%M%SZ}.json"
    run.write(path)
    console.print(f"figures in {path}; `python -m bench report {path}` makes a page of them")


def _one(console: Console, run: Run, name: str, measure: Callable[..., None], *arguments: Any) -> None:
    known = len(run.figures), len(run.shares), len(run.plans)
    labs.say(name)
    measure(run, *arguments)
    if len(run.figures) > known[0]:
        report.show_room(console, name, run.figures[known[0] :])
    if len(run.shares) > known[1]:
        report.show_shares(console, run)
    if len(run.plans) > known[2]:
        report.show_plans(console, run)


def _derive(run: Run) -> None:
    """Ratios of figures of this run: they hold where milliseconds do not."""
    run.figures += ratio(
        run,
        "issuance.ca_ra_cpu",
        ["irreducible.cpu"],
        meaning="CPU of a certificate at the CA/RA over its irreducible cost",
        at_most=MOST_RATIO,
    )
    run.figures += ratio(
        run,
        "handshakes.cpu",
        ["irreducible.cpu"],
        meaning="TLS connection at the CA/RA over the irreducible cost of a certificate",
    )


def _revision() -> str:
    """The commit that is measured."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "no commit"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
