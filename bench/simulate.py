"""`make simulate`: a year of 10,000 NFs under random outages, told in numbers and drawn as a PNG (docs/renewal.md)."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.year import DAY, Fleet, Year, random_outages, simulate

USUAL = Fleet()
MOST_PEAK = 2.0
COLOURS = {"CA": "#d98880", "token": "#f0b27a", "database": "#bb8fce"}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.simulate", description=__doc__)
    parser.add_argument("--nfs", type=int, default=10_000)
    parser.add_argument("--validity-days", type=float, default=90.0)
    parser.add_argument("--pace", type=float, default=USUAL.pace, help="renewals_per_hour over the mean rate; 0: none")
    parser.add_argument("--seed", type=int, default=3, help="of the outages, and of all draws")
    parser.add_argument("--png", type=Path, default=Path(".bench/year.png"))
    arguments = parser.parse_args(argv)
    validity = arguments.validity_days * DAY
    outages = list(random_outages(random.Random(arguments.seed), USUAL.seconds, validity))
    year = simulate(
        Fleet(nfs=arguments.nfs, validity=validity, outages=outages, pace=arguments.pace, seed=arguments.seed)
    )
    print("\n".join(told(year)))
    plot(year, arguments.png)
    print(f"drawn in {arguments.png}")
    return 0 if year.expired == 0 and year.peak <= MOST_PEAK * year.mean else 1


def told(year: Year) -> list[str]:
    """What happened, a line each."""
    fleet, outages = year.fleet, year.fleet.outages
    longest = max((outage.end - outage.start for outage in outages), default=0.0)
    down = sum(outage.end - outage.start for outage in outages)
    return [
        f"{fleet.nfs:,} NFs, certificates of {fleet.validity / DAY:g} days, {year.days} days, seed {fleet.seed}",
        f"{len(outages)} outages, {down / DAY:.0f} days in all, the longest {longest / DAY:.1f} days",
        f"{year.issued.total():,} renewals, {year.mean:.0f} a day; {year.refused.total():,} tries during outages, "
        f"{year.paced.total():,} told to wait",
        f"certificates that ended: {year.expired} (wanted 0); least left: {year.least_left / DAY:.1f} days",
        f"busiest day: {year.peak}, {year.peak / year.mean:.2f} times the mean (wanted at most {MOST_PEAK:g})",
    ]


def plot(year: Year, path: Path) -> None:
    """Renewals by day, the outages behind them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    days = range(year.days)
    for outage in year.fleet.outages:
        axes.axvspan(outage.start / DAY, outage.end / DAY, color=COLOURS[outage.kind], alpha=0.35, linewidth=0)
    axes.bar(days, [year.issued[day] for day in days], width=1.0, align="edge", color="#35608f", label="renewals")
    axes.axhline(year.mean, color="#222222", linewidth=1, label="mean")
    axes.axhline(MOST_PEAK * year.mean, color="#c0392b", linewidth=1, linestyle="--", label="twice the mean")
    shades = [Patch(color=colour, alpha=0.35, label=f"{kind} away") for kind, colour in COLOURS.items()]
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*handles, *shades], loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=6, frameon=False)
    axes.set(xlim=(0, year.days), ylim=(0, None), xlabel="day", ylabel="renewals a day")
    axes.set_title(
        f"{year.fleet.nfs:,} NFs, certificates of {year.fleet.validity / DAY:g} days: "
        f"{year.expired} expired, peak {year.peak / year.mean:.2f} × the mean"
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
