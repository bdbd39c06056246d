"""Whether the certificate in use is good at this moment: for health checks, metrics, status and log.

Time alone changes the answer, so it is looked at when it is due to change,
and now and then because clocks are set.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509

from nf_agent.acceptance import utc_now
from nf_agent.state import AgentState

log = logging.getLogger("nf_agent.validity")

#: With less than this part of its validity left a certificate is EXPIRING: renewal is overdue.
LAST_PART = 0.2
#: At least so often, since the clock may be set.
LOOK_SECONDS = 30.0


class Condition(enum.Enum):
    """Of the certificate in use, by the NF's clock. The values are those of a metric's label."""

    NONE = "none"
    NOT_YET_VALID = "not-yet-valid"
    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"

    @property
    def healthy(self) -> bool:
        """An agent that still waits for its first certificate is well; one whose certificate is no good is not."""
        return self not in (Condition.NOT_YET_VALID, Condition.EXPIRED)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The times of a certificate."""

    not_before: datetime
    not_after: datetime
    #: When the NF got it: a CA dates certificates back, of a short one by more than its life.
    got: datetime

    @property
    def expiring_from(self) -> datetime:
        begin = self.got if self.not_before <= self.got < self.not_after else self.not_before
        return self.not_after - (self.not_after - begin) * LAST_PART

    def condition(self, now: datetime) -> Condition:
        if now < self.not_before:
            return Condition.NOT_YET_VALID
        if now > self.not_after:  # RFC 5280, clause 4.1.2.5: through notAfter, inclusive
            return Condition.EXPIRED
        return Condition.EXPIRING if now >= self.expiring_from else Condition.VALID

    def until_change(self, now: datetime) -> timedelta | None:
        """How long the condition stays what it is; None: for ever."""
        times = (self.not_before, self.expiring_from, self.not_after + timedelta(milliseconds=1))
        return min((time - now for time in times if time > now), default=None)


def lifetime_of(state: AgentState) -> Lifetime | None:
    """Of the certificate in use; None before the first."""
    current = state.current
    return None if current is None else _lifetime(current.chain[0], current.certificate_time or 0.0)


@lru_cache(maxsize=8)
def _lifetime(certificate: str, got: float) -> Lifetime:
    parsed = x509.load_der_x509_certificate(bytes.fromhex(certificate))
    return Lifetime(parsed.not_valid_before_utc, parsed.not_valid_after_utc, datetime.fromtimestamp(got, UTC))


def condition_of(state: AgentState) -> Condition:
    """Of the certificate in use, now."""
    lifetime = lifetime_of(state)
    return Condition.NONE if lifetime is None else lifetime.condition(utc_now())


class ValidityWatch:
    """Calls ``tell`` with the condition at first, and whenever it has changed."""

    def __init__(
        self,
        state: Callable[[], AgentState],
        change: Callable[[], asyncio.Event],
        tell: Callable[[Condition], Awaitable[None]],
    ) -> None:
        self._state = state
        #: The event that is set at the next change of the state.
        self._change = change
        self._tell = tell

    async def run(self) -> None:
        """Until cancelled."""
        known: Condition | None = None
        while True:
            change = self._change()
            condition = condition_of(self._state())
            if condition is not known:
                known = condition
                _log(condition, lifetime_of(self._state()))
                await self._tell(condition)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await change.wait()

    def _pause(self) -> float:
        lifetime = lifetime_of(self._state())
        due = None if lifetime is None else lifetime.until_change(utc_now())
        return LOOK_SECONDS if due is None else min(LOOK_SECONDS, due.total_seconds() + 0.001)


def _log(condition: Condition, lifetime: Lifetime | None) -> None:
    if lifetime is None:
        return
    level = logging.INFO if condition is Condition.VALID else logging.WARNING if condition.healthy else logging.ERROR
    log.log(level, f"certificate {condition.value}", extra={"not_after": lifetime.not_after.isoformat()})
