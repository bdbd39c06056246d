"""The CM proxy's domain: network functions and enrolments. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

import msgspec

from nftrust.errors import NftrustError, Reason
from nftrust.messages import DeliveryMode


class ServiceState(enum.Enum):
    """Whether a network function may have certificates."""

    IN_SERVICE = "in service"
    RETIRING = "retiring"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFunction:
    """An NF instance as OAM knows it."""

    nf_instance_id: str
    nf_type: str
    fqdns: tuple[str, ...]
    agent_endpoint: str
    tenant: str
    day0_root: str
    #: As provisioned by OAM, 32 bytes.
    transport_key_sha256: bytes | None
    pin_on_first_contact: bool
    #: Seen at the first verified contact.
    pinned_sha256: bytes | None = None
    attestation_required: bool
    delivery_mode: DeliveryMode
    profile: str
    version: int = 1
    create_time: datetime
    update_time: datetime
    #: Since when OAM wants it out of service for good.
    retire_request_time: datetime | None = None
    #: Since when the CA/RA has closed its end entity.
    retire_time: datetime | None = None
    #: When the CA/RA is to be asked (again) to close it; None: never.
    retire_next_time: datetime | None = None
    retire_attempt: int = 0
    #: Why the CA/RA could not: name of a Reason.
    retire_reason: str = ""
    #: OAM allows another enrolment, without hands, once the last certificate has ended.
    re_enrol_after_expiry: bool = False
    #: When the CA/RA is to be asked (again) what the NF holds; None: never.
    recovery_next_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"networkFunctions/{self.nf_instance_id}"

    @property
    def service(self) -> ServiceState:
        if self.retire_request_time is None:
            return ServiceState.IN_SERVICE
        return ServiceState.RETIRING if self.retire_time is None else ServiceState.RETIRED

    @property
    def etag(self) -> str:
        return f'"{self.version}"'

    @property
    def expected_transport_key(self) -> bytes | None:
        return self.transport_key_sha256 or self.pinned_sha256


class State(enum.Enum):
    ATTESTING = "attesting"
    REGISTERING = "registering"
    DELIVERING = "delivering"
    ENROLLING = "enrolling"
    WAITING = "waiting"
    PARKED = "parked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: The NF has what it needs to enrol at a foreign CA/RA, which we do not see.
    DELIVERED = "delivered"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.DELIVERED)


class Step(msgspec.Struct, frozen=True):
    """A step of the ten that happened. ``time`` is microseconds since the epoch."""

    number: int
    description: str
    time: int


class HandedCredential(msgspec.Struct, frozen=True):
    """What OAM got from a foreign CA/RA. ``sealed`` rests under the CM proxy's token key alone.

    ``mac``, by another key of the token, binds it to its NF and reference (security rule 7): the sealing does not.
    """

    reference: str
    sealed: bytes
    mac: bytes

    def __repr__(self) -> str:
        return f"HandedCredential({self.reference!r})"


class Problem(msgspec.Struct, frozen=True):
    """Why an enrolment waits, is parked or failed."""

    reason: str
    message: str
    remedy: str

    @staticmethod
    def of(error: NftrustError) -> Problem:
        return Problem(error.reason.name, error.message, error.reason.remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """One run of the ten steps for one NF."""

    id: str
    nf_instance_id: str
    tenant: str
    state: State
    #: The working state to go on with after WAITING.
    working: State
    allow_re_enrolment: bool
    #: OAM lets the NF instance go on with another token, this once.
    replaces_instance: bool = False
    attempt: int = 0
    #: RegisterEndEntity as it was sent the first time, persisted before; replayed byte for byte.
    intent: bytes | None = None
    #: A foreign CA/RA's reference value and sealed secret, as OAM gave them (HandedCredential).
    credential: bytes | None = None
    registration: str = ""
    enrolment_info: str = ""
    certificate: str = ""
    problem: Problem | None = None
    steps: tuple[Step, ...] = ()
    #: An ended enrolment whose registration has still to be revoked.
    cleanup: bool = False
    create_time: datetime
    update_time: datetime
    end_time: datetime | None = None
    #: When the runner is to look at it again: timer, back-off and lease in one; None: never.
    next_time: datetime | None
    #: Fencing: a runner whose epoch is not this one has lost its lease.
    epoch: int = 0
    revision: int = 0

    @property
    def name(self) -> str:
        return f"networkFunctions/{self.nf_instance_id}/enrolments/{self.id}"


@dataclass(frozen=True, slots=True)
class Claimed:
    """An enrolment that is leased to its holder, and its NF; None where an ended enrolment has outlived it."""

    enrolment: Enrolment
    nf: NetworkFunction | None


@dataclass(frozen=True, slots=True)
class Started:
    """What StartEnrolment led to; ``claimed`` where it is leased to the owner that was named."""

    enrolment: Enrolment
    claimed: Claimed | None


#: Refusals that time or a peer cures although the same call failed for good.
WAIT_FOR = frozenset({Reason.ATTESTATION_RESULT_MISSING, Reason.REGISTRATION_OPEN})
#: Refusals that may mean an attack: a person looks before anything goes on.
PARK_FOR = frozenset({Reason.END_ENTITY_SUSPENDED, Reason.STORED_ROW_TAMPERED})
