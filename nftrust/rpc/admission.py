"""How much one peer, and all of them together, may ask of a listener at a time.

An authenticated peer is counted by its name, a stranger by its address (an
IPv6 one by its /64). NFs behind one address share its bounds: they have to be
set for the largest such site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nftrust.errors import NftrustError, Reason
from nftrust.rpc.peer import Peer
from nftrust.rpc.ratelimit import RateLimiter
from nftrust.source import counted, source_key

#: How many seconds' worth of calls may come at once.
BURST_SECONDS = 2.0
RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener, in each front."""

    #: Calls in progress, streams included.
    calls: int = 1000
    calls_per_peer: int = 256
    streams_per_peer: int = 64
    #: New calls a second.
    rate_per_peer: float = 1000.0


class Admission:
    """Counts the calls in progress. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._total = 0
        self._rate = RateLimiter(rate=limits.rate_per_peer, burst=BURST_SECONDS * limits.rate_per_peer)

    @contextmanager
    def admitted(self, peer: Peer) -> Iterator[None]:
        """A call lasts as long as the block. Raises NftrustError(RATE_LIMITED, OVERLOADED), with RetryInfo."""
        key = _key(peer)
        if self._total >= self._limits.calls:
            raise NftrustError(Reason.OVERLOADED, retry_after=RETRY_AFTER_SECONDS)
        if self._calls[key] >= self._limits.calls_per_peer:
            raise NftrustError(Reason.RATE_LIMITED, retry_after=RETRY_AFTER_SECONDS)
        self._rate.take(key)
        self._total += 1
        try:
            with counted(self._calls, key):
                yield
        finally:
            self._total -= 1

    @contextmanager
    def streaming(self, peer: Peer) -> Iterator[None]:
        """The call in progress is a stream. Raises NftrustError(RATE_LIMITED), with RetryInfo."""
        key = _key(peer)
        if self._streams[key] >= self._limits.streams_per_peer:
            raise NftrustError(Reason.RATE_LIMITED, retry_after=RETRY_AFTER_SECONDS)
        with counted(self._streams, key):
            yield


def _key(peer: Peer) -> str:
    return peer.uri or source_key(peer.address)
