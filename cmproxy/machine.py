"""The enrolment state machine: pure functions from an enrolment and an event to the next enrolment.

    ATTESTING → REGISTERING → DELIVERING → ENROLLING → SUCCEEDED
                               DELIVERING → DELIVERED (a foreign CA/RA)
        any working state → WAITING → the same working state again
        any working state → PARKED | FAILED;  any state that has not ended → CANCELLED

The runner performs what a working state asks for and reports the event; it
decides nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cmproxy.model import PARK_FOR, WAIT_FOR, Enrolment, Problem, State, Step
from nftrust.errors import NftrustError, Reason

#: From where to where success may lead; backwards where a peer has lost what it was given.
_TRANSITIONS = {
    State.ATTESTING: {State.REGISTERING},
    State.REGISTERING: {State.DELIVERING, State.ENROLLING},
    State.DELIVERING: {State.ENROLLING, State.REGISTERING, State.DELIVERED},
    State.ENROLLING: {State.SUCCEEDED, State.DELIVERING, State.ENROLLING},
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential back-off, and how long an enrolment may take altogether."""

    base: timedelta = timedelta(milliseconds=200)
    cap: timedelta = timedelta(seconds=30)
    lifetime: timedelta = timedelta(hours=1)

    def delay(self, attempt: int, at_least: float | None) -> timedelta:
        ceiling = min(self.cap, self.base * float(1 << min(attempt, 16)))
        return max(ceiling * random.random(), timedelta(seconds=at_least or 0.02))


def resume(enrolment: Enrolment) -> Enrolment:
    """A claimed enrolment, back in its working state."""
    return replace(enrolment, state=enrolment.working) if enrolment.state is State.WAITING else enrolment


def advance(
    enrolment: Enrolment, to: State, now: datetime, *, steps: Iterable[Step] = (), certificate: str = ""
) -> Enrolment:
    """The working state has done its part. Raises ValueError: a mistake of the runner."""
    _require_working(enrolment)
    if to not in _TRANSITIONS[enrolment.working]:
        raise ValueError(f"no transition from {enrolment.working} to {to}")
    ended = to.ended
    return replace(
        enrolment,
        state=to,
        working=enrolment.working if ended else to,
        attempt=0 if to is not enrolment.working else enrolment.attempt,
        problem=None,
        steps=with_steps(enrolment.steps, steps),
        certificate=certificate or enrolment.certificate,
        credential=None if ended else enrolment.credential,
        intent=None if to is State.DELIVERED else enrolment.intent,  # a sealed secret may be in it
        update_time=now,
        end_time=now if ended else None,
        next_time=None if ended else now,
    )


def fail(enrolment: Enrolment, error: NftrustError, now: datetime, policy: RetryPolicy) -> Enrolment:
    """The working state's effect was refused: wait, park or give up. Raises ValueError: a mistake of the runner."""
    _require_working(enrolment)
    failed = replace(
        enrolment, problem=Problem.of(error), update_time=now, attempt=enrolment.attempt + 1, next_time=None
    )
    if error.reason in PARK_FOR:
        return replace(failed, state=State.PARKED)
    if not error.transient and error.reason not in WAIT_FOR:
        return _end(failed, State.FAILED, now)
    if now - enrolment.create_time > policy.lifetime:
        return _end(failed, State.FAILED, now)
    delay = policy.delay(failed.attempt, error.retry_after)
    return replace(failed, state=State.WAITING, next_time=now + delay)


def cancel(enrolment: Enrolment, now: datetime) -> Enrolment:
    """OAM gives it up; the epoch moves on, so that a runner at work loses its lease.

    Raises NftrustError(ENROLMENT_ENDED).
    """
    if enrolment.state.ended:
        raise NftrustError(Reason.ENROLMENT_ENDED)
    return _end(replace(enrolment, epoch=enrolment.epoch + 1, update_time=now), State.CANCELLED, now)


def cleaned_up(enrolment: Enrolment, now: datetime) -> Enrolment:
    """The registration of an ended enrolment is revoked, or was never open."""
    return replace(enrolment, cleanup=False, intent=None, next_time=None, update_time=now)


def with_steps(old: tuple[Step, ...], new: Iterable[Step]) -> tuple[Step, ...]:
    """The steps by number; a step that is reported again keeps its first time."""
    merged = {step.number: step for step in (*new, *old)}
    return tuple(merged[number] for number in sorted(merged))


def _require_working(enrolment: Enrolment) -> None:
    if enrolment.state is not enrolment.working:
        raise ValueError(f"{enrolment.state} is not a working state")


def _end(enrolment: Enrolment, state: State, now: datetime) -> Enrolment:
    """Terminal; what may be registered at the CA/RA has to be revoked there."""
    cleanup = enrolment.intent is not None
    return replace(
        enrolment,
        credential=None,
        state=state,
        end_time=now,
        cleanup=cleanup,
        next_time=now if cleanup else None,
        update_time=now,
    )
