"""Our own CA/RA over gRPC: the first adapter of the CA/RA port."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError

from cmproxy.model import Enrolment, NetworkFunction
from cmproxy.ports import CaRegistration, NfInfo, RegistrationAnswer
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceStub
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.rpc.channel import correlated
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.enrolment_info import verify_enrolment_info

if TYPE_CHECKING:
    from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceAsyncStub

T = TypeVar("T")
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

    async def revoke(self, registration: str) -> None:
        request = pb.RevokeRegistrationRequest(name=registration)
        try:
            await _call(self._stub.RevokeRegistration(request, timeout=self.timeout_seconds, metadata=correlated()))
        except NftrustError as error:
            if error.reason is not Reason.REGISTRATION_ENDED:
                raise

    async def retire(self, nf: NetworkFunction, registrations: Sequence[str]) -> None:
        request = pb.RetireEndEntityRequest(nf_instance_id=nf.nf_instance_id, tenant=nf.tenant, nf_type=nf.nf_type)
        await _call(self._stub.RetireEndEntity(request, timeout=self.timeout_seconds, metadata=correlated()))


async def _call(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from None


def _registration(message: pb.Registration) -> CaRegistration:
    return CaRegistration(
        name=message.name,
        state=_STATES.get(message.state, "expired"),  # type: ignore[arg-type]
        certificate=message.certificate,
        confirm_time=message.confirm_time.ToDatetime(UTC) if message.HasField("confirm_time") else None,
    )
