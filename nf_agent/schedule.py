"""When a certificate is renewed, and when a renewal that failed is tried again: pure functions.

Times are seconds since the epoch; draws are uniform in [0, 1) and come from
the caller, so that a simulation drives this very module. docs/renewal.md
gives the reasons for the figures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: How far the windows of NF types are apart: their share of the whole window (TS 33.310 Annex I).
TYPE_SHARE = 0.1
#: Of the back-off: not 2, or those whose renewal became due late in an outage would all come back at once after it.
GROWTH = 4.0


@dataclass(frozen=True, slots=True)
class Validity:
    """Of a certificate: from when to when."""

    not_before: float
    not_after: float

    @property
    def seconds(self) -> float:
        return self.not_after - self.not_before

    def left(self, now: float) -> float:
        """Until the end; 0 from then on."""
        return max(0.0, self.not_after - now)

    def ended(self, now: float) -> bool:
        return now >= self.not_after


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """Shares, so that they fit every validity. Raises ValueError, which names the key."""

    #: The window of renewal: from and to which share of the validity has passed.
    earliest: float = 0.3
    latest: float = 0.6
    #: Ceiling of the wait after the first failure; each further one multiplies it by GROWTH.
    retry_seconds: float = 1.0
    #: No wait takes more than this share of what is left until the certificate's end.
    retry_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.earliest < 1:
            raise ValueError("earliest: more than 0 and less than 1 of the validity")
        if not self.earliest < self.latest < 1:
            raise ValueError("latest: more than earliest, and less than 1: before the certificate has ended")
        if not self.retry_seconds > 0:
            raise ValueError("retry_seconds: more than 0")
        if not 0 < self.retry_share < 1:
            raise ValueError("retry_share: more than 0 and less than 1: the certificate would end during a wait")


def draw_of(certificate_sha256: bytes) -> float:
    """A certificate's own draw in [0, 1): the same after every restart, without anything stored."""
    return (int.from_bytes(certificate_sha256[:8], "big") >> 11) / 2.0**53  # as many bits as a float holds: never 1


def renewal_time(validity: Validity, nf_type: str, draw: float, policy: RenewalPolicy) -> float:
    """When a certificate is to be renewed: spread over the window, which differs per NF type.

    A window that is slid by the type instead of narrowed keeps the peak of a
    fleet that was enrolled at one instant low even if it is of one type.
    """
    window = (policy.latest - policy.earliest) * validity.seconds
    slide = TYPE_SHARE * draw_of(hashlib.sha256(nf_type.encode()).digest())
    opening = validity.not_before + policy.earliest * validity.seconds
    return opening + window * (slide + (1 - TYPE_SHARE) * draw)


def retry_delay(left: float, failures: int, draw: float, policy: RenewalPolicy, at_least: float = 0.0) -> float:
    """Seconds to wait after so many failures in a row, ``left`` seconds before the certificate's end.

    Full jitter under a ceiling that grows and never takes more than a share
    of what is left: after a long outage those who have time wait longest, and
    nobody's certificate ends in a wait. ``at_least`` is what the CA/RA asks
    for; it gives way to the certificate's end too.
    """
    ceiling = min(policy.retry_share * left, policy.retry_seconds * GROWTH ** min(max(failures - 1, 0), 20))
    return max(draw * ceiling, min(at_least, ceiling))
