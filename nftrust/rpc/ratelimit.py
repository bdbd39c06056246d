"""Token buckets per key in bounded memory (security rule 6: wrong proofs are limited per source)."""

from __future__ import annotations

from collections import OrderedDict

from nftrust.clock import Clock, SystemClock
from nftrust.errors import NftrustError, Reason

_OVERFLOW = ""


class RateLimiter:
    """``burst`` tokens per key, refilled at ``rate`` a second, for at most ``max_keys`` keys at a time.

    Only a bucket that has refilled is forgotten, so that a stranger cannot
    wash out its own by showing up under many keys; once all are in use, new
    keys share one bucket.
    """

    def __init__(self, *, rate: float, burst: float, max_keys: int = 10_000, clock: Clock | None = None) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._clock = clock or SystemClock()
        #: key -> (tokens, monotonic time of that count); the longest untouched first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> None:
        """Take one token. Raises NftrustError(RATE_LIMITED) with the time until there is one."""
        now = self._clock.monotonic()
        key = self._slot(key, now)
        tokens = self._tokens(key, now)
        if tokens < 1.0:
            raise NftrustError(Reason.RATE_LIMITED, retry_after=(1.0 - tokens) / self._rate)
        self._put(key, tokens - 1.0, now)

    def charge(self, key: str) -> None:
        """Take one token though there may be none: those who come after wait the longer, by at most a burst."""
        now = self._clock.monotonic()
        key = self._slot(key, now)
        self._put(key, max(self._tokens(key, now) - 1.0, -self._burst), now)

    def refund(self, key: str) -> None:
        """Give a token back: what it was taken for turned out to be harmless."""
        now = self._clock.monotonic()
        key = key if key in self._buckets else _OVERFLOW
        if key in self._buckets:
            self._put(key, min(self._burst, self._tokens(key, now) + 1.0), now)

    def __len__(self) -> int:
        return len(self._buckets)

    def _slot(self, key: str, now: float) -> str:
        if key in self._buckets:
            return key
        while len(self._buckets) >= self._max_keys:
            oldest = next(iter(self._buckets))
            if self._tokens(oldest, now) < self._burst:
                return _OVERFLOW
            del self._buckets[oldest]
        return key

    def _tokens(self, key: str, now: float) -> float:
        tokens, since = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - since) * self._rate)

    def _put(self, key: str, tokens: float, now: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
