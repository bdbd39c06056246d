"""AgentService over gRPC: parse, call, convert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from nf_agent.config import AgentConfig
from nf_agent.renewal import InUse, next_renewal
from nf_agent.state import AgentState, Attempt
from nf_agent.validity import condition_of
from nftrust import __version__, jose
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb
from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.messages import IAK_BYTES, STATEMENT_TYP, NfStatement
from nftrust.pkcs11.uri import key_name
from nftrust.rpc.authz import AuthorisationTable, infrastructure
from nftrust.rpc.peer import current_peer
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.x509.path import der

_SERVICE = "/nftrust.api.nf_agent.v1.AgentService/"
_PROXY = frozenset({"cm-proxy"})
TABLE: AuthorisationTable = {
    _SERVICE + "GetAgentInfo": _PROXY,
    _SERVICE + "DeliverEnrolmentInfo": _PROXY,
    _SERVICE + "RequestRenewal": _PROXY,
    _SERVICE + "GetStatus": _PROXY,
    _SERVICE + "WatchStatus": _PROXY,
    **infrastructure(_PROXY),
}
_STATES = {
    "armed": pb.AgentStatus.ARMED,
    "enrolling": pb.AgentStatus.ENROLLING,
    "confirmed": pb.AgentStatus.CONFIRMED,
    "failed": pb.AgentStatus.FAILED,
    "delivered": pb.AgentStatus.DELIVERED,
}
MAX_INFO_BYTES = 48 * 1024


class Deliverable(Protocol):
    """The agent as the CM proxy may use it."""

    @property
    def state(self) -> AgentState: ...

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of ``state``, of its certificate's condition, or of ``pending_hooks``."""
        ...

    @property
    def pending_hooks(self) -> frozenset[str]:
        """Hooks that have yet to tell the NF of the certificate in use."""
        ...

    async def deliver(self, enrolment_info: str, iak: bytes) -> None:
        """Step 7."""
        ...

    async def renew(self) -> bytes:
        """Renew at once; SHA-256 of the new certificate. Raises NftrustError: why not."""
        ...


class AgentServicer(AgentServiceServicer):
    """The NF's side of the day-0 channel."""

    def __init__(
        self,
        agent: Deliverable,
        config: AgentConfig,
        transport_key: bytes,
        day0_key: ec.EllipticCurvePrivateKey,
        day0_chain: Sequence[x509.Certificate],
        trust_anchors: Sequence[x509.Certificate],
    ) -> None:
        self._agent = agent
        self._config = config
        self._cm_proxies = frozenset(config.cm_proxies)
        self._transport_key = transport_key
        self._day0_key = day0_key
        self._day0_chain = [der(certificate) for certificate in day0_chain]
        self._trust_anchor_sha256 = [jose.sha256(der(anchor)) for anchor in trust_anchors]

    async def GetAgentInfo(
        self, request: pb.GetAgentInfoRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.AgentInfo:
        if not 1 <= len(request.enrolment) <= 256:
            raise invalid_field("enrolment", "1 to 256 characters")
        if not 16 <= len(request.nonce) <= 64:
            raise invalid_field("nonce", "16 to 64 bytes")
        state = self._agent.state
        statement = NfStatement(
            nf_instance_id=state.nf_instance_id,
            transport_key=jose.b64url(self._transport_key),
            enrolment=request.enrolment,
            nonce=jose.b64url(request.nonce),
        )
        header = jose.Header(alg=jose.algorithm_for(self._day0_key.public_key()), typ=STATEMENT_TYP)
        return pb.AgentInfo(
            nf_instance_id=state.nf_instance_id,
            transport_key=self._transport_key,
            statement=jose.sign(self._day0_key, header, statement),
            day0_chain=self._day0_chain,
            instantiate_time=_timestamp(state.instantiate_time),
            version=__version__,
            time=_timestamp(time.time()),
            trust_anchor_sha256=self._trust_anchor_sha256,
        )

    async def DeliverEnrolmentInfo(
        self, request: pb.DeliverEnrolmentInfoRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.DeliverEnrolmentInfoResponse:
        if self._cm_proxies and current_peer().uri not in self._cm_proxies:
            raise NftrustError(Reason.PEER_DENIED)
        if not 1 <= len(request.enrolment_info) <= MAX_INFO_BYTES:
            raise invalid_field("enrolment_info", f"1 to {MAX_INFO_BYTES} characters")
        if len(request.iak) not in (0, IAK_BYTES):
            raise invalid_field("iak", f"{IAK_BYTES} bytes or none")
        await self._agent.deliver(request.enrolment_info, request.iak)
        return pb.DeliverEnrolmentInfoResponse()

    async def RequestRenewal(
        self, request: pb.RequestRenewalRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RequestRenewalResponse:
        if self._cm_proxies and current_peer().uri not in self._cm_proxies:
            raise NftrustError(Reason.PEER_DENIED)
        return pb.RequestRenewalResponse(certificate_sha256=await self._agent.renew())

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.AgentStatus:
        return self._status()

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[pb.AgentStatus]:
        told: pb.AgentStatus | None = None
        while True:
            change = self._agent.change
            status = self._status()
            if status != told:
                told = status
                yield status
            await change.wait()

    def _status(self) -> pb.AgentStatus:
        state = self._agent.state
        status = status_of(state)
        if state.current is not None:
            status.certificate.CopyFrom(_certificate_status(state, state.current, self._config))
            status.certificate.pending_hooks.extend(sorted(self._agent.pending_hooks))
        return status


def serve(config: AgentConfig, servicer: AgentServicer) -> RpcServer:
    """The day-0 listener, not yet started."""
    descriptor = pb.DESCRIPTOR.services_by_name["AgentService"]
    binding = ServiceBinding(add_AgentServiceServicer_to_server, servicer, descriptor)
    return RpcServer(config.listener, [binding], TABLE, deployment=config.deployment)


def status_of(state: AgentState) -> pb.AgentStatus:
    """The state of the enrolment as the CM proxy sees it."""
    status = pb.AgentStatus(state=_STATES[state.phase], reason=state.reason)
    attempt = state.attempt
    if attempt is None:
        return status
    status.registration = attempt.registration
    for field in ("csr_time", "request_time", "certificate_time", "confirm_time"):
        seconds = getattr(attempt, field)
        if seconds is not None:
            getattr(status, field).CopyFrom(_timestamp(seconds))
    status.confirmation = attempt.confirmed
    if attempt.chain:
        status.certificate_sha256 = jose.sha256(bytes.fromhex(attempt.chain[0]))
    return status


def _certificate_status(state: AgentState, current: Attempt, config: AgentConfig) -> pb.CertificateStatus:
    used = InUse.of(current)
    status = pb.CertificateStatus(
        serial=f"{used.certificate.serial_number:x}",
        sha256=used.sha256,
        not_before=_timestamp(used.validity.not_before),
        not_after=_timestamp(used.validity.not_after),
        renewal_failures=state.renewal.failures,
        renewal_reason=state.renewal.reason,
        condition=pb.CertificateStatus.Condition.Value(condition_of(state).name),
        key_uri=key_name(config.token, current.key_label),
    )
    due = next_renewal(state, config.renewal.policy)
    if due is not None:
        status.renew_time.CopyFrom(_timestamp(due))
    return status


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1_000_000))
    return stamp
