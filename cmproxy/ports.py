"""What the CM proxy needs of its peers. Adapters raise NftrustError and nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

from cmproxy.model import Claimed, Enrolment, NetworkFunction
from nftrust.errors import Reason, invalid_field
from nftrust.pkcs11.operations import MAX_SECRET_BYTES, MIN_SECRET_BYTES

_REFERENCE = re.compile(r"[!-~]{1,128}\Z")
#: Entropy cannot be measured; a secret with fewer different bytes certainly lacks it.
MIN_DISTINCT_BYTES = 8


@dataclass(frozen=True, slots=True)
class NfInfo:
    """What the NF says of itself over the verified day-0 channel; the statement is already checked."""

    transport_key_sha256: bytes
    statement: str
    day0_chain: tuple[bytes, ...]
    instantiate_time: datetime


@dataclass(frozen=True, slots=True)
class NfStatus:
    """How far the NF agent is. Times are None until the step has happened."""

    phase: Literal["armed", "enrolling", "confirmed", "failed", "delivered"]
    reason: str
    registration: str
    csr_time: datetime | None
    request_time: datetime | None
    certificate_time: datetime | None
    confirm_time: datetime | None
    #: What the CA/RA answered to the confirmation, as it signed it; empty where there is none.
    confirmation: str = ""


class RunnerObserver(Protocol):
    """Hears what becomes of enrolments."""

    def step(self, number: int) -> None:
        """A step was done, for the first time."""
        ...

    def refused(self, state: str, reason: Reason) -> None:
        """What the working state asked for was refused."""
        ...

    def ended(self, state: str, duration: timedelta) -> None: ...


class NfSession(Protocol):
    """A channel to one NF whose day-0 identity has been verified."""

    async def info(self, enrolment_id: str, nonce: bytes) -> NfInfo: ...

    async def deliver(self, enrolment_info: str, iak: bytes) -> None: ...

    async def renew(self) -> bytes:
        """Have it renew at once; SHA-256 of its new certificate."""
        ...

    def watch(self) -> AsyncIterator[NfStatus]:
        """The present status first, then every change."""
        ...


class NfPort(Protocol):
    """Dials NF agents."""

    def connect(self, nf: NetworkFunction) -> AbstractAsyncContextManager[NfSession]:
        """Raises NftrustError(NF_UNREACHABLE, DAY0_*)."""
        ...


@dataclass(frozen=True, slots=True)
class CaRegistration:
    """A registration at the CA/RA."""

    name: str
    state: Literal["open", "issued", "confirmed", "revoked", "expired"]
    certificate: str
    confirm_time: datetime | None


@dataclass(frozen=True, slots=True)
class RegistrationAnswer:
    """Step 6. ``iak`` is empty but in the tls-only mode, and never stored."""

    registration: CaRegistration
    enrolment_info: str
    iak: bytes
    #: How the IAK travels, for a reader.
    custody: str

    def __repr__(self) -> str:
        return f"RegistrationAnswer({self.registration.name})"


@dataclass(frozen=True, slots=True)
class Holding:
    """The certificate of an NF that lasts longest, of those it has confirmed."""

    #: None: it has never had one.
    not_after: datetime | None
    revoked: bool


class HoldingPort(Protocol):
    """The CA/RA as recovery needs it."""

    async def holding(self, nf: NetworkFunction) -> Holding: ...


class Recoveries(Protocol):
    """NFs whose last certificate may have ended, in storage."""

    async def due(self, limit: int) -> list[NetworkFunction]:
        """Those to be looked at now."""
        ...

    async def look_again(self, nf: NetworkFunction, time: datetime) -> None: ...

    async def start(self, enrolment: Enrolment) -> None:
        """Raises NftrustError(ENROLMENT_ACTIVE, NF_RETIRED, NF_NOT_FOUND)."""
        ...


class CaRaPort(Protocol):
    """The CA/RA as the proxy needs it; our own CA/RA is the first adapter."""

    async def registration_intent(self, nf: NetworkFunction, enrolment: Enrolment, info: NfInfo) -> bytes:
        """The request to persist before it is sent; opaque to the caller."""
        ...

    async def register(self, intent: bytes) -> RegistrationAnswer:
        """Steps 5 and 6; the same intent has one effect."""
        ...

    def hands_over(self, registration: str) -> bool:
        """Whether the NF goes on with this CA/RA by itself, out of our sight."""
        ...

    async def get(self, registration: str) -> CaRegistration: ...

    def confirmed(self, enrolment: Enrolment, confirmation: str) -> CaRegistration | None:
        """What the CA/RA's signed answer to the NF says of the registration; None where it proves nothing."""
        ...

    async def revoke(self, registration: str) -> None:
        """Void it; one that has ended stays as it is."""
        ...

    async def holding(self, nf: NetworkFunction) -> Holding:
        """What the NF holds, as far as this CA/RA tells."""
        ...

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        """Revoke what the NF holds and see to it that it gets nothing more; of one that is closed nothing changes.

        ``registrations`` are all that the CM proxy knows of.
        """
        ...


@dataclass(frozen=True, slots=True)
class EndEntity:
    """What a foreign CA/RA is told of an NF."""

    #: Unique per enrolment: 40 lower-case letters, digits and hyphens.
    handle: str
    nf_instance_id: str
    nf_type: str
    #: The first is the NF's FQDN.
    fqdns: tuple[str, ...]
    tenant: str
    certificate_profile: str


@dataclass(frozen=True, slots=True)
class ForeignCredential:
    """Reference value (1 to 128 characters) and secret (32 to 128 bytes, a multiple of 8) of an end entity."""

    reference: str
    secret: bytes = field(repr=False)

    def check(self) -> None:
        """Raises NftrustError(INVALID_FIELD), which tells the rule and not the value."""
        if not _REFERENCE.match(self.reference):
            raise invalid_field("foreign_credential.reference", "1 to 128 printable ASCII characters without space")
        size = len(self.secret)
        if not MIN_SECRET_BYTES <= size <= MAX_SECRET_BYTES or size % 8:
            raise invalid_field("foreign_credential.secret", "32 to 128 bytes, a multiple of 8")
        if len(set(self.secret)) < MIN_DISTINCT_BYTES:
            raise invalid_field("foreign_credential.secret", "at least 128 bits of entropy")


class Registrar(Protocol):
    """Registers end entities at a foreign CA/RA. Raises NftrustError and nothing else.

    PEER_UNAVAILABLE is tried again; FOREIGN_CA_RA_REFUSED ends the enrolment.
    """

    async def register(self, entity: EndEntity) -> ForeignCredential:
        """Called again with the same handle it voids the former secret and gives another: none is stored in clear."""
        ...

    async def revoke(self, handle: str) -> None:
        """Void the end entity and what was issued to it; one that does not exist is none to void."""
        ...


class VerifierPort(Protocol):
    """The attestation verifier (RFC 9334); the proxy is the Relying Party."""

    async def require_affirming(self, nf: NetworkFunction) -> str:
        """What the decision rests on, for a reader. Raises NftrustError(ATTESTATION_RESULT_MISSING)."""
        ...


class Retirements(Protocol):
    """The retirements that the CA/RA has not yet carried out, in storage."""

    async def due(self, limit: int) -> list[tuple[NetworkFunction, tuple[str, ...]]]:
        """Network functions with the names of their registrations."""
        ...

    async def finish(self, nf: NetworkFunction) -> None:
        """The CA/RA has closed the end entity: its FQDNs are free."""
        ...

    async def put_off(self, nf: NetworkFunction, reason: Reason, delay: timedelta) -> None: ...


class EnrolmentLease(Protocol):
    """The runner's hold on enrolments in storage; every write is guarded by the epoch."""

    async def claim(self, owner: str, limit: int) -> list[Claimed]:
        """Due enrolments, leased to ``owner`` under a new epoch."""
        ...

    async def renew(self, enrolment: Enrolment) -> bool:
        """Extend the lease; False where it is lost."""
        ...

    async def save(self, enrolment: Enrolment, *, hold: bool, pin: bytes | None = None) -> Enrolment | None:
        """Write under the epoch; ``hold`` keeps the lease, else ``next_time`` stands.

        ``pin`` records the NF's transport key with it. None where the lease is lost.
        """
        ...

    async def release_all(self, owner: str) -> None:
        """A restarted instance takes over its own leases at once."""
        ...
