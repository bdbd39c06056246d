"""A year of a fleet's renewals under outages, on a virtual clock.

When an NF renews, and when it tries again, is decided by the agent's own code
(:mod:`nf_agent.schedule`), from the hash of a certificate and draws as there;
how many renewals the CA/RA lets through, by its own (:mod:`ca_ra.pace`). Only
the clock and the certificates are simulated: a request is answered at once,
or fails while anything that it needs is away.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ca_ra.pace import HOUR, RenewalPace
from nf_agent.schedule import RenewalPolicy, Validity, draw_of, renewal_time, retry_delay
from nftrust.errors import NftrustError

DAY = 86400.0
NF_TYPES = ("AMF", "SMF", "AUSF", "UDM", "UDR", "PCF", "NRF", "NSSF", "NEF", "SMSF", "CHF", "BSF")
#: What can be away, and what a CA/RA without it asks for; one that is away itself asks for nothing.
RETRY_AFTER = {"CA": 0.0, "token": 1.0, "database": 1.0}
#: As nf_agent.renewal: never again at the very same instant.
SHORTEST_WAIT = 0.05


@dataclass(frozen=True, slots=True)
class Outage:
    """Nothing is issued from ``start`` to ``end``, seconds."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated. All times are seconds."""

    nfs: int = 10_000
    seconds: float = 365 * DAY
    validity: float = 90 * DAY
    policy: RenewalPolicy = field(default_factory=RenewalPolicy)
    outages: Sequence[Outage] = ()
    #: How many times its mean rate the CA/RA lets through; 0: as many as come.
    pace: float = 1.7
    seed: int = 1
    #: All when the year begins; else each is somewhere between two renewals then.
    enrolled_at_once: bool = False
    #: Uniform in [0, 1): where a renewal lies in its window, of the certificate's hash; and how long a wait is.
    certificate_draw: Callable[[bytes], float] = draw_of
    retry_draw: Callable[[random.Random], float] = random.Random.random

    @property
    def interval(self) -> float:
        """The mean time from one renewal of an NF to the next, without outages."""
        return self.validity * (self.policy.earliest + self.policy.latest) / 2

    @property
    def renewals_per_hour(self) -> float:
        """As it is set at the CA/RA."""
        return self.pace * self.nfs / self.interval * HOUR


@dataclass(slots=True)
class Year:
    """What happened, by day."""

    fleet: Fleet
    issued: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    paced: Counter[int] = field(default_factory=Counter)
    #: NFs whose certificate ended without a successor.
    expired: int = 0
    #: The least that was left of a certificate when its successor came, seconds.
    least_left: float = float("inf")

    @property
    def days(self) -> int:
        return round(self.fleet.seconds / DAY)

    @property
    def mean(self) -> float:
        """Renewals a day, those on which there was none for an outage included."""
        return self.issued.total() / self.days

    @property
    def peak(self) -> int:
        """Renewals on the busiest day."""
        return max(self.issued.values(), default=0)


@dataclass(slots=True)
class VirtualClock:
    """Moved by the simulation."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


def random_outages(source: random.Random, seconds: float, validity: float) -> Iterator[Outage]:
    """One after the other, each shorter than a third of the validity: many short ones, and some that come near it.

    Before each of them there is service for three times as long as it lasts:
    two outages with next to nothing between them are one that is longer.
    """
    time = 0.0
    while True:
        length = validity / 3 * source.random() ** 3
        time += max(source.expovariate(1 / (validity / 4.5)), 3 * length)
        if time + length > seconds:
            return
        yield Outage(source.choice(list(RETRY_AFTER)), time, time + length)
        time += length


def simulate(fleet: Fleet) -> Year:
    """Every attempt of every NF, in the order of time."""
    source, year, service = random.Random(fleet.seed), Year(fleet), _Service(fleet)
    members = [_Member(fleet, number, source) for number in range(fleet.nfs)]
    queue = [(member.due, number) for number, member in enumerate(members)]
    heapq.heapify(queue)
    while queue and queue[0][0] < fleet.seconds:
        now, number = queue[0]
        member, day = members[number], int(now // DAY)
        if member.validity.ended(now):
            year.expired += 1
            heapq.heappop(queue)
            continue
        wait = service.refusal(now, member.validity)
        if wait is None:
            year.least_left = min(year.least_left, member.validity.left(now))
            year.issued[day] += 1
            member.renewed(now)
        else:
            (year.refused if service.away(now) else year.paced)[day] += 1
            member.refused(now, wait, source)
        heapq.heapreplace(queue, (member.due, number))
    return year


class _Service:
    """The CA/RA, its token and its database."""

    def __init__(self, fleet: Fleet) -> None:
        self._clock = VirtualClock()
        self._pace = RenewalPace(fleet.renewals_per_hour, self._clock) if fleet.pace else None
        self._outages = sorted(fleet.outages, key=lambda outage: outage.start)
        self._past = 0

    def away(self, now: float) -> Outage | None:
        """The outage at this time, which does not go back."""
        while self._past < len(self._outages) and self._outages[self._past].end <= now:
            self._past += 1
        following = self._outages[self._past : self._past + 1]
        return following[0] if following and following[0].start <= now else None

    def refusal(self, now: float, validity: Validity) -> float | None:
        """After how many seconds at least to ask again; None: renewed."""
        outage = self.away(now)
        if outage is not None:
            return RETRY_AFTER[outage.kind]
        if self._pace is None:
            return None
        self._clock.seconds = now
        try:
            self._pace.admit(validity.left(now), validity.seconds)
        except NftrustError as error:
            return error.retry_after or 0.0
        return None


class _Member:
    """One NF's agent, as far as it decides when to ask."""

    __slots__ = ("_failures", "_fleet", "_number", "_serial", "due", "validity")
    due: float
    validity: Validity

    def __init__(self, fleet: Fleet, number: int, source: random.Random) -> None:
        self._fleet, self._number, self._serial = fleet, number, 0
        self.renewed(0.0)
        passed = 0.0 if fleet.enrolled_at_once else source.random() * self.due
        self.validity, self.due = Validity(-passed, fleet.validity - passed), self.due - passed

    def renewed(self, now: float) -> None:
        """It has a certificate from now on."""
        fleet = self._fleet
        self._failures, self._serial = 0, self._serial + 1
        self.validity = Validity(now, now + fleet.validity)
        certificate = hashlib.sha256(f"{fleet.seed} {self._number} {self._serial}".encode()).digest()
        nf_type = NF_TYPES[self._number % len(NF_TYPES)]
        self.due = renewal_time(self.validity, nf_type, fleet.certificate_draw(certificate), fleet.policy)

    def refused(self, now: float, retry_after: float, source: random.Random) -> None:
        """It has to ask again."""
        self._failures += 1
        draw, left = self._fleet.retry_draw(source), self.validity.left(now)
        self.due = now + max(retry_delay(left, self._failures, draw, self._fleet.policy, retry_after), SHORTEST_WAIT)
