"""What holds of a certificate at which time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from nf_agent import validity
from nf_agent.procedure import new_attempt
from nf_agent.state import AgentState
from nf_agent.validity import Condition, Lifetime, ValidityWatch, condition_of, lifetime_of
from nftrust.x509.path import der
from tests.hooks_kit import eventually
from tests.pki import make_ca

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFETIME = Lifetime(START, START + timedelta(days=10), START)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("now", "condition"),
    [
        (START - SECOND, Condition.NOT_YET_VALID),
        (START, Condition.VALID),
        (START + timedelta(days=8) - SECOND, Condition.VALID),
        (START + timedelta(days=8), Condition.EXPIRING),
        (START + timedelta(days=10), Condition.EXPIRING),
        (START + timedelta(days=10) + SECOND, Condition.EXPIRED),
        (START + timedelta(days=9999), Condition.EXPIRED),
    ],
)
def test_conditions(now: datetime, condition: Condition) -> None:
    assert LIFETIME.condition(now) is condition
    until = LIFETIME.until_change(now)
    if until is None:
        assert condition is Condition.EXPIRED
    else:
        assert LIFETIME.condition(now + until - timedelta(milliseconds=1)) is condition
        assert LIFETIME.condition(now + until) is not condition


def test_a_short_certificate_that_was_dated_back_is_not_old_when_it_is_new() -> None:
    dated_back = Lifetime(START, START + timedelta(minutes=6), START + timedelta(minutes=5))
    assert dated_back.condition(START + timedelta(minutes=5, seconds=1)) is Condition.VALID
    assert dated_back.condition(START + timedelta(minutes=5, seconds=50)) is Condition.EXPIRING


def test_what_is_healthy() -> None:
    assert {each for each in Condition if not each.healthy} == {Condition.EXPIRED, Condition.NOT_YET_VALID}


def holding(lifetime: timedelta) -> AgentState:
    """An agent whose certificate lasts for so long yet."""
    certificate = make_ca("operator").issue(lifetime=lifetime).certificate
    attempt = new_attempt("info", "registrations/1", None)
    held = replace(attempt, chain=(der(certificate).hex(),))
    return AgentState(nf_instance_id="x", instantiate_time=0.0, phase="confirmed", current=held)


def test_of_an_agents_state() -> None:
    armed = AgentState(nf_instance_id="x", instantiate_time=0.0)
    assert (condition_of(armed), lifetime_of(armed)) == (Condition.NONE, None)
    assert condition_of(holding(timedelta(days=30))) is Condition.VALID
    assert condition_of(holding(-SECOND)) is Condition.EXPIRED


class Watched:
    """A state that is watched over, and what was told of it."""

    def __init__(self, state: AgentState) -> None:
        self.state = state
        self.told: list[Condition] = []
        self.changed = asyncio.Event()

    def change(self, state: AgentState) -> None:
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def tell(self, condition: Condition) -> None:
        self.told.append(condition)

    def run(self) -> asyncio.Task[None]:
        return asyncio.create_task(ValidityWatch(lambda: self.state, lambda: self.changed, self.tell).run())


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_expiry_is_noticed_when_it_comes_and_a_new_certificate_at_once() -> None:
    watched = Watched(holding(timedelta(seconds=1.5)))
    task = watched.run()
    await eventually(lambda: watched.told[-1:] == [Condition.EXPIRED], "noticed")
    watched.change(holding(timedelta(days=30)))
    await eventually(lambda: watched.told[-1] is Condition.VALID, "noticed")
    await ended(task)


async def test_a_clock_that_is_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr(validity, "utc_now", lambda: now)
    monkeypatch.setattr(validity, "LOOK_SECONDS", 0.01)
    watched = Watched(holding(timedelta(days=30)))
    task = watched.run()
    await eventually(lambda: watched.told == [Condition.VALID], "at first")
    now += timedelta(days=31)
    await eventually(lambda: watched.told == [Condition.VALID, Condition.EXPIRED], "noticed")
    now -= timedelta(days=62)
    await eventually(lambda: watched.told[-1] is Condition.NOT_YET_VALID, "noticed")
    await ended(task)


async def test_a_change_does_not_undo_the_end() -> None:
    watched = Watched(holding(timedelta(days=30)))
    task = watched.run()
    await eventually(lambda: watched.told == [Condition.VALID], "at first")
    for _ in range(5):  # it waits now
        await asyncio.sleep(0)
    watched.change(watched.state)  # meets the cancellation
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    task.cancel()
    assert done
    assert task.cancelled()
