"""The CA certificates of one generation, and which generations there are (docs/rollover.md)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.x509.keys import spki_sha256
from nftrust.x509.names import subject
from nftrust.x509.profile import Issuer

OCSP_PATH = "/ocsp"
#: How long a front may not have noticed yet that another CA is active.
FRONT_LAG = timedelta(minutes=1)


def _numbered(name: str, generation: int) -> str:
    """The first generation's names bear no number."""
    return name if generation == 1 else f"{name}-{generation}"


@dataclass(frozen=True, slots=True)
class KeyLabels:
    """Of a generation's keys in the token."""

    ca: str
    response: str
    ocsp: str

    @classmethod
    def of(cls, generation: int) -> KeyLabels:
        return cls(*(_numbered(name, generation) for name in ("ca-signing", "ca-response", "ca-ocsp")))


@dataclass(frozen=True, slots=True)
class Authority:
    """An issuing CA as the domain sees it. No keys: they are the custody's."""

    generation: int
    issuer: Issuer
    #: Issuing CA first, root last.
    chain: tuple[x509.Certificate, ...]
    response_certificate: x509.Certificate
    #: SHA-256 of the issuing CA's SPKI, base64url.
    ca_id: str

    @classmethod
    def of(
        cls,
        chain: Sequence[x509.Certificate],
        response_certificate: x509.Certificate,
        *,
        public_url: str,
        country: str,
        home_domain: str,
        generation: int = 1,
    ) -> Authority:
        issuing = chain[0]
        base = public_url.rstrip("/")
        paths = Paths.of(generation)
        issuer = Issuer(
            issuing, base + paths.crl, base + paths.issuing, base + OCSP_PATH, subject(country, home_domain)
        )
        key = issuing.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return cls(generation, issuer, tuple(chain), response_certificate, jose.b64url(spki_sha256(key)))

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        key = self.issuer.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @property
    def labels(self) -> KeyLabels:
        return KeyLabels.of(self.generation)

    @property
    def paths(self) -> Paths:
        return Paths.of(self.generation)

    def ended(self, now: datetime) -> bool:
        """Nothing verifies under it any more."""
        return any(now >= certificate.not_valid_after_utc for certificate in self.chain)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a generation's CRL and certificates are fetched."""

    crl: str
    issuing: str
    root: str

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, generation: int) -> Paths:
        return cls(
            f"/crl/{_numbered('issuing', generation)}.crl",
            f"/ca/{_numbered('issuing', generation)}.cer",
            f"/ca/{_numbered('root', generation)}.cer",
        )


class CaState(enum.Enum):
    ANNOUNCED = "announced"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCa:
    """A generation as stored. PEM is None where it is in the files of the configuration: generation 1."""

    generation: int
    chain: str | None
    response_certificate: str | None
    announce_time: datetime
    #: The end of the lead time.
    activate_after: datetime
    activate_time: datetime | None
    retire_time: datetime | None


@dataclass(frozen=True, slots=True)
class KnownCa:
    """A generation and how it stands."""

    authority: Authority
    stored: StoredCa
    state: CaState
    #: When its successor was activated.
    supersede_time: datetime | None

    def issues_for(self, create_time: datetime) -> bool:
        """Whether it issues for a registration of that time, which was told which CA to expect."""
        if self.state is CaState.SUPERSEDED:
            assert self.supersede_time is not None
            return create_time <= self.supersede_time + FRONT_LAG
        return self.state is CaState.ACTIVE


def standing(stored: Sequence[StoredCa]) -> list[tuple[StoredCa, CaState, datetime | None]]:
    """Each generation with its state and the time at which it was superseded, by generation."""
    activated = sorted((each.activate_time, each.generation) for each in stored if each.activate_time is not None)

    def judge(each: StoredCa) -> tuple[StoredCa, CaState, datetime | None]:
        if each.activate_time is None:
            return each, CaState.ANNOUNCED if each.retire_time is None else CaState.RETIRED, None
        place = activated.index((each.activate_time, each.generation))
        if place == len(activated) - 1:
            return each, CaState.ACTIVE, None
        state = CaState.SUPERSEDED if each.retire_time is None else CaState.RETIRED
        return each, state, activated[place + 1][0]

    return [judge(each) for each in sorted(stored, key=lambda each: each.generation)]


class StoredCas(Protocol):
    """Storage of the generations."""

    async def generations(self) -> Sequence[StoredCa]:
        """All of them. Raises NftrustError."""
        ...


class Authorities:
    """The CAs of this CA/RA; the same object for every part of a front, brought up to date by :meth:`refresh`."""

    def __init__(self, store: StoredCas, load: Callable[[StoredCa], Authority]) -> None:
        self._store = store
        self._load = load
        self._stored: Sequence[StoredCa] = ()
        self._known: tuple[KnownCa, ...] = ()

    async def refresh(self) -> None:
        """See what a rollover has changed. Raises NftrustError."""
        self.adopt(await self._store.generations())

    def adopt(self, stored: Sequence[StoredCa]) -> None:
        """Stand as stored. Raises NftrustError(CONFIG_INVALID) where certificates cannot be read."""
        if stored == self._stored:
            return
        loaded = {known.authority.generation: known.authority for known in self._known}
        self._known = tuple(
            KnownCa(loaded.get(each.generation) or self._load(each), each, state, supersede_time)
            for each, state, supersede_time in standing(stored)
        )
        self._stored = stored

    @property
    def known(self) -> tuple[KnownCa, ...]:
        """By generation."""
        return self._known

    @property
    def active(self) -> Authority:
        """The one that issues."""
        return next(known.authority for known in self._known if known.state is CaState.ACTIVE)

    @property
    def trusted(self) -> tuple[KnownCa, ...]:
        """Those of the trust bundle."""
        return tuple(known for known in self._known if known.state is not CaState.RETIRED)

    def generation(self, number: int) -> Authority:
        """The CA of a certificate that it has issued."""
        return next(known.authority for known in self._known if known.authority.generation == number)

    def find(self, ca_id: str) -> KnownCa | None:
        return next((known for known in self._known if known.authority.ca_id == ca_id), None)

    async def named(self, ca_id: str) -> KnownCa | None:
        """The CA of this id, also one that another front has just activated. Raises NftrustError."""
        found = self.find(ca_id)
        if found is None or found.state is CaState.ANNOUNCED:
            await self.refresh()
            found = self.find(ca_id)
        return found

    def publishing(self, now: datetime) -> tuple[Authority, ...]:
        """Those that have a CRL and answer OCSP: until their own end, whatever their state."""
        return tuple(known.authority for known in self._known if not known.authority.ended(now))


def out_of_order(why: str) -> NftrustError:
    return NftrustError(Reason.ROLLOVER_OUT_OF_ORDER, why)
