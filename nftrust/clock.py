"""Time as a port. Security expiry uses :class:`GuardedClock` (security rule 22)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from nftrust.errors import NftrustError, Reason


class Clock(Protocol):
    """Wall and monotonic time."""

    def now(self) -> datetime:
        """The present time, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        # Counts on while the machine is suspended, as the wall clock does.
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class GuardedClock:
    """max(now, high-water mark); a large jump fails closed until acknowledged.

    The high-water mark is the caller's to persist: read it at start, write
    :meth:`now` with each commit. A jump is a backward step of more than
    ``tolerance`` behind the mark, or wall time running away from monotonic
    time by more than ``tolerance`` within this process.
    """

    def __init__(
        self, clock: Clock, high_water: datetime | None = None, tolerance: timedelta = timedelta(minutes=5)
    ) -> None:
        self._clock = clock
        self._tolerance = tolerance
        self._high_water = high_water or clock.now()
        self._wall_start = clock.now()
        self._mono_start = clock.monotonic()

    def now(self) -> datetime:
        """The time for security decisions. Raises NftrustError(CLOCK_UNTRUSTED)."""
        wall = self._clock.now()
        expected = self._wall_start + timedelta(seconds=self._clock.monotonic() - self._mono_start)
        if abs(wall - expected) > self._tolerance or self._high_water - wall > self._tolerance:
            raise NftrustError(Reason.CLOCK_UNTRUSTED, retry_after=30.0)
        self._high_water = max(self._high_water, wall)
        return self._high_water

    def raise_to(self, mark: datetime) -> None:
        """Take over a higher mark that another process has persisted."""
        self._high_water = max(self._high_water, mark)

    def monotonic(self) -> float:
        return self._clock.monotonic()
