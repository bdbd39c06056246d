"""What the agent accepts: enrolment information (step 7) and the CA/RA's responses (step 10).

Pure checks, numbered; no I/O. The agent believes a response only if it is
signed by the response key that step 7 named, so that a stolen TLS key of the
CA/RA cannot plant a trust anchor (security rule 12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from nftrust.messages import (
    RESPONSE_TYP,
    DeliveryMode,
    EnrolmentInfo,
    EnrolResponse,
    Payload,
)
from nftrust.x509 import nftypes
from nftrust.x509.enrolment_info import verify_enrolment_info
from nftrust.x509.keys import NfPublicKey
from nftrust.x509.path import PathInvalid, load_chain, validate_path

_ES256 = frozenset({"ES256"})
P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True)
class AcceptedInfo:
    """Enrolment information that has passed all checks."""

    info: EnrolmentInfo
    #: Issuing CA first, root last.
    ca_chain: tuple[x509.Certificate, ...]
    response_key: ec.EllipticCurvePublicKey
    #: Roots under which a certificate is taken: the delivered one; for a renewal, those of the trust bundle.
    anchors: tuple[x509.Certificate, ...]

    def read_response(self, text: str, url: str, payload_type: type[P]) -> P:
        """A response of the CA/RA, verified. Raises NftrustError(RESPONSE_INVALID)."""
        try:
            jws = jose.split(text, typ=RESPONSE_TYP, url=url, algorithms=_ES256)
            jose.verify(self.response_key, jws)
            return jose.parse_payload(jws, payload_type)
        except NftrustError:
            raise NftrustError(Reason.RESPONSE_INVALID) from None


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the agent knows by itself."""

    nf_instance_id: str
    transport_key_sha256: bytes
    minimum_delivery_mode: DeliveryMode
    #: Preconfigured anchors win over a delivered one; none: whatever is delivered.
    trust_anchors: tuple[x509.Certificate, ...]


def accept_enrolment_info(text: str, expected: Expectations, has_clear_iak: bool, now: datetime) -> AcceptedInfo:
    """The enrolment information, after checks 1 to 5. Raises NftrustError(ENROLMENT_INFO_INVALID)."""

    def refuse(why: str) -> NftrustError:
        return NftrustError(Reason.ENROLMENT_INFO_INVALID, why)

    accepted = recall_enrolment_info(text, expected, now)
    info = accepted.info
    if info.delivery_mode == "tls-only" and expected.minimum_delivery_mode == "wrapped":  # 5: the NF's minimum
        raise refuse("the delivery mode is below the NF's minimum")
    if has_clear_iak != (info.delivery_mode == "tls-only") or bool(info.wrapped_iak) == has_clear_iak:
        raise refuse("the IAK is not delivered as the mode says")
    return accepted


def recall_enrolment_info(text: str, expected: Expectations, now: datetime) -> AcceptedInfo:
    """Information that was accepted at its delivery, whose IAK is gone: checks 1 to 4.

    Raises NftrustError(ENROLMENT_INFO_INVALID).
    """
    verified = verify_enrolment_info(text, expected.trust_anchors, now)  # 1 to 3
    info = verified.info
    if info.nf_instance_id != expected.nf_instance_id:  # 4: for this NF and its transport key
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "it is for another NF")
    if info.transport_key_sha256 != jose.b64url(expected.transport_key_sha256):
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "it is for another transport key")
    return AcceptedInfo(info, verified.ca_chain, verified.response_key, verified.ca_chain[-1:])


def require_alive(accepted: AcceptedInfo, now: datetime) -> None:
    """Raises NftrustError(IAK_EXPIRED)."""
    if now.timestamp() >= accepted.info.expire_time:
        raise NftrustError(Reason.IAK_EXPIRED)


def accept_certificate(
    response: EnrolResponse, accepted: AcceptedInfo, request_sha256: bytes, own_key: NfPublicKey, now: datetime
) -> Sequence[bytes]:
    """The chain (certificate, issuing CA, root; DER) for our key, names and anchor; checks 1 to 5.

    Raises NftrustError(RESPONSE_INVALID).
    """

    def refuse(why: str) -> NftrustError:
        return NftrustError(Reason.RESPONSE_INVALID, why)

    info = accepted.info
    if response.request_sha256 != jose.b64url(request_sha256) or response.registration != info.registration:  # 1
        raise refuse("it answers another request")
    try:
        encoded = jose.b64url_decode(response.certificate)
        issuers = [jose.b64url_decode(ca) for ca in response.ca_certificates]
        [certificate], ca_chain = load_chain([encoded]), load_chain(issuers)
        if ca_chain[-1] not in accepted.anchors:  # 2: the anchor
            raise PathInvalid
        validate_path([certificate, *ca_chain[:-1]], ca_chain[-1:], now)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        types = certificate.extensions.get_extension_for_oid(nftypes.NF_TYPES_OID).value
        assert isinstance(types, x509.UnrecognizedExtension)
        certified_types = nftypes.decode(types.value)
    except (PathInvalid, ValueError, x509.ExtensionNotFound):
        raise refuse("the certificate does not verify") from None
    if certificate.public_key() != own_key:  # 3: our key
        raise refuse("the certificate is for another key")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if urn(info.nf_instance_id) not in uris or set(names.get_values_for_type(x509.DNSName)) != set(info.fqdns):  # 4
        raise refuse("the certificate has other names")
    if certified_types != [info.nf_type]:  # 5
        raise refuse("the certificate has another NF type")
    return [encoded, *issuers]


def utc_now() -> datetime:
    return datetime.now(UTC)
