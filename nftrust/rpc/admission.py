"""How much one peer, and all of them together, may ask of a listener at a time.

An authenticated peer is counted by its name, a stranger by its address (an
IPv6 one by its /64). NFs behind one address share its bounds: they have to be
set for the largest such site. What makes that bearable: a call whose request
has not come yet gives way to a newer one, so that nobody can fill the places
of its neighbours with requests that never end.
"""

from __future__ import annotations

import asyncio
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
        #: The time limits of calls whose request has not come yet, the oldest first.
        self._receiving: dict[str, dict[asyncio.Timeout, None]] = {}
        self._rate = RateLimiter(rate=limits.rate_per_peer, burst=BURST_SECONDS * limits.rate_per_peer)

    @contextmanager
    def admitted(self, peer: Peer) -> Iterator[None]:
        """A call lasts as long as the block. Raises NftrustError(RATE_LIMITED, OVERLOADED), with RetryInfo."""
        key = _key(peer)
        if self._total >= self._limits.calls and not self._displace(self._most_receiving()):
            raise NftrustError(Reason.OVERLOADED, retry_after=RETRY_AFTER_SECONDS)
        if self._calls[key] >= self._limits.calls_per_peer and not self._displace(key):
            raise NftrustError(Reason.RATE_LIMITED, retry_after=RETRY_AFTER_SECONDS)
        self._rate.take(key)
        self._total += 1
        try:
            with counted(self._calls, key):
                yield
        finally:
            self._total -= 1

    @contextmanager
    def receiving(self, peer: Peer, scope: asyncio.Timeout) -> Iterator[None]:
        """For the block the request of the call in progress has not come yet; ``scope`` is what ends the call."""
        waiting = self._receiving.setdefault(_key(peer), {})
        waiting[scope] = None
        try:
            yield
        finally:
            waiting.pop(scope, None)
            if not waiting and self._receiving.get(_key(peer)) is waiting:
                del self._receiving[_key(peer)]

    def _most_receiving(self) -> str:
        return max(self._receiving, key=lambda key: len(self._receiving[key]), default="")

    def _displace(self, key: str) -> bool:
        """End the peer's oldest call whose request has not come yet; whether there was one."""
        waiting = self._receiving.get(key, {})
        while waiting:
            oldest = next(iter(waiting))
            del waiting[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())
                return True
        return False

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
