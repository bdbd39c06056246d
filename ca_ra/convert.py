"""Between protobuf and the domain; nothing else does it."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp

from ca_ra.authority import KnownCa
from ca_ra.model import IssuedCertificate, PublishedCrl, Registered, Registration, Revocation
from ca_ra.registration import RegistrationRequest
from ca_ra.retirement_store import EndEntity
from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.errors import invalid_field
from nftrust.identity import parse_nf_instance_id, parse_nf_type
from nftrust.messages import DeliveryMode
from nftrust.x509.crl import RevocationReason

_MODES: dict[pb.IakDeliveryMode.ValueType, DeliveryMode] = {
    pb.IAK_DELIVERY_MODE_WRAPPED: "wrapped",
    pb.IAK_DELIVERY_MODE_TLS_ONLY: "tls-only",
}
MAX_TENANT = 64
_PB_MODES = {mode: value for value, mode in _MODES.items()}


def timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def registration_request(message: pb.RegisterEndEntityRequest) -> RegistrationRequest:
    """Unchecked but typed. Raises NftrustError(INVALID_FIELD)."""
    mode = _MODES.get(message.iak_delivery_mode)
    if mode is None:
        raise invalid_field("iak_delivery_mode", "required")
    return RegistrationRequest(
        nf_instance_id=message.nf_instance_id,
        nf_type=message.nf_type,
        fqdns=tuple(message.fqdns),
        tenant=message.tenant,
        profile=message.certificate_profile,
        delivery_mode=mode,
        nf_statement=message.nf_statement,
        day0_chain=tuple(message.day0_chain),
        day0_root=message.day0_root,
        request_id=message.request_id,
        allow_re_enrolment=message.allow_re_enrolment,
        replaces_instance=message.replaces_instance,
        request_sha256=jose.sha256(message.SerializeToString(deterministic=True)),
    )


def end_entity(message: pb.RetireEndEntityRequest) -> EndEntity:
    """Raises NftrustError(INVALID_NF_INSTANCE_ID, INVALID_NF_TYPE, INVALID_FIELD)."""
    if not 1 <= len(message.tenant) <= MAX_TENANT:
        raise invalid_field("tenant", f"1 to {MAX_TENANT} characters")
    return EndEntity(parse_nf_instance_id(message.nf_instance_id), message.tenant, parse_nf_type(message.nf_type))


def registration_message(registration: Registration, now: datetime) -> pb.Registration:
    message = pb.Registration(
        name=registration.name,
        state=pb.Registration.State.Value(registration.state(now).name),
        nf_instance_id=registration.identity.nf_instance_id,
        nf_type=registration.identity.nf_type,
        fqdns=registration.identity.fqdns,
        tenant=registration.tenant,
        certificate_profile=registration.profile,
        iak_delivery_mode=_PB_MODES[registration.delivery_mode],
        transport_key_sha256=registration.transport_key_sha256,
        create_time=timestamp(registration.create_time),
        expire_time=timestamp(registration.expire_time),
    )
    if registration.certificate_serial is not None:
        message.certificate = f"certificates/{registration.certificate_serial}"
    if registration.issue_time is not None:
        message.issue_time.CopyFrom(timestamp(registration.issue_time))
    if registration.confirm_time is not None:
        message.confirm_time.CopyFrom(timestamp(registration.confirm_time))
    return message


def registered_message(registered: Registered, now: datetime) -> pb.RegisterEndEntityResponse:
    return pb.RegisterEndEntityResponse(
        registration=registration_message(registered.registration, now),
        enrolment_info=registered.enrolment_info,
        iak=registered.clear_iak or b"",
    )


def certificate_message(
    certificate: IssuedCertificate, revocation: Revocation | None = None
) -> certificate_pb.Certificate:
    message = certificate_pb.Certificate(
        name=certificate.name,
        nf_instance_id=certificate.nf_instance_id,
        registration=f"registrations/{certificate.registration_id}",
        pem=pem(x509.load_der_x509_certificate(certificate.der)),
        not_before=timestamp(certificate.not_before),
        not_after=timestamp(certificate.not_after),
        create_time=timestamp(certificate.create_time),
    )
    if certificate.predecessor is not None:
        message.predecessor = f"certificates/{certificate.predecessor}"
    if certificate.confirm_time is not None:
        message.confirm_time.CopyFrom(timestamp(certificate.confirm_time))
    if revocation is not None:
        message.revoke_time.CopyFrom(timestamp(revocation.time))
        message.revocation_reason = certificate_pb.RevocationReason.ValueType(revocation.reason + 1)
    return message


def revocation_reason(value: int) -> RevocationReason:
    """CRLReason is the value less one. Raises NftrustError(INVALID_FIELD) where it is none, or not given."""
    try:
        return RevocationReason(value - 1)
    except ValueError:
        raise invalid_field("reason", "one of RevocationReason") from None


def expire_before(request: certificate_pb.ListCertificatesRequest) -> datetime | None:
    """Raises NftrustError(INVALID_FIELD)."""
    if not request.HasField("expire_before"):
        return None
    try:
        return request.expire_before.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid_field("expire_before", "a time that there is") from None


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def resource_id(name: str, collection: str) -> str:
    """The id of ``{collection}/{id}``. Raises NftrustError(INVALID_FIELD)."""
    found, _, identifier = name.partition("/")
    if found != collection or not 1 <= len(identifier) <= 64 or "/" in identifier:
        raise invalid_field("name", f"{collection}/{{id}}")
    return identifier


def issuing_ca_message(known: KnownCa, crl: PublishedCrl | None) -> certificate_pb.IssuingCa:
    """A generation of the CA and how it stands."""
    authority, stored = known.authority, known.stored
    message = certificate_pb.IssuingCa(
        generation=authority.generation,
        state=certificate_pb.IssuingCa.State.Value(known.state.name),
        ca_id=authority.ca_id,
        issuing_ca_pem=pem(authority.chain[0]),
        root_ca_pem=pem(authority.chain[-1]),
        crl_url=authority.issuer.crl_url,
        activate_after=timestamp(stored.activate_after),
    )
    if crl is not None:
        message.crl_next_update.CopyFrom(timestamp(crl.next_update))
    if stored.activate_time is not None:
        message.activate_time.CopyFrom(timestamp(stored.activate_time))
    if stored.retire_time is not None:
        message.retire_time.CopyFrom(timestamp(stored.retire_time))
    return message
