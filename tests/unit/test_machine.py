"""The enrolment state machine: every transition, back-off, lifetime, parking, cancelling, cleaning up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmproxy import machine
from cmproxy.machine import RetryPolicy
from cmproxy.model import PARK_FOR, WAIT_FOR, Enrolment, Problem, State, Step
from nftrust.errors import Code, NftrustError, Reason
from tests.unit.support import ENROLMENT, NF_ID, refused

T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
POLICY = RetryPolicy()
WORKING = [State.ATTESTING, State.REGISTERING, State.DELIVERING, State.ENROLLING]
ENDED = [state for state in State if state.ended]
ALLOWED = {
    (State.ATTESTING, State.REGISTERING),
    (State.REGISTERING, State.DELIVERING),
    (State.REGISTERING, State.ENROLLING),
    (State.DELIVERING, State.ENROLLING),
    (State.DELIVERING, State.REGISTERING),
    (State.DELIVERING, State.DELIVERED),
    (State.ENROLLING, State.SUCCEEDED),
    (State.ENROLLING, State.DELIVERING),
    (State.ENROLLING, State.ENROLLING),
}
TRANSIENT = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.INTERNAL}


def enrolment(state: State = State.ATTESTING, working: State | None = None, **fields: object) -> Enrolment:
    values = {
        "id": ENROLMENT,
        "nf_instance_id": NF_ID,
        "tenant": "north",
        "state": state,
        "working": working or (state if state in WORKING else State.ENROLLING),
        "allow_re_enrolment": False,
        "create_time": T0,
        "update_time": T0,
        "next_time": T0,
        **fields,
    }
    return Enrolment(**values)  # type: ignore[arg-type]


def waiting_reasons() -> list[Reason]:
    return [reason for reason in Reason if reason not in PARK_FOR and (reason.code in TRANSIENT or reason in WAIT_FOR)]


# Advancing


@pytest.mark.parametrize("state", WORKING)
@pytest.mark.parametrize("to", list(State))
def test_where_success_leads(state: State, to: State) -> None:
    before = enrolment(state, attempt=3, problem=Problem("X", "x", "x"))
    if (state, to) not in ALLOWED:
        with pytest.raises(ValueError, match="no transition"):
            machine.advance(before, to, T0 + SECOND)
        return
    after = machine.advance(before, to, T0 + SECOND)
    assert (after.state, after.problem, after.update_time) == (to, None, T0 + SECOND)
    assert after.attempt == (3 if to is state else 0)
    if to.ended:
        assert (after.end_time, after.next_time, after.working) == (T0 + SECOND, None, state)
    else:
        assert (after.end_time, after.next_time, after.working) == (None, T0 + SECOND, to)


@pytest.mark.parametrize("state", [State.WAITING, State.PARKED, *ENDED])
@pytest.mark.parametrize("to", list(State))
def test_nothing_leads_on_from_a_state_that_does_not_work(state: State, to: State) -> None:
    before = enrolment(state)
    with pytest.raises(ValueError, match="not a working state"):
        machine.advance(before, to, T0)
    with pytest.raises(ValueError, match="not a working state"):
        machine.fail(before, NftrustError(Reason.NF_UNREACHABLE), T0, POLICY)


def test_certificate_is_kept() -> None:
    done = machine.advance(enrolment(State.ENROLLING), State.SUCCEEDED, T0, certificate="certificates/1")
    assert done.certificate == "certificates/1"
    held = enrolment(State.ENROLLING, certificate="certificates/1")
    assert machine.advance(held, State.DELIVERING, T0).certificate == "certificates/1"


def test_success_leaves_nothing_to_clean_up() -> None:
    done = machine.advance(enrolment(State.ENROLLING, intent=b"x"), State.SUCCEEDED, T0)
    assert not done.cleanup


# Failing


@pytest.mark.parametrize("state", WORKING)
@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_what_each_refusal_leads_to(state: State, reason: Reason) -> None:
    error = NftrustError(reason, "what happened")
    after = machine.fail(enrolment(state, intent=b"x"), error, T0 + SECOND, POLICY)
    assert after.problem == Problem(reason.name, "what happened", reason.remedy)
    assert (after.attempt, after.working, after.update_time) == (1, state, T0 + SECOND)
    if reason in PARK_FOR:
        assert (after.state, after.next_time, after.end_time, after.cleanup) == (State.PARKED, None, None, False)
    elif reason in waiting_reasons():
        assert (after.state, after.end_time, after.cleanup) == (State.WAITING, None, False)
        assert after.next_time is not None
        assert after.next_time > T0 + SECOND
    else:
        assert (after.state, after.end_time, after.cleanup) == (State.FAILED, T0 + SECOND, True)
        assert after.next_time == T0 + SECOND


def test_an_attack_is_parked_even_where_the_code_is_transient() -> None:
    assert Reason.STORED_ROW_TAMPERED.code in TRANSIENT
    after = machine.fail(enrolment(), NftrustError(Reason.STORED_ROW_TAMPERED), T0 + 365 * 24 * 3600 * SECOND, POLICY)
    assert after.state is State.PARKED


def test_failure_without_intent_needs_no_cleanup() -> None:
    after = machine.fail(enrolment(), NftrustError(Reason.KEY_TAKEN), T0, POLICY)
    assert (after.state, after.cleanup, after.next_time) == (State.FAILED, False, None)


def test_lifetime() -> None:
    error = NftrustError(Reason.NF_UNREACHABLE)
    at_the_end = machine.fail(enrolment(), error, T0 + POLICY.lifetime, POLICY)
    beyond = machine.fail(enrolment(), error, T0 + POLICY.lifetime + SECOND, POLICY)
    assert at_the_end.state is State.WAITING
    assert (beyond.state, beyond.end_time) == (State.FAILED, T0 + POLICY.lifetime + SECOND)


# Back-off


@given(st.integers(0, 1 << 40))
def test_delay_is_bounded(attempt: int) -> None:
    delay = POLICY.delay(attempt, None)
    assert timedelta(milliseconds=20) <= delay <= POLICY.cap
    assert delay <= max(POLICY.base * 2 ** min(attempt, 20), timedelta(milliseconds=20))


@given(st.integers(0, 40), st.floats(0.001, 3600))
def test_delay_is_at_least_what_the_peer_asks(attempt: int, at_least: float) -> None:
    delay = POLICY.delay(attempt, at_least)
    assert timedelta(seconds=at_least) <= delay <= max(POLICY.cap, timedelta(seconds=at_least))


def test_delay_has_jitter_and_grows() -> None:
    late = [POLICY.delay(30, None) for _ in range(200)]
    assert len(set(late)) > 100
    assert max(late) > POLICY.base * 2 > max(POLICY.delay(1, None) for _ in range(200)) - SECOND
    assert max(POLICY.delay(0, None) for _ in range(200)) <= POLICY.base


def test_peer_that_asks_for_no_delay_gets_the_least() -> None:
    assert POLICY.delay(0, 0.0) >= timedelta(milliseconds=20)


def test_waiting_and_resuming() -> None:
    failed = machine.fail(enrolment(State.DELIVERING), NftrustError(Reason.NF_UNREACHABLE, retry_after=7), T0, POLICY)
    assert failed.next_time == T0 + 7 * SECOND
    resumed = machine.resume(failed)
    assert (resumed.state, resumed.attempt, resumed.problem) == (State.DELIVERING, 1, failed.problem)
    again = machine.fail(resumed, NftrustError(Reason.NF_UNREACHABLE), T0, POLICY)
    assert again.attempt == 2
    assert machine.advance(resumed, State.ENROLLING, T0).attempt == 0


@pytest.mark.parametrize("state", [state for state in State if state is not State.WAITING])
def test_resume_changes_only_what_waits(state: State) -> None:
    before = enrolment(state)
    assert machine.resume(before) is before


# Cancelling and cleaning up


@pytest.mark.parametrize("state", [*WORKING, State.WAITING, State.PARKED])
@pytest.mark.parametrize("intent", [None, b"x"])
def test_cancel(state: State, intent: bytes | None) -> None:
    after = machine.cancel(enrolment(state, intent=intent, epoch=4), T0 + SECOND)
    assert (after.state, after.epoch, after.end_time) == (State.CANCELLED, 5, T0 + SECOND)
    assert after.cleanup is (intent is not None)
    assert after.next_time == (T0 + SECOND if intent else None)


@pytest.mark.parametrize("state", ENDED)
def test_cancel_what_has_ended(state: State) -> None:
    with refused(Reason.ENROLMENT_ENDED):
        machine.cancel(enrolment(state), T0)


def test_cleaned_up() -> None:
    ended = machine.cancel(enrolment(State.DELIVERING, intent=b"x"), T0)
    clean = machine.cleaned_up(ended, T0 + SECOND)
    assert (clean.cleanup, clean.next_time, clean.update_time) == (False, None, T0 + SECOND)
    assert (clean.state, clean.end_time, clean.intent) == (State.CANCELLED, T0, None)


def test_no_sealed_secret_outlives_its_enrolment() -> None:
    sealed = enrolment(State.DELIVERING, credential=b"sealed", intent=b"sealed")
    delivered = machine.advance(sealed, State.DELIVERED, T0)
    assert (delivered.credential, delivered.intent) == (None, None)
    lost = machine.fail(sealed, NftrustError(Reason.FOREIGN_CA_RA_NOT_ALLOWED), T0, POLICY)
    for ended in (lost, machine.cancel(sealed, T0)):
        assert ended.credential is None
        assert machine.cleaned_up(ended, T0).intent is None  # until then it tells what to revoke


# Steps


def test_steps_are_in_order_and_keep_their_first_time() -> None:
    first = machine.with_steps((), [Step(5, "five", 50), Step(1, "one", 10)])
    again = machine.with_steps(first, [Step(5, "five again", 99), Step(3, "three", 30)])
    assert again == (Step(1, "one", 10), Step(3, "three", 30), Step(5, "five", 50))


def test_advance_adds_steps() -> None:
    before = enrolment(steps=(Step(3, "three", 30),))
    after = machine.advance(before, State.REGISTERING, T0, steps=[Step(4, "four", 40), Step(3, "late", 99)])
    assert after.steps == (Step(3, "three", 30), Step(4, "four", 40))


# Any sequence of events

EVENTS = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from(list(State))),
    st.tuples(st.just("fail"), st.sampled_from(list(Reason))),
    st.tuples(st.just("intent"), st.none()),
    st.tuples(st.sampled_from(["resume", "cancel", "clean"]), st.none()),
)


def apply(before: Enrolment, event: tuple[str, object], now: datetime) -> Enrolment:
    """One event as runner or OAM would cause it; one that is not due changes nothing."""
    kind, detail = event
    try:
        if kind == "advance":
            return machine.advance(before, detail, now, steps=[Step(3, "x", int(now.timestamp()))])  # type: ignore[arg-type]
        if kind == "fail":
            return machine.fail(before, NftrustError(detail), now, POLICY)  # type: ignore[arg-type]
        if kind == "intent":
            return replace(before, intent=b"x") if before.state in WORKING else before
        if kind == "resume":
            return machine.resume(before)
        if kind == "cancel":
            return machine.cancel(before, now)
        return machine.cleaned_up(before, now) if before.cleanup else before
    except (ValueError, NftrustError):
        return before


@given(st.lists(EVENTS, max_size=30))
def test_invariants_of_any_sequence(events: list[tuple[str, object]]) -> None:
    current, now = enrolment(), T0
    for event in events:
        now += timedelta(minutes=3)
        before, current = current, apply(current, event, now)
        assert current.working in WORKING
        assert current.state.ended == (current.end_time is not None)
        assert current.epoch >= before.epoch
        if before.state.ended:
            assert (current.state, current.end_time) == (before.state, before.end_time)
        if before.steps:
            assert current.steps == before.steps
        if current.cleanup:
            assert current.state.ended
            assert current.intent is not None
            assert current.next_time is not None
        if current.state is State.WAITING or current.state in WORKING:
            assert current.next_time is not None, "nobody would look at it again"
        if current.state is State.PARKED:
            assert current.next_time is None
