"""How many certificates are renewed in an hour: what waited during an outage does not all come at once after it.

A certificate that is near its end is not held up: the others make room for it. The NFs do the rest: those
that are told to wait ask again the sooner, the less is left to them
(nf_agent.schedule).
"""

from __future__ import annotations

from nftrust.clock import Clock
from nftrust.rpc.ratelimit import RateLimiter

#: What may come at once however slow the pace: chance alone brings a few together.
LEAST_BURST = 20.0
#: Of the validity: with less left a renewal waits for nobody.
URGENT_SHARE = 0.1
HOUR = 3600.0


class RenewalPace:
    """At most so many renewals in an hour, and an hour's at once. Times are seconds."""

    def __init__(self, per_hour: float, clock: Clock | None = None) -> None:
        self._bucket = RateLimiter(rate=per_hour / HOUR, burst=max(LEAST_BURST, per_hour), clock=clock)

    def admit(self, left: float, validity: float) -> None:
        """A renewal of a certificate with so much left of its validity. Raises NftrustError(RATE_LIMITED)."""
        if left > URGENT_SHARE * validity:
            self._bucket.take("renewal")
        else:
            self._bucket.charge("renewal")  # the others make room for it
