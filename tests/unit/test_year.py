"""A small fleet's year with the agent's schedule and the CA/RA's pace; and what it would be without them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from bench.year import DAY, Fleet, Outage, Year, random_outages, simulate
from ca_ra.pace import LEAST_BURST, URGENT_SHARE, RenewalPace
from nftrust.errors import NftrustError, Reason

VALIDITY = 90 * DAY
OUTAGES = tuple(random_outages(random.Random(3), 365 * DAY, VALIDITY))
#: With few NFs a day is too short a time: chance alone would make peaks.
WEEK = 7


def peak(year: Year) -> float:
    """The busiest week's share of the mean."""
    weeks = [sum(year.issued[day] for day in range(start, start + WEEK)) for start in range(0, year.days - WEEK, WEEK)]
    return max(weeks) / (WEEK * year.mean)


def fleet(**changes: object) -> Fleet:
    return Fleet(**({"nfs": 300, "outages": OUTAGES} | changes))  # type: ignore[arg-type]


def test_no_certificate_ends_and_no_week_is_busier_than_two() -> None:
    year = simulate(fleet())
    assert year.expired == 0
    assert year.refused.total() > 0
    assert peak(year) <= 2
    assert year.issued.total() > 300 * 365 / 90


def test_an_outage_of_nearly_a_third_of_the_validity_is_survived() -> None:
    year = simulate(fleet(outages=[Outage("CA", 200 * DAY, 200 * DAY + VALIDITY / 3 - 1)]))
    assert year.expired == 0
    assert peak(year) <= 2


def test_without_jitter_a_fleet_that_was_enrolled_at_once_comes_at_once() -> None:
    jittered = simulate(fleet(outages=(), pace=0.0, enrolled_at_once=True))
    assert peak(jittered) <= 2
    plain = simulate(fleet(outages=(), pace=0.0, enrolled_at_once=True, certificate_draw=lambda _: 0.5))
    assert peak(plain) > 2 * peak(jittered)


def test_without_a_pace_those_that_waited_come_at_once() -> None:
    assert peak(simulate(fleet(pace=0.0))) > 2


def test_an_outage_of_more_than_what_is_left_is_not_survived() -> None:
    assert simulate(fleet(outages=[Outage("token", 200 * DAY, 200 * DAY + VALIDITY / 2)])).expired > 0


def test_outages_are_each_shorter_than_a_third_with_service_between_them() -> None:
    for seed in range(50):
        outages = list(random_outages(random.Random(seed), 365 * DAY, VALIDITY))
        assert all(outage.end - outage.start < VALIDITY / 3 for outage in outages)
        for before, outage in pairwise(outages):
            assert outage.start - before.end >= 3 * (outage.end - outage.start) - 1e-6
    assert {outage.kind for outage in OUTAGES} == {"CA", "token", "database"}


def test_a_certificate_near_its_end_does_not_wait_for_the_pace() -> None:
    pace = RenewalPace(1.0)
    for _ in range(int(LEAST_BURST)):
        pace.admit(50.0, 100.0)
    with pytest.raises(NftrustError) as refused:
        pace.admit(50.0, 100.0)
    assert refused.value.reason is Reason.RATE_LIMITED
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 3000
    pace.admit(URGENT_SHARE * 100.0, 100.0)


def test_the_others_make_room_for_what_is_near_its_end() -> None:
    pace = RenewalPace(1.0)
    for _ in range(int(2 * LEAST_BURST)):
        pace.admit(0.0, 100.0)
    with pytest.raises(NftrustError) as refused:
        pace.admit(50.0, 100.0)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > LEAST_BURST * 3500
