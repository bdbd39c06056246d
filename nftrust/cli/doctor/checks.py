"""What a check is, and the order in which checks are made.

A check is made only if what it rests on is well: a hop that is broken is one
line, not ten.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nftrust.errors import Reason


class Verdict(enum.Enum):
    OK = "OK"
    #: Works, but not for long, or not as it should.
    ATTENTION = "ATTENTION"
    BROKEN = "BROKEN"
    CANNOT_TELL = "CANNOT_TELL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in words; the remedy is for a person to act on."""

    verdict: Verdict
    text: str
    remedy: str = ""
    #: A stable reason (docs/errors.md), where a role gave one.
    reason: str = ""
    #: Checks that could only be made now.
    then: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One question. ``id`` is stable; ``subject`` tells apart those that are asked of several things."""

    id: str
    #: Where it belongs, for people: `CA/RA management listener`.
    hop: str
    look: Callable[[], Finding]
    #: Keys of the checks that have to be well before.
    needs: tuple[str, ...] = ()
    subject: str = ""

    @property
    def key(self) -> str:
        return f"{self.id} {self.subject}".rstrip()


@dataclass(frozen=True, slots=True)
class Result:
    """A check and what it found; None where it was not made."""

    check: Check
    finding: Finding | None


def run(checks: Iterable[Check]) -> Iterator[Result]:
    """Every check in order; those that a finding adds come right after it."""
    waiting = deque(checks)
    well: set[str] = set()
    while waiting:
        check = waiting.popleft()
        if not well.issuperset(check.needs):
            yield Result(check, None)
            continue
        finding = check.look()
        if finding.verdict in (Verdict.OK, Verdict.ATTENTION):
            well.add(check.key)
        waiting.extendleft(reversed(finding.then))
        yield Result(check, finding)


def ok(text: str, then: tuple[Check, ...] = ()) -> Finding:
    return Finding(Verdict.OK, text, then=then)


def attention(text: str, remedy: str, reason: str = "") -> Finding:
    return Finding(Verdict.ATTENTION, text, remedy, reason)


def broken(text: str, remedy: str, reason: str = "") -> Finding:
    return Finding(Verdict.BROKEN, text, remedy, reason)


def cannot_tell(text: str, remedy: str) -> Finding:
    return Finding(Verdict.CANNOT_TELL, text, remedy)


def refused(reason: str, message: str, where: str = "") -> Finding:
    """BROKEN, in the words of a stable reason; of a role newer than this command only the name may be known."""
    known = Reason.__members__.get(reason)
    text = message or (known.meaning if known else "refused")
    remedy = known.remedy if known else "This command is older than the role: use one of its version."
    return broken(f"{where}{text}", remedy, reason)
