"""The NF agent over the day-0 channel (security rule 1).

First the NF's leaf is fetched by plain TLS and checked in our code; then gRPC
dials with exactly that leaf as its only trust root.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import grpc
from cryptography import x509
from google.protobuf.timestamp_pb2 import Timestamp

from cmproxy.model import NetworkFunction
from cmproxy.ports import NfInfo, NfStatus
from nftrust.api.nf_agent.v1 import agent_service_pb2 as pb
from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import AgentServiceStub
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.identity import day0_name
from nftrust.rpc.channel import SignerIdentity, correlated, open_channel
from nftrust.rpc.preflight import fetch_peer_chain
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.day0 import check_day0_chain, check_statement
from nftrust.x509.path import der, pem_chain

if TYPE_CHECKING:
    from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

_PHASES = {
    pb.AgentStatus.ARMED: "armed",
    pb.AgentStatus.ENROLLING: "enrolling",
    pb.AgentStatus.CONFIRMED: "confirmed",
    pb.AgentStatus.FAILED: "failed",
    pb.AgentStatus.DELIVERED: "delivered",
}


@dataclass(frozen=True, slots=True)
class GrpcNfPort:
    """Dials NF agents as the CM proxy; its client key may live in a token."""

    identity: SignerIdentity
    day0_roots: Mapping[str, x509.Certificate]
    home_domain: str
    clock: Clock
    timeout_seconds: float

    @contextlib.asynccontextmanager
    async def connect(self, nf: NetworkFunction) -> AsyncIterator[GrpcNfSession]:
        """Raises NftrustError(NF_UNREACHABLE, DAY0_ROOT_UNKNOWN, DAY0_*, TOKEN_UNAVAILABLE)."""
        root = self.day0_roots.get(nf.day0_root)
        if root is None:
            raise NftrustError(Reason.DAY0_ROOT_UNKNOWN)
        self.identity.check()
        host, _, port = nf.agent_endpoint.rpartition(":")
        name = day0_name(nf.nf_instance_id, self.home_domain)
        chain = await fetch_peer_chain(host.strip("[]"), int(port), self.timeout_seconds, server_name=name)
        encoded = [der(certificate) for certificate in chain]
        leaf = check_day0_chain(encoded, root, nf.nf_instance_id, self.home_domain, self.clock.now())
        channel = open_channel(
            nf.agent_endpoint,
            trust_roots=pem_chain([leaf]),
            identity=self.identity,
            override_name=name,
        )
        try:
            stub = cast("AgentServiceAsyncStub", AgentServiceStub(channel))
            yield GrpcNfSession(stub, nf, leaf, self.timeout_seconds)
        finally:
            await channel.close()


#: Not a UUID, so that no registration can be made with a statement over it.
NO_ENROLMENT = "diagnosis"


@dataclass(frozen=True, slots=True)
class NfLook:
    """What a diagnosis sees of an NF."""

    info: pb.AgentInfo
    status: pb.AgentStatus
    transport_key_sha256: bytes
    day0_expire_time: datetime


@dataclass(frozen=True, slots=True)
class GrpcNfSession:
    """A channel pinned to one verified leaf."""

    stub: AgentServiceAsyncStub
    nf: NetworkFunction
    leaf: x509.Certificate
    timeout_seconds: float

    async def info(self, enrolment_id: str, nonce: bytes) -> NfInfo:
        """The NF's statement, checked. Raises NftrustError(NF_STATEMENT_INVALID, TRANSPORT_KEY_UNUSABLE)."""
        answer, transport_key_sha256 = await self._info(enrolment_id, nonce)
        return NfInfo(
            transport_key_sha256=transport_key_sha256,
            statement=answer.statement,
            day0_chain=tuple(answer.day0_chain),
            instantiate_time=answer.instantiate_time.ToDatetime(UTC),
        )

    async def look(self) -> NfLook:
        """What the agent says of itself, for a diagnosis: no enrolment has this name, so the statement is no good."""
        try:
            answer, transport_key_sha256 = await self._info(NO_ENROLMENT, secrets.token_bytes(32))
        except NftrustError as error:
            if error.reason is Reason.NF_UNREACHABLE:  # although it has just shown its certificate
                raise NftrustError(
                    Reason.NF_UNREACHABLE, "the agent does not take the CM proxy's certificate"
                ) from None
            raise
        try:
            status: pb.AgentStatus = await self.stub.GetStatus(pb.GetStatusRequest(), timeout=self.timeout_seconds)
        except grpc.aio.AioRpcError as failure:
            raise _refusal(failure) from None
        return NfLook(answer, status, transport_key_sha256, self.leaf.not_valid_after_utc)

    async def _info(self, enrolment_id: str, nonce: bytes) -> tuple[pb.AgentInfo, bytes]:
        """The answer, its statement checked, and the transport key's SHA-256."""
        request = pb.GetAgentInfoRequest(enrolment=enrolment_id, nonce=nonce)
        try:
            answer: pb.AgentInfo = await self.stub.GetAgentInfo(
                request, timeout=self.timeout_seconds, metadata=correlated()
            )
        except grpc.aio.AioRpcError as failure:
            raise _refusal(failure) from None
        statement = check_statement(answer.statement, self.leaf, self.nf.nf_instance_id, enrolment_id)
        if statement.nonce != nonce:
            raise NftrustError(Reason.NF_STATEMENT_INVALID)
        return answer, statement.transport_key_sha256

    async def deliver(self, enrolment_info: str, iak: bytes) -> None:
        request = pb.DeliverEnrolmentInfoRequest(enrolment_info=enrolment_info, iak=iak)
        try:
            await self.stub.DeliverEnrolmentInfo(request, timeout=self.timeout_seconds, metadata=correlated())
        except grpc.aio.AioRpcError as failure:
            raise _refusal(failure) from None

    async def watch(self) -> AsyncIterator[NfStatus]:
        try:
            async for status in self.stub.WatchStatus(pb.WatchStatusRequest(), metadata=correlated()):
                yield _status(status)
        except grpc.aio.AioRpcError as failure:
            raise _refusal(failure) from None


def _refusal(failure: grpc.aio.AioRpcError) -> NftrustError:
    error = from_rpc_error(failure)
    return NftrustError(Reason.NF_UNREACHABLE) if error.reason is Reason.PEER_UNAVAILABLE else error


def _status(message: pb.AgentStatus) -> NfStatus:
    return NfStatus(
        phase=_PHASES.get(message.state, "armed"),  # type: ignore[arg-type]
        reason=message.reason[:64],
        registration=message.registration[:256],
        csr_time=_time(message, "csr_time"),
        request_time=_time(message, "request_time"),
        certificate_time=_time(message, "certificate_time"),
        confirm_time=_time(message, "confirm_time"),
    )


def _time(message: pb.AgentStatus, name: str) -> datetime | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(UTC)
