"""Between protobuf and the domain; nothing else does it."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cmproxy.model import Enrolment, NetworkFunction, State
from cmproxy.ports import ForeignCredential
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason, invalid_field
from nftrust.messages import DeliveryMode

_MODES: dict[int, DeliveryMode] = {
    pb.IAK_DELIVERY_MODE_UNSPECIFIED: "wrapped",
    pb.IAK_DELIVERY_MODE_WRAPPED: "wrapped",
    pb.IAK_DELIVERY_MODE_TLS_ONLY: "tls-only",
}
_PB_MODES = {"wrapped": pb.IAK_DELIVERY_MODE_WRAPPED, "tls-only": pb.IAK_DELIVERY_MODE_TLS_ONLY}
_STATES = {state: pb.Enrolment.State.Value(state.name) for state in State}
#: What an update mask may name.
MUTABLE_FIELDS = (
    "nf_type",
    "fqdns",
    "agent_endpoint",
    "day0_root",
    "transport_key_sha256",
    "pin_transport_key_on_first_contact",
    "attestation",
    "iak_delivery_mode",
    "certificate_profile",
    "re_enrol_after_expiry",
)


def timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def network_function(message: pb.NetworkFunction, now: datetime) -> NetworkFunction:
    """Unchecked but typed. Raises NftrustError(INVALID_FIELD) for an unknown enumeration value."""
    mode = _MODES.get(message.iak_delivery_mode)
    if mode is None:
        raise invalid_field("iak_delivery_mode", "unknown value")
    if message.attestation not in pb.AttestationRequirement.values():
        raise invalid_field("attestation", "unknown value")
    return NetworkFunction(
        nf_instance_id=message.nf_instance_id,
        nf_type=message.nf_type,
        fqdns=tuple(message.fqdns),
        agent_endpoint=message.agent_endpoint,
        tenant=message.tenant,
        day0_root=message.day0_root,
        transport_key_sha256=message.transport_key_sha256 or None,
        pin_on_first_contact=message.pin_transport_key_on_first_contact,
        attestation_required=message.attestation == pb.ATTESTATION_REQUIREMENT_REQUIRED,
        delivery_mode=mode,
        profile=message.certificate_profile,
        re_enrol_after_expiry=message.re_enrol_after_expiry,
        create_time=now,
        update_time=now,
    )


def network_function_message(nf: NetworkFunction) -> pb.NetworkFunction:
    required = pb.ATTESTATION_REQUIREMENT_REQUIRED if nf.attestation_required else pb.ATTESTATION_REQUIREMENT_OFF
    message = pb.NetworkFunction(
        name=nf.name,
        nf_instance_id=nf.nf_instance_id,
        nf_type=nf.nf_type,
        fqdns=nf.fqdns,
        agent_endpoint=nf.agent_endpoint,
        tenant=nf.tenant,
        day0_root=nf.day0_root,
        transport_key_sha256=nf.transport_key_sha256 or b"",
        pin_transport_key_on_first_contact=nf.pin_on_first_contact,
        attestation=required,
        iak_delivery_mode=_PB_MODES[nf.delivery_mode],
        certificate_profile=nf.profile,
        re_enrol_after_expiry=nf.re_enrol_after_expiry,
        etag=nf.etag,
        create_time=timestamp(nf.create_time),
        update_time=timestamp(nf.update_time),
        pinned_transport_key_sha256=nf.expected_transport_key or b"",
        state=pb.NetworkFunction.State.Value(nf.service.name),
    )
    if nf.retire_time is not None:
        message.retire_time.CopyFrom(timestamp(nf.retire_time))
    if nf.retire_reason:
        reason = Reason[nf.retire_reason]
        message.retirement_error.MergeFrom(
            pb.EnrolmentError(reason=reason.name, message=reason.meaning, remedy=reason.remedy)
        )
    return message


def masked(known: NetworkFunction, wanted: pb.NetworkFunction, mask: FieldMask) -> pb.NetworkFunction:
    """``wanted`` with what the mask leaves out taken from ``known``. Raises NftrustError(INVALID_FIELD)."""
    paths = list(mask.paths) or list(MUTABLE_FIELDS)
    if not set(paths) <= set(MUTABLE_FIELDS):
        raise invalid_field("update_mask", "names a field that cannot be changed")
    merged = network_function_message(known)
    for path in paths:
        merged.ClearField(path)  # type: ignore[arg-type]
        if path == "fqdns":
            merged.fqdns.extend(wanted.fqdns)
        else:
            setattr(merged, path, getattr(wanted, path))
    return merged


def enrolment_message(enrolment: Enrolment) -> pb.Enrolment:
    message = pb.Enrolment(
        name=enrolment.name,
        state=_STATES[enrolment.state],
        registration=enrolment.registration,
        certificate=enrolment.certificate,
        attempt=enrolment.attempt,
        create_time=timestamp(enrolment.create_time),
        update_time=timestamp(enrolment.update_time),
    )
    for step in enrolment.steps:
        stamp = Timestamp()
        stamp.FromMicroseconds(step.time)
        message.steps.add(number=step.number, description=step.description, time=stamp)
    if enrolment.problem is not None:
        problem = enrolment.problem
        message.error.reason, message.error.message, message.error.remedy = (
            problem.reason,
            problem.message,
            problem.remedy,
        )
    if enrolment.end_time is not None:
        message.end_time.CopyFrom(timestamp(enrolment.end_time))
    return message


def foreign_credential(request: pb.StartEnrolmentRequest) -> ForeignCredential | None:
    """Unchecked."""
    given = request.foreign_credential
    return ForeignCredential(given.reference, given.secret) if request.HasField("foreign_credential") else None


def without_secret(request: pb.StartEnrolmentRequest) -> pb.StartEnrolmentRequest:
    """For the idempotency hash: not even a hash of the secret is stored."""
    bare = pb.StartEnrolmentRequest()
    bare.CopyFrom(request)
    if request.HasField("foreign_credential"):
        bare.foreign_credential.ClearField("secret")
    return bare


def nf_name(name: str) -> str:
    """The instance id of ``networkFunctions/{id}``. Raises NftrustError(INVALID_FIELD)."""
    collection, _, nf_instance_id = name.partition("/")
    if collection != "networkFunctions" or not nf_instance_id or len(name) > 256 or "/" in nf_instance_id:
        raise invalid_field("name", "networkFunctions/{nf_instance_id}")
    return nf_instance_id


def enrolment_name(name: str) -> tuple[str, str]:
    """Instance id and enrolment id of an enrolment's name. Raises NftrustError(INVALID_FIELD)."""
    parts = name[:257].split("/")
    if len(parts) != 4 or len(name) > 256 or parts[0] != "networkFunctions" or parts[2] != "enrolments":
        raise invalid_field("name", "networkFunctions/{nf_instance_id}/enrolments/{enrolment}")
    return parts[1], parts[3]
