"""100,000 registered NFs against 1,000: the CPU of a certificate, and every query plan of an enrolment.

Two labs serve at once and are measured in turns, so that what the machine
does meanwhile meets both.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

from bench import issuance, labs, plans, seeds
from bench.figures import Figure, Run
from bench.issuance import Cost
from nftrust.lab import control
from nftrust.lab.layout import Lab

FEW = 1000
TURNS = 4


def measure(run: Run) -> None:
    """Ratios of many to few, and the plans."""
    many = run.settings["registered"]
    with ExitStack() as stack:
        made = {count: stack.enter_context(labs.made(1)) for count in (FEW, many)}
        enrolments = {count: plans.of_a_lab(lab) for count, lab in made.items()}
        started = time.monotonic()
        _copy(made)
        seeding = time.monotonic() - started
        small, large = (plans.configurations(lab).stores for lab in made.values())
        run.plans = plans.compare(enrolments[FEW], small, large)
        for lab in made.values():
            control.start(lab, labs.say)
        registered, issued = _in_turns(run, made)
    over = f"{many:,} registered NFs over {FEW:,}"
    for name, cost, meaning in (
        ("register", registered, f"CPU of a registration at the CA/RA, {over}"),
        ("issue", issued, f"CPU of a certificate at the CA/RA, {over}"),
    ):
        run.figures += [
            Figure(name=f"scale.{name}_few", value=cost[FEW].each, unit="ms CPU", meaning=f"{name}, {FEW:,} NFs"),
            Figure(name=f"scale.{name}_many", value=cost[many].each, unit="ms CPU", meaning=f"{name}, {many:,} NFs"),
            Figure(name=f"scale.{name}_ratio", value=cost[many].each / cost[FEW].each, unit="×", meaning=meaning),
        ]
    differ, scans = sum(not plan.same for plan in run.plans), sum(plan.scans for plan in run.plans)
    run.figures += [
        Figure(name="scale.seeding", value=seeding, unit="s", meaning=f"{FEW + many:,} registered NFs made by copying"),
        Figure(name="scale.statements", value=len(run.plans), unit="", meaning="different statements of an enrolment"),
        Figure(name="scale.other_plans", value=differ, unit="", meaning="of them with another plan", at_most=0),
        Figure(name="scale.scans", value=scans, unit="", meaning="of them that read a table to its end", at_most=0),
    ]


def _copy(made: dict[int, Lab]) -> None:
    """What the one real enrolment left, in CA/RA and CM proxy, as often as there are to be NFs."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(seeds.seed, store, role, count - 1, tuple(nf.fqdn for nf in lab.settings.nfs))
            for count, lab in made.items()
            for role, store in plans.configurations(lab).stores.items()
        ]
        for job in jobs:
            job.result()


def _in_turns(run: Run, made: dict[int, Lab]) -> tuple[dict[int, Cost], dict[int, Cost]]:
    share, concurrency = max(1, run.settings["certificates"] // TURNS // 2), run.settings["concurrency"]
    registered, issued = ({count: Cost(0, 0.0, 0.0) for count in made} for _ in range(2))
    for _ in range(TURNS):
        for count, lab in made.items():
            cost, proofs = asyncio.run(issuance.register(lab, share, concurrency))
            registered[count] += cost
            issued[count] += asyncio.run(issuance.redeem(lab, proofs, concurrency))
    return registered, issued
