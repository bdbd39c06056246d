"""The CA/RA's domain: registrations, certificates, and the ports to storage and token."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn, Protocol

import msgspec

from nftrust.messages import DeliveryMode
from nftrust.x509.crl import RevocationReason
from nftrust.x509.names import NfIdentity


class RegistrationState(enum.Enum):
    OPEN = "open"
    ISSUED = "issued"
    CONFIRMED = "confirmed"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One entitlement to one certificate.

    What is immutable is covered by ``row_mac``, made in the token: AES-KW
    binds nothing, so a row whose columns were changed is found (security rule 7).
    """

    id: str
    reference: str
    identity: NfIdentity
    tenant: str
    profile: str
    delivery_mode: DeliveryMode
    mac_algorithm: str
    transport_key_sha256: bytes
    create_time: datetime
    expire_time: datetime
    #: The IAK wrapped under the vault's KEK; None once it is destroyed.
    iak_blob: bytes | None
    row_mac: bytes
    certificate_serial: str | None = None
    issue_time: datetime | None = None
    confirm_time: datetime | None = None
    revoke_time: datetime | None = None
    #: The NF goes on with another token: at the confirmation its other certificates are revoked.
    replaces_instance: bool = False

    @property
    def name(self) -> str:
        return f"registrations/{self.id}"

    def mac_input(self) -> bytes:
        """The immutable row in one unambiguous encoding."""
        return msgspec.msgpack.encode(
            [
                "nftrust-registration-1",
                self.id,
                self.reference,
                self.identity.nf_instance_id,
                self.identity.nf_type,
                list(self.identity.fqdns),
                self.tenant,
                self.profile,
                self.delivery_mode,
                self.mac_algorithm,
                self.transport_key_sha256,
                int(self.create_time.timestamp()),
                int(self.expire_time.timestamp()),
                self.iak_blob,
                *([True] if self.replaces_instance else []),  # older rows were sealed without it
            ]
        )

    def sealed(self, row_mac: bytes) -> Registration:
        return replace(self, row_mac=row_mac)

    def state(self, now: datetime) -> RegistrationState:
        if self.confirm_time is not None:
            return RegistrationState.CONFIRMED
        if self.revoke_time is not None:
            return RegistrationState.REVOKED
        if self.certificate_serial is not None:
            return RegistrationState.ISSUED
        return RegistrationState.OPEN if now < self.expire_time else RegistrationState.EXPIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate as stored."""

    serial: str
    registration_id: str
    nf_instance_id: str
    tenant: str
    der: bytes
    sha256: bytes
    spki_sha256: bytes
    not_before: datetime
    not_after: datetime
    create_time: datetime
    confirm_time: datetime | None = None
    #: Serial of the certificate that it renews; None where it was issued for an IAK.
    predecessor: str | None = None
    #: Which CA issued it.
    generation: int = 1

    @property
    def name(self) -> str:
        return f"certificates/{self.serial}"


@dataclass(frozen=True, slots=True)
class Revocation:
    """When and why a certificate was revoked."""

    time: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class PublishedCrl:
    """What there is to know of a CRL but its content, which may be large."""

    number: int
    next_update: datetime
    #: The last revocation that it lists, by sequence.
    revocations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRegistration:
    """A registration about to be stored, with what its transaction has to check and keep."""

    registration: Registration
    actor: str
    request_id: str
    request_sha256: bytes
    statement_nonce: bytes
    shared_fqdns: bool
    allow_re_enrolment: bool
    #: The signed enrolment information, kept for replay.
    enrolment_info: str


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration request yields: now, or the stored answer of the first time."""

    registration: Registration
    enrolment_info: str
    #: Only in the tls-only mode and only in the very answer that minted it.
    clear_iak: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuance:
    """A signed certificate about to be stored. Issued means committed."""

    certificate: IssuedCertificate
    request_id: str
    request_sha256: bytes
    response: bytes


class RegistrationStore(Protocol):
    """Storage of registrations. Each method is one transaction or one read."""

    async def recall_registration(self, actor: str, request_id: str, request_sha256: bytes) -> Registered | None:
        """The stored answer to this request. Raises NftrustError(REQUEST_ID_REUSED)."""
        ...

    async def add_registration(self, new: NewRegistration) -> Registered | None:
        """Store; or the stored answer, where the same request came first; None: stored now.

        Raises NftrustError(END_ENTITY_SUSPENDED, OUT_OF_SCOPE, ALREADY_ENROLLED,
        REGISTRATION_OPEN, FQDN_TAKEN, KEY_TAKEN, NF_STATEMENT_INVALID, REQUEST_ID_REUSED).
        """
        ...


class EnrolmentStore(Protocol):
    """Storage of issuance. Each method is one transaction or one read."""

    async def find_redemption(self, reference: str, request_sha256: bytes) -> tuple[Registration, bytes | None] | None:
        """The registration with this reference value, and the stored response to these very bytes: one read."""
        ...

    async def recall_response(self, scope: str, request_sha256: bytes) -> bytes | None:
        """The stored response to these very bytes."""
        ...

    async def record_issuance(self, issuance: Issuance) -> bytes:
        """Certificate, use of the registration, response and audit row in one transaction.

        Returns the response to send: this one, or the stored one of the same request.
        Raises NftrustError(IAK_USED, IAK_REVOKED, IAK_EXPIRED, END_ENTITY_SUSPENDED,
        REQUEST_ID_REUSED, KEY_TAKEN); suspends the NF where another key shows a valid proof.
        """
        ...

    async def refuse_spent(self, registration_id: str, request_id: str, spki_sha256: bytes) -> NoReturn:
        """A valid proof came on a spent IAK: suspend the NF where the key differs (security rule 13).

        Raises NftrustError(IAK_USED, REQUEST_ID_REUSED).
        """
        ...

    async def find_certificate(self, sha256: bytes) -> tuple[IssuedCertificate, Registration] | None: ...

    async def record_confirmation(
        self, certificate: IssuedCertificate, request_sha256: bytes, response: bytes
    ) -> bytes:
        """Confirm and destroy the IAK. Returns the response to send.

        Raises NftrustError(IAK_REVOKED, END_ENTITY_SUSPENDED).
        """
        ...
