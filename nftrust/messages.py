"""Payloads of the signed messages (docs/enrolment-flow.md), as JSON inside compact JWS.

Binary values are base64url without padding; times are seconds since the epoch.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

IAK_BYTES = 32
#: Of a trust bundle.
MAX_TRUSTED_CAS = 8

Short = Annotated[str, msgspec.Meta(max_length=256)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", max_length=36)]
Hash = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}$", max_length=43)]
Pem = Annotated[str, msgspec.Meta(max_length=8192)]
Binary = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]*$", max_length=16384)]
DeliveryMode = Literal["wrapped", "tls-only"]

STATEMENT_TYP = "nftrust-statement+jws"
ENROLMENT_INFO_TYP = "nftrust-enrolment-info+jws"
FOREIGN_INFO_TYP = "nftrust-foreign-enrolment-info+jws"
ENROL_TYP = "nftrust-enrol+jws"
RENEW_TYP = "nftrust-renew+jws"
CONFIRM_TYP = "nftrust-confirm+jws"
RESPONSE_TYP = "nftrust-response+jws"

ENROL_URL = "/nftrust.api.ca_ra.v1.EnrolmentService/EnrolCertificate"
RENEW_URL = "/nftrust.api.ca_ra.v1.EnrolmentService/RenewCertificate"
CONFIRM_URL = "/nftrust.api.ca_ra.v1.EnrolmentService/ConfirmCertificate"
TRUST_BUNDLE_URL = "/nftrust.api.ca_ra.v1.EnrolmentService/GetTrustBundle"


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every signed payload."""


class NfStatement(Payload, frozen=True):
    """The NF vouches for its transport key; signed by the day-0 key (security rule 2)."""

    nf_instance_id: Uuid
    #: SubjectPublicKeyInfo of the transport key, DER.
    transport_key: Binary
    enrolment: Short
    nonce: Binary


class EnrolmentInfo(Payload, frozen=True):
    """Step 7: enrolment information and authentication material; signed by the response key."""

    protocol: Literal["grpc"]
    endpoints: Annotated[list[Short], msgspec.Meta(min_length=1, max_length=8)]
    #: PEM: anchors for the TLS of the endpoints.
    tls_trust_anchors: Annotated[list[Pem], msgspec.Meta(min_length=1, max_length=8)]
    #: DER, base64url: the issuing CA first, the operator's root last.
    ca_certificates: Annotated[list[Binary], msgspec.Meta(min_length=1, max_length=8)]
    #: DER, base64url: certificate of the response key, issued by the issuing CA.
    response_certificate: Binary
    ca_id: Hash
    ca_name: Short
    registration: Short
    reference: Short
    nf_instance_id: Uuid
    nf_type: Short
    fqdns: Annotated[list[Short], msgspec.Meta(min_length=1, max_length=16)]
    certificate_profile: Short
    transport_key_sha256: Hash
    delivery_mode: DeliveryMode
    #: The one MAC of this registration (security rule 5).
    mac_algorithm: Literal["HS256"]
    #: OAM has allowed a further certificate for an NF that holds a confirmed one (security rule 4).
    re_enrolment: bool
    #: RSAES-OAEP ciphertext of the IAK; empty where the mode is tls-only.
    wrapped_iak: Binary
    expire_time: int


CmpMac = Literal["PasswordBasedMac", "PBMAC1"]


class ForeignEnrolmentInfo(Payload, frozen=True):
    """Step 7 for a CA/RA that is not ours; signed by the CM proxy's TLS client key, which is in its token."""

    #: RFC 9810 over HTTP (RFC 9811).
    protocol: Literal["cmp"]
    endpoints: Annotated[list[Short], msgspec.Meta(min_length=1, max_length=8)]
    #: DER, base64url: the issuing CA first, its root last.
    ca_certificates: Annotated[list[Binary], msgspec.Meta(min_length=1, max_length=8)]
    #: DER, base64url: the CM proxy's certificate first.
    signer_chain: Annotated[list[Binary], msgspec.Meta(min_length=1, max_length=4)]
    registration: Short
    #: senderKID of the CMP request.
    reference: Short
    nf_instance_id: Uuid
    nf_type: Short
    fqdns: Annotated[list[Short], msgspec.Meta(min_length=1, max_length=16)]
    certificate_profile: Short
    transport_key_sha256: Hash
    #: The one MAC of this registration (security rule 5).
    mac_algorithm: CmpMac
    #: What is true of the secret's way: it was in the CM proxy's memory in clear before its token wrapped it.
    custody: Literal["imported-then-wrapped"]
    re_enrolment: bool
    #: RSAES-OAEP ciphertext of the secret.
    wrapped_iak: Binary
    expire_time: int


class EnrolProof(Payload, frozen=True):
    """Step 9: the request, proved by the IAK (security rule 10)."""

    ca_id: Hash
    registration: Short
    nf_instance_id: Uuid
    request_id: Uuid
    #: PKCS #10, DER.
    csr: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]*$")]


class RenewProof(Payload, frozen=True):
    """A certificate for a new key, proved by the key of the one that is renewed (security rule 10).

    The answer is an EnrolResponse.
    """

    ca_id: Hash
    registration: Short
    nf_instance_id: Uuid
    request_id: Uuid
    #: PKCS #10 of the new key, DER.
    csr: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]*$")]


class ConfirmProof(Payload, frozen=True):
    """The NF has the certificate; proved by the certificate's key (security rule 11)."""

    ca_id: Hash
    registration: Short
    nf_instance_id: Uuid
    request_id: Uuid
    certificate_sha256: Hash


class EnrolResponse(Payload, frozen=True):
    """Step 10; signed by the response key over the hash of the request (security rule 12)."""

    #: SHA-256 of the request's JWS as sent.
    request_sha256: Hash
    registration: Short
    #: DER, base64url.
    certificate: Binary
    #: DER, base64url: issuing CA, then root.
    ca_certificates: list[Binary]


class TrustedCa(Payload, frozen=True):
    """A CA of the trust bundle (docs/rollover.md)."""

    ca_id: Hash
    #: announced, active or superseded; for a reader.
    state: Short
    #: DER, base64url: issuing CA first, root last.
    ca_certificates: Annotated[list[Binary], msgspec.Meta(min_length=2, max_length=4)]
    response_certificate: Binary


class ConfirmResponse(Payload, frozen=True):
    """The end of an enrolment, or of a renewal: the NF keeps it, and shows it to the CM proxy."""

    request_sha256: Hash
    registration: Short
    #: `certificates/{serial}`
    certificate: Short
    #: Microseconds, since it stands beside the times of the steps.
    confirm_time_us: int
    #: As in a trust bundle. None: the CA that signs this is the only one.
    authorities: Annotated[list[TrustedCa], msgspec.Meta(max_length=MAX_TRUSTED_CAS)] = []


class TrustBundleResponse(Payload, frozen=True):
    """The CAs whose certificates are to be trusted; signed by the response key of the CA that was asked."""

    #: SHA-256 of the request's nonce.
    request_sha256: Hash
    #: Of the CA that issues at present.
    ca_id: Hash
    authorities: Annotated[list[TrustedCa], msgspec.Meta(min_length=1, max_length=MAX_TRUSTED_CAS)]
