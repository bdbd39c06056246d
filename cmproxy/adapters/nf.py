"""The NF agent over the day-0 channel (security rule 1).

First the NF's leaf is fetched by plain TLS and checked in our code; then gRPC
dials the same address with exactly that leaf as its only trust root.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias, cast

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
from nftrust.jose import MAX_JWS_BYTES
from nftrust.rpc.channel import SignerIdentity, connects, correlated, open_channel
from nftrust.rpc.preflight import fetch_peer
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.day0 import check_day0_chain, check_statement
from nftrust.x509.path import der, pem_chain

if TYPE_CHECKING:
    from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

#: A channel and the leaf that it trusts.
Dialled: TypeAlias = tuple[grpc.aio.Channel, x509.Certificate]

_PHASES = {
    pb.AgentStatus.ARMED: "armed",
    pb.AgentStatus.ENROLLING: "enrolling",
    pb.AgentStatus.CONFIRMED: "confirmed",
    pb.AgentStatus.FAILED: "failed",
    pb.AgentStatus.DELIVERED: "delivered",
}


#: NFs whose leaf is remembered.
MAX_KNOWN = 1024


@dataclass(frozen=True, slots=True)
class Known:
    """The chain that an NF showed (DER, leaf first) and where. It is judged anew for each connection."""

    endpoint: str
    target: str
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GrpcNfPort:
    """Dials NF agents as the CM proxy; its client key may live in a token.

    An NF that was dialled before is dialled with the leaf that it showed then,
    without fetching it again: gRPC takes no other one. Where that fails, the
    leaf is fetched, which also says why.
    """

    identity: SignerIdentity
    day0_roots: Mapping[str, x509.Certificate]
    home_domain: str
    clock: Clock
    timeout_seconds: float
    _known: dict[str, Known] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def connect(self, nf: NetworkFunction) -> AsyncIterator[GrpcNfSession]:
        """Raises NftrustError(NF_UNREACHABLE, DAY0_ROOT_UNKNOWN, DAY0_*, TOKEN_UNAVAILABLE)."""
        root = self.day0_roots.get(nf.day0_root)
        if root is None:
            raise NftrustError(Reason.DAY0_ROOT_UNKNOWN)
        self.identity.check()
        channel, leaf = await self._dial_known(nf, root) or await self._dial(nf, root)
        try:
            stub = cast("AgentServiceAsyncStub", AgentServiceStub(channel))
            yield GrpcNfSession(stub, nf, leaf, self.timeout_seconds)
        finally:
            await channel.close()

    async def _dial_known(self, nf: NetworkFunction, root: x509.Certificate) -> Dialled | None:
        """Connected to the server of the leaf that is remembered, if there is one and it still passes."""
        known = self._known.pop(nf.nf_instance_id, None)
        if known is None or known.endpoint != nf.agent_endpoint:
            return None
        try:
            leaf = self._check(known.chain, root, nf)
        except NftrustError:
            return None
        channel = self._open(known.target, leaf, nf)
        if not await connects(channel, self.timeout_seconds):
            await channel.close()
            return None
        self._remember(nf, known)
        return channel, leaf

    async def _dial(self, nf: NetworkFunction, root: x509.Certificate) -> Dialled:
        """Not yet connected, but to nobody else than the server of the leaf that was fetched and has passed."""
        host, _, port = nf.agent_endpoint.rpartition(":")
        name = day0_name(nf.nf_instance_id, self.home_domain)
        fetched = await fetch_peer(host.strip("[]"), int(port), self.timeout_seconds, server_name=name)
        chain = tuple(der(certificate) for certificate in fetched.chain)
        leaf = self._check(chain, root, nf)
        self._remember(nf, Known(nf.agent_endpoint, fetched.target, chain))
        return self._open(fetched.target, leaf, nf), leaf

    def _check(self, chain: Sequence[bytes], root: x509.Certificate, nf: NetworkFunction) -> x509.Certificate:
        return check_day0_chain(chain, root, nf.nf_instance_id, self.home_domain, self.clock.now())

    def _open(self, target: str, leaf: x509.Certificate, nf: NetworkFunction) -> grpc.aio.Channel:
        name = day0_name(nf.nf_instance_id, self.home_domain)
        return open_channel(
            target,
            trust_roots=pem_chain([leaf]),
            identity=self.identity,
            override_name=name,
            connect_seconds=self.timeout_seconds,  # the NF, or its host, may have much to do
        )

    def _remember(self, nf: NetworkFunction, known: Known) -> None:
        while len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[nf.nf_instance_id] = known


#: The NF makes a key, asks the CA/RA and confirms; under the load of a drill.
RENEWAL_SECONDS = 60.0
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

    async def renew(self) -> bytes:
        try:
            answer: pb.RequestRenewalResponse = await self.stub.RequestRenewal(
                pb.RequestRenewalRequest(), timeout=RENEWAL_SECONDS, metadata=correlated()
            )
        except grpc.aio.AioRpcError as failure:
            raise _refusal(failure) from None
        return answer.certificate_sha256

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
        confirmation=message.confirmation if len(message.confirmation) <= MAX_JWS_BYTES else "",
    )


def _time(message: pb.AgentStatus, name: str) -> datetime | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(UTC)
