"""Our own CA/RA over gRPC: the first adapter of the CA/RA port."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError

from cmproxy.model import Enrolment, NetworkFunction
from cmproxy.ports import CaRegistration, Holding, NfInfo, RegistrationAnswer
from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.api.ca_ra.v1.certificate_service_pb2_grpc import CertificateServiceStub
from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceStub
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.messages import CONFIRM_URL, RESPONSE_TYP, ConfirmResponse
from nftrust.rpc.channel import correlated
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.enrolment_info import verify_enrolment_info

if TYPE_CHECKING:
    from nftrust.api.ca_ra.v1.certificate_service_pb2_grpc import CertificateServiceAsyncStub
    from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceAsyncStub

T = TypeVar("T")
HELD_AT_MOST = 100
_ES256 = frozenset({"ES256"})
_MODES = {
    "wrapped": pb.IAK_DELIVERY_MODE_WRAPPED,
    "tls-only": pb.IAK_DELIVERY_MODE_TLS_ONLY,
}
_STATES = {
    pb.Registration.OPEN: "open",
    pb.Registration.ISSUED: "issued",
    pb.Registration.CONFIRMED: "confirmed",
    pb.Registration.REVOKED: "revoked",
    pb.Registration.EXPIRED: "expired",
}


@dataclass(frozen=True)
class GrpcCaRaPort:
    """Registers at our CA/RA's management listener."""

    channel: grpc.aio.Channel
    #: The operator's root; several during a rollover to another.
    trust_anchors: Sequence[x509.Certificate]
    clock: Clock
    timeout_seconds: float

    @cached_property
    def _certificates(self) -> CertificateServiceAsyncStub:
        return cast("CertificateServiceAsyncStub", CertificateServiceStub(self.channel))

    @cached_property
    def _stub(self) -> RegistrationServiceAsyncStub:
        return cast("RegistrationServiceAsyncStub", RegistrationServiceStub(self.channel))

    async def registration_intent(self, nf: NetworkFunction, enrolment: Enrolment, info: NfInfo) -> bytes:
        request = pb.RegisterEndEntityRequest(
            nf_instance_id=nf.nf_instance_id,
            nf_type=nf.nf_type,
            fqdns=nf.fqdns,
            tenant=nf.tenant,
            certificate_profile=nf.profile,
            iak_delivery_mode=_MODES[nf.delivery_mode],
            nf_statement=info.statement,
            day0_chain=info.day0_chain,
            day0_root=nf.day0_root,
            request_id=enrolment.id,
            allow_re_enrolment=enrolment.allow_re_enrolment,
            replaces_instance=enrolment.replaces_instance,
        )
        return request.SerializeToString(deterministic=True)

    async def register(self, intent: bytes) -> RegistrationAnswer:
        try:
            request = pb.RegisterEndEntityRequest.FromString(intent)
        except DecodeError:
            raise NftrustError(Reason.STATE_CORRUPT) from None
        answer: pb.RegisterEndEntityResponse = await _call(
            self._stub.RegisterEndEntity(request, timeout=self.timeout_seconds, metadata=correlated())
        )
        self._check_info(request, answer)
        custody = "wrapped by the CA/RA's token" if not answer.iak else "in clear, protected by TLS alone"
        return RegistrationAnswer(_registration(answer.registration), answer.enrolment_info, answer.iak, custody)

    def _check_info(self, request: pb.RegisterEndEntityRequest, answer: pb.RegisterEndEntityResponse) -> None:
        """Who holds the CA/RA's TLS key alone cannot have us plant a trust anchor in an NF (security rule 12)."""
        info = verify_enrolment_info(answer.enrolment_info, self.trust_anchors, self.clock.now()).info
        if info.nf_instance_id != request.nf_instance_id or info.registration != answer.registration.name:
            raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "it is for another NF or registration")

    def hands_over(self, registration: str) -> bool:
        return False

    async def get(self, registration: str) -> CaRegistration:
        request = pb.GetRegistrationRequest(name=registration)
        return _registration(
            await _call(self._stub.GetRegistration(request, timeout=self.timeout_seconds, metadata=correlated()))
        )

    def confirmed(self, enrolment: Enrolment, confirmation: str) -> CaRegistration | None:
        try:
            known = verify_enrolment_info(enrolment.enrolment_info, self.trust_anchors, self.clock.now())
            jws = jose.split(confirmation, typ=RESPONSE_TYP, url=CONFIRM_URL, algorithms=_ES256)
            jose.verify(known.response_key, jws)
            response = jose.parse_payload(jws, ConfirmResponse)
            time = datetime.fromtimestamp(response.confirm_time_us / 1_000_000, UTC)
        except (NftrustError, ValueError, OverflowError, OSError):
            return None
        if response.registration != enrolment.registration:
            return None
        return CaRegistration(response.registration, "confirmed", response.certificate, time)

    async def revoke(self, registration: str) -> None:
        request = pb.RevokeRegistrationRequest(name=registration)
        try:
            await _call(self._stub.RevokeRegistration(request, timeout=self.timeout_seconds, metadata=correlated()))
        except NftrustError as error:
            if error.reason is not Reason.REGISTRATION_ENDED:
                raise

    async def holding(self, nf: NetworkFunction) -> Holding:
        """Of the newest certificates; superseded ones end before their successors."""
        request = certificate_pb.ListCertificatesRequest(nf_instance_id=nf.nf_instance_id, page_size=HELD_AT_MOST)
        answer = await _call(
            self._certificates.ListCertificates(request, timeout=self.timeout_seconds, metadata=correlated())
        )
        confirmed = [each for each in answer.certificates if each.HasField("confirm_time")]
        good = [each for each in confirmed if not each.HasField("revoke_time")]
        if not confirmed:
            return Holding(None, revoked=False)
        # A revoked successor is no reason to bring the NF back; a certificate that is good is none either.
        now = self.clock.now()
        alive = [end for end in map(_end, good) if end > now]
        newest = confirmed[0]
        if alive:
            return Holding(max(alive), revoked=False)
        return Holding(_end(newest), revoked=newest.HasField("revoke_time"))

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        request = pb.RetireEndEntityRequest(nf_instance_id=nf.nf_instance_id, tenant=nf.tenant, nf_type=nf.nf_type)
        await _call(self._stub.RetireEndEntity(request, timeout=self.timeout_seconds, metadata=correlated()))


async def _call(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from None


def _end(certificate: certificate_pb.Certificate) -> datetime:
    return certificate.not_after.ToDatetime(UTC)


def _registration(message: pb.Registration) -> CaRegistration:
    return CaRegistration(
        name=message.name,
        state=_STATES.get(message.state, "expired"),  # type: ignore[arg-type]
        certificate=message.certificate,
        confirm_time=message.confirm_time.ToDatetime(UTC) if message.HasField("confirm_time") else None,
    )
