"""What doctor prints: a line for each hop that is well, and each trouble with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from nftrust.cli.doctor.checks import Result, Verdict

MARKS = {
    Verdict.OK: ("✔", "green"),
    Verdict.ATTENTION: ("!", "yellow"),
    Verdict.BROKEN: ("✘", "bold red"),
    Verdict.CANNOT_TELL: ("?", "magenta"),
}
EXIT_BROKEN, EXIT_ATTENTION = 6, 7


def exit_code(results: Iterable[Result]) -> int:
    """0: all is well; 6: something is broken; 7: nothing is, but something wants attention or could not be seen."""
    verdicts = {result.finding.verdict for result in results if result.finding}
    if Verdict.BROKEN in verdicts:
        return EXIT_BROKEN
    return EXIT_ATTENTION if verdicts - {Verdict.OK} else 0


def as_json(results: Sequence[Result]) -> dict[str, object]:
    """For programs; `verdict` is null where a check was not made."""
    return {
        "broken": sum(1 for result in results if result.finding and result.finding.verdict is Verdict.BROKEN),
        "checks": [
            {
                "id": result.check.id,
                "subject": result.check.subject,
                "hop": result.check.hop,
                "verdict": result.finding.verdict.value if result.finding else None,
                "text": result.finding.text if result.finding else "",
                "remedy": result.finding.remedy if result.finding else "",
                "reason": result.finding.reason if result.finding else "",
            }
            for result in results
        ],
    }


def show(results: Sequence[Result], console: Console, *, every: bool) -> None:
    """Colours on a terminal, plain lines when piped; ``every`` shows the checks that are well, too."""
    for hop, group in groupby(results, lambda result: result.check.hop):
        _show_hop(hop, list(group), console, every)
    console.print()
    console.print(_summary(results))


def _show_hop(hop: str, results: Sequence[Result], console: Console, every: bool) -> None:
    made = [result.finding for result in results if result.finding]
    if every or any(finding.verdict is not Verdict.OK for finding in made):
        console.print(Text(hop, style="bold"))
        for result in results:
            _show_result(result, console, every)
    elif made:
        skipped = "" if len(made) == len(results) else f", {len(results) - len(made)} not made"
        _print(console, f"{_mark(Verdict.OK)[0]} ", "green", f"{hop}  ({_checks(len(made))}{skipped})")


def _show_result(result: Result, console: Console, every: bool) -> None:
    finding = result.finding
    if finding is None:
        if every:
            _print(console, "  · ", "dim", f"{result.check.id}  not looked at: it rests on what is broken")
        return
    if finding.verdict is Verdict.OK and not every:
        return
    mark, style = _mark(finding.verdict)
    reason = f" [{finding.reason}]" if finding.reason else ""
    _print(console, f"  {mark} ", style, f"{result.check.id}  {finding.text}{reason}")
    if finding.remedy:
        _print(console, "      → ", style, finding.remedy)


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count} checks"


def _mark(verdict: Verdict) -> tuple[str, str]:
    return MARKS[verdict]


def _print(console: Console, lead: str, style: str, text: str) -> None:
    console.print(Text.assemble((lead, style), text), soft_wrap=not console.is_terminal)


def _summary(results: Sequence[Result]) -> Text:
    count = dict.fromkeys(Verdict, 0)
    for result in results:
        if result.finding:
            count[result.finding.verdict] += 1
    made = sum(count.values())
    left = len(results) - made
    waiting = (
        f"; {_checks(left)} {'rests' if left == 1 else 'rest'} on it and {'was' if left == 1 else 'were'} not made"
    )
    if count[Verdict.BROKEN]:
        things = "1 thing is broken" if count[Verdict.BROKEN] == 1 else f"{count[Verdict.BROKEN]} things are broken"
        return Text(f"{things}{waiting if left else ''}.", style="bold red")
    others = [
        f"{count[verdict]} {words}"
        for verdict, words in (
            (Verdict.ATTENTION, "to attend to"),
            (Verdict.CANNOT_TELL, "that cannot be seen from here"),
        )
        if count[verdict]
    ]
    tail = f"; {', '.join(others)}" if others else ""
    return Text(f"Nothing is broken ({_checks(made)}{tail}).", style="green" if not others else "yellow")
