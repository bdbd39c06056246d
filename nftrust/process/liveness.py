"""Whether a front that says nothing hangs, or is only busy.

A heartbeat comes from a front's event loop. Without one the front is either
at work, or starved by a loaded machine, or it hangs: stopped, or asleep in a
call that does not return. The kernel tells which (proc(5)): a thread at work
uses the processor or wants to, one that hangs sleeps and uses none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: How long a front may be both silent and inert.
INERT_SECONDS = 1.0
#: How long it may be silent, whatever else it does.
SILENCE_SECONDS = 10.0
#: The same until the first heartbeat: the interpreter starts and the role is imported.
START_SECONDS = 60.0
#: Before so much silence nobody asks the kernel.
_UNSUSPECTED_SECONDS = 0.6
_RUNNABLE, _STOPPED = frozenset("RD"), frozenset("Tt")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the kernel says of a process's first thread, where the event loop runs."""

    state: str
    #: Clock ticks of processor time, user and system.
    ticks: int


def activity(pid: int) -> Activity | None:
    """Of a process of that id; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
        return Activity(fields[0], int(fields[11]) + int(fields[12]))
    except (OSError, IndexError, ValueError):
        return None


class Vigil:
    """Follows one front from its start. Times are monotonic seconds."""

    def __init__(
        self,
        pid: int,
        now: float,
        *,
        silence: float = SILENCE_SECONDS,
        look: Callable[[int], Activity | None] = activity,
    ) -> None:
        self._pid = pid
        self._look = look
        self._silence = silence
        self._heard: float | None = None
        self._silent_at = now + max(START_SECONDS, silence)
        self._active = now
        self._ticks: int | None = None

    def heard(self, now: float) -> None:
        """A heartbeat came."""
        self._heard = self._active = now
        self._ticks = None
        self._silent_at = now + self._silence

    def forgive(self, now: float) -> None:
        """The observer itself did not run: what it has not heard says nothing about the front."""
        self._active = now
        self._silent_at = max(self._silent_at, now + self._silence)

    def hangs(self, now: float) -> bool:
        """To be asked at every tick: inertness is seen only by looking more than once."""
        if now > self._silent_at:
            return True
        if self._heard is None or now - self._heard < min(_UNSUSPECTED_SECONDS, self._silence):
            return False
        seen = self._look(self._pid)
        if seen is None:
            return False  # it has ended, which others notice
        if seen.state in _STOPPED:
            return True
        if seen.state in _RUNNABLE or self._ticks not in (None, seen.ticks):
            self._active = now
        self._ticks = seen.ticks
        return now - max(self._active, self._heard) > INERT_SECONDS
