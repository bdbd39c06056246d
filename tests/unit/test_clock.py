"""The guarded clock: never backwards, and closed after a jump."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import Reason
from tests.unit.support import refusal, refused

T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TOLERANCE = timedelta(minutes=5)


class HandClock:
    """A clock that is set by hand: wall and monotonic time apart."""

    def __init__(self) -> None:
        self.wall = T0
        self.mono = 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def run(self, time: timedelta) -> None:
        """Both clocks run on."""
        self.wall += time
        self.mono += time.total_seconds()

    def jump(self, time: timedelta) -> None:
        """The wall clock is set; monotonic time does not notice."""
        self.wall += time


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


def test_follows_the_clock(hand: HandClock) -> None:
    clock = GuardedClock(hand)
    assert clock.now() == T0
    hand.run(timedelta(days=400))
    assert clock.now() == T0 + timedelta(days=400)
    assert clock.monotonic() == hand.mono


def test_small_step_back_does_not_show(hand: HandClock) -> None:
    clock = GuardedClock(hand)
    hand.run(10 * SECOND)
    assert clock.now() == T0 + 10 * SECOND
    hand.jump(-4 * SECOND)
    assert clock.now() == T0 + 10 * SECOND
    hand.run(5 * SECOND)
    assert clock.now() == T0 + 11 * SECOND


@pytest.mark.parametrize("direction", [-1, 1])
def test_jump_against_monotonic_time(hand: HandClock, direction: int) -> None:
    clock = GuardedClock(hand)
    hand.jump(direction * TOLERANCE)
    assert clock.now() >= T0
    hand.jump(direction * SECOND)
    with refused(Reason.CLOCK_UNTRUSTED) as caught:
        clock.now()
    assert caught.value.transient
    assert caught.value.retry_after


def test_a_refused_time_raises_no_mark(hand: HandClock) -> None:
    clock = GuardedClock(hand)
    hand.jump(timedelta(days=1))
    with refused(Reason.CLOCK_UNTRUSTED):
        clock.now()
    hand.jump(-timedelta(days=1))
    assert clock.now() == T0


def test_slow_drift_adds_up_to_a_jump(hand: HandClock) -> None:
    clock = GuardedClock(hand)
    for _ in range(300):
        hand.run(SECOND)
        hand.jump(SECOND)
        clock.now()
    hand.jump(SECOND)
    with refused(Reason.CLOCK_UNTRUSTED):
        clock.now()


def test_high_water_mark_of_an_earlier_process(hand: HandClock) -> None:
    assert GuardedClock(hand, T0 - timedelta(days=400)).now() == T0
    assert GuardedClock(hand, T0 + TOLERANCE).now() == T0 + TOLERANCE
    late = GuardedClock(hand, T0 + TOLERANCE + SECOND)
    with refused(Reason.CLOCK_UNTRUSTED):
        late.now()
    hand.run(SECOND)
    assert late.now() == T0 + TOLERANCE + SECOND


def test_mark_of_another_process(hand: HandClock) -> None:
    clock = GuardedClock(hand)
    clock.raise_to(T0 + 3 * SECOND)
    assert clock.now() == T0 + 3 * SECOND
    clock.raise_to(T0 - timedelta(days=1))
    assert clock.now() == T0 + 3 * SECOND
    clock.raise_to(T0 + timedelta(hours=1))
    with refused(Reason.CLOCK_UNTRUSTED):
        clock.now()


def test_tolerance_is_the_callers(hand: HandClock) -> None:
    clock = GuardedClock(hand, tolerance=SECOND)
    hand.jump(2 * SECOND)
    with refused(Reason.CLOCK_UNTRUSTED):
        clock.now()


@given(st.lists(st.tuples(st.booleans(), st.integers(-700, 700)), max_size=30))
def test_never_runs_backwards(moves: list[tuple[bool, int]]) -> None:
    hand = HandClock()
    clock = GuardedClock(hand)
    last, drift = T0, 0
    for runs, seconds in moves:
        if runs:
            hand.run(abs(seconds) * SECOND)
        else:
            hand.jump(seconds * SECOND)
            drift += seconds
        now, reason = refusal(clock.now)
        if now is None:
            assert reason is Reason.CLOCK_UNTRUSTED
        else:
            assert abs(drift) <= 300
            assert now >= last
            assert hand.wall <= now <= hand.wall + TOLERANCE
            last = now


def test_the_machines_clock() -> None:
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() <= clock.monotonic()
