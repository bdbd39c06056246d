"""Busy, starved or hanging: what silence means depends on what the kernel says."""

from __future__ import annotations

import os

import pytest

from nftrust.process.liveness import INERT_SECONDS, START_SECONDS, Activity, Vigil, activity

SILENCE = 10.0


class Kernel:
    """What /proc would say."""

    def __init__(self) -> None:
        self.state = "S"
        self.ticks = 5

    def look(self, pid: int) -> Activity | None:
        return Activity(self.state, self.ticks)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def vigil(kernel: Kernel) -> Vigil:
    made = Vigil(1, 0.0, silence=SILENCE, look=kernel.look)
    made.heard(0.0)
    return made


def first_kill(vigil: Vigil, start: float, until: float) -> float | None:
    """When, ticking ten times a second, the front is first called hanging."""
    for tick in range(int((until - start) * 10) + 1):
        now = start + tick / 10
        if vigil.hangs(now):
            return now
    return None


def test_a_sleeper_without_heartbeat_hangs(vigil: Vigil) -> None:
    at = first_kill(vigil, 0.0, SILENCE)
    assert at is not None
    assert INERT_SECONDS < at < INERT_SECONDS + 0.2


def test_a_stopped_front_hangs_sooner(vigil: Vigil, kernel: Kernel) -> None:
    kernel.state = "T"
    at = first_kill(vigil, 0.0, SILENCE)
    assert at is not None
    assert at < INERT_SECONDS


def test_one_that_beats_does_not_hang_whatever_the_kernel_says(vigil: Vigil, kernel: Kernel) -> None:
    kernel.state = "T"
    for beat in range(20):
        vigil.heard(beat / 4)
        assert not vigil.hangs(beat / 4 + 0.2)


@pytest.mark.parametrize("state", ["R", "D"])
def test_one_that_wants_to_run_has_the_longer_time(vigil: Vigil, kernel: Kernel, state: str) -> None:
    kernel.state = state
    assert first_kill(vigil, 0.0, SILENCE) is None
    assert vigil.hangs(SILENCE + 0.1)


def test_one_that_uses_the_processor_between_naps_is_busy(vigil: Vigil, kernel: Kernel) -> None:
    for tick in range(90):
        kernel.ticks += 1
        assert not vigil.hangs(tick / 10)


def test_a_front_that_starts_may_sleep(kernel: Kernel) -> None:
    vigil = Vigil(1, 0.0, silence=SILENCE, look=kernel.look)
    assert first_kill(vigil, 0.0, START_SECONDS) is None
    assert vigil.hangs(START_SECONDS + 0.1)


def test_an_observer_that_did_not_run_forgives(vigil: Vigil) -> None:
    vigil.forgive(50.0)
    assert not vigil.hangs(50.1)
    assert first_kill(vigil, 50.0, 60.0) is not None


def test_a_front_that_has_ended_does_not_hang() -> None:
    vigil = Vigil(1, 0.0, silence=SILENCE, look=lambda pid: None)
    vigil.heard(0.0)
    assert not vigil.hangs(SILENCE - 0.1)


def test_the_kernel_knows_this_process() -> None:
    seen = activity(os.getpid())
    assert seen is not None
    assert seen.state == "R"
    assert activity(2**22 + 1) is None
