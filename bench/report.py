"""A run as tables: on the terminal, and as Markdown (docs/figures.md)."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figures import Figure, Plan, Run

_VERDICTS = {True: Text("✓", style="green"), False: Text("✗", style="bold red"), None: Text("")}


def show_room(console: Console, room: str, figures: list[Figure]) -> None:
    """The figures of one room, as soon as they are known."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=64, overflow="fold")
    table.add_column(justify="right", width=9)
    table.add_column(width=7)
    table.add_column(width=10)
    table.add_column(width=1)
    for figure in figures:
        table.add_row(figure.meaning, number(figure.value), figure.unit, bound(figure), _VERDICTS[figure.holds])
    console.print(Text(room, style="bold"))
    console.print(table)
    console.print()


def show_shares(console: Console, run: Run) -> None:
    """Where the time goes, each layer with a bar."""
    total = sum(share.milliseconds for share in run.shares)
    table = Table.grid(padding=(0, 2))
    table.add_column(width=26)
    table.add_column(justify="right", width=8)
    table.add_column(justify="right", width=5)
    table.add_column()
    for share in run.shares:
        part = share.milliseconds / total
        table.add_row(share.layer, f"{share.milliseconds:.2f} ms", f"{part:.0%}", Text("█" * round(60 * part)))
    console.print(Text("where the CA/RA's time goes, per certificate", style="bold"))
    console.print(table)
    console.print()


def show_plans(console: Console, run: Run) -> None:
    """How many plans there are; those that differ or scan, in full."""
    odd = [plan for plan in run.plans if plan.scans or not plan.same]
    same = sum(plan.same for plan in run.plans)
    console.print(
        f"{same} of {len(run.plans)} statements of an enrolment have the same query plan with few and many rows"
    )
    for plan in odd:
        console.print(Text(f"{plan.role}: {_short(plan.statement)}", style="red"))
        console.print(f"  few:  {'; '.join(plan.few)}\n  many: {'; '.join(plan.many)}")
    console.print()


def show_verdict(console: Console, run: Run) -> None:
    """Whether every bound holds: told, not asserted."""
    bounded = [figure for figure in run.figures if figure.holds is not None]
    missed = run.missed()
    console.print(f"{len(bounded) - len(missed)} of {len(bounded)} bounds hold; {run.seconds:.0f} s")
    for figure in missed:
        console.print(
            Text(f"  ✗ {figure.name}: {number(figure.value)} {figure.unit}, wanted {bound(figure)}", style="red")
        )


def markdown(run: Run) -> Iterator[str]:
    """The lines of docs/figures.md."""
    yield from (
        "# Figures",
        "",
        "Written by `python -m bench report`; what they mean is in [performance.md](performance.md).",
    )
    sizes = ", ".join(f"{name} {value:,}" for name, value in run.settings.items())
    yield from ("", f"{run.machine}; {run.started[:10]}, {run.revision}; one run of {run.seconds:.0f} s ({sizes}).")
    for room, figures in run.rooms():
        yield from ("", f"## {room}", "", "| what | value | wanted | |", "|---|---:|---|---|")
        for figure in figures:
            verdict = {True: "✓", False: "✗", None: ""}[figure.holds]
            yield f"| {figure.meaning} | {number(figure.value)} {figure.unit} | {bound(figure)} | {verdict} |"
    if run.shares:
        total = sum(share.milliseconds for share in run.shares)
        yield from ("", "## where the CA/RA's time goes", "")
        yield from ("| layer | per certificate | share | what it would cost to remove |", "|---|---:|---:|---|")
        for share in run.shares:
            part = f"{share.milliseconds / total:.0%}"
            yield f"| {share.layer} | {share.milliseconds:.2f} ms | {part} | {share.removal} |"
    if run.plans:
        yield from ("", "## query plans of one enrolment", "")
        yield from ("| role | statement | plan | same |", "|---|---|---|---|")
        for plan in run.plans:
            yield f"| {plan.role} | `{_short(plan.statement)}` | {_steps(plan)} | {'✓' if plan.same else '✗'} |"


def number(value: float) -> str:
    """Three digits that count."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def bound(figure: Figure) -> str:
    """What is wanted."""
    if figure.at_most is not None:
        return f"≤ {figure.at_most:g}"
    return "" if figure.at_least is None else f"≥ {figure.at_least:g}"


def _steps(plan: Plan) -> str:
    return "; ".join(plan.many) or "–"


def _short(statement: str, length: int = 90) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= length else line[: length - 1] + "…"
