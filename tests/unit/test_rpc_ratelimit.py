"""Token buckets: refill, isolation of keys, bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nftrust.errors import NftrustError, Reason
from nftrust.rpc.ratelimit import RateLimiter
from nftrust.source import source_key


class HandClock:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def allowed(limiter: RateLimiter, key: str, times: int) -> int:
    """How many of ``times`` attempts get through."""
    return sum(passes(limiter, key) for _ in range(times))


def passes(limiter: RateLimiter, key: str) -> bool:
    try:
        limiter.take(key)
    except NftrustError as error:
        return error.reason is not Reason.RATE_LIMITED
    return True


def test_a_burst_then_the_rate(clock: HandClock) -> None:
    limiter = RateLimiter(rate=2.0, burst=5, clock=clock)
    assert allowed(limiter, "a", 10) == 5
    clock.seconds += 1.0
    assert allowed(limiter, "a", 10) == 2
    clock.seconds += 3600
    assert allowed(limiter, "a", 10) == 5


def test_a_refusal_says_when_to_come_back(clock: HandClock) -> None:
    limiter = RateLimiter(rate=0.5, burst=1, clock=clock)
    limiter.take("a")
    with pytest.raises(NftrustError) as refused:
        limiter.take("a")
    assert refused.value.retry_after == pytest.approx(2.0)
    clock.seconds += 2.0
    limiter.take("a")


def test_keys_do_not_disturb_each_other(clock: HandClock) -> None:
    limiter = RateLimiter(rate=1.0, burst=3, clock=clock)
    allowed(limiter, "a", 100)
    assert allowed(limiter, "b", 10) == 3


def test_what_is_charged_is_owed_but_for_at_most_a_burst(clock: HandClock) -> None:
    limiter = RateLimiter(rate=1.0, burst=3, clock=clock)
    for _ in range(100):
        limiter.charge("a")
    clock.seconds += 3.5
    assert not passes(limiter, "a")
    clock.seconds += 0.5
    assert passes(limiter, "a")


def test_a_refund_gives_back_at_most_what_was_there(clock: HandClock) -> None:
    limiter = RateLimiter(rate=1.0, burst=2, clock=clock)
    for _ in range(100):
        limiter.take("a")
        limiter.refund("a")
    limiter.refund("a")
    limiter.refund("never seen")
    assert allowed(limiter, "a", 10) == 2


def test_many_keys_stay_bounded_and_do_not_wash_out_a_bucket(clock: HandClock) -> None:
    limiter = RateLimiter(rate=0.001, burst=3, max_keys=100, clock=clock)
    allowed(limiter, "stranger", 10)
    passed = sum(allowed(limiter, f"key {number}", 1) for number in range(10_000))
    assert len(limiter) <= 101
    # 99 keys of their own, then the one shared bucket.
    assert passed == 99 + 3
    assert allowed(limiter, "stranger", 10) == 0


def test_refilled_buckets_make_room(clock: HandClock) -> None:
    limiter = RateLimiter(rate=1.0, burst=3, max_keys=100, clock=clock)
    for number in range(100):
        limiter.take(f"key {number}")
    clock.seconds += 10
    assert sum(allowed(limiter, f"new {number}", 3) for number in range(50)) == 150
    assert len(limiter) <= 100


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::9", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
        ("", ""),
        ("x" * 1000, "x" * 64),
    ],
)
def test_one_key_for_one_source(address: str, key: str) -> None:
    assert source_key(address) == key
