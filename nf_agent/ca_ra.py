"""The CA/RA's EnrolmentService over gRPC, as the procedure's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self, cast

import grpc

from nf_agent.acceptance import AcceptedInfo
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.errors import NftrustError, Reason
from nftrust.messages import EnrolmentInfo
from nftrust.rpc.channel import correlated, open_channel
from nftrust.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceAsyncStub


class GrpcEnrolmentPort:
    """Tries the endpoints of the enrolment information in turn; stays connected to the one that answered.

    For one attempt: ``async with`` closes the connection.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._connected: tuple[str, grpc.aio.Channel] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._disconnect()

    async def enrol(self, accepted: AcceptedInfo, proof: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.EnrolCertificateRequest(proof=proof)
            return (
                await stub.EnrolCertificate(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(accepted.info, call)

    async def renew(self, accepted: AcceptedInfo, proof: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.RenewCertificateRequest(proof=proof)
            return (
                await stub.RenewCertificate(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(accepted.info, call)

    async def confirm(self, accepted: AcceptedInfo, proof: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.ConfirmCertificateRequest(proof=proof)
            return (
                await stub.ConfirmCertificate(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(accepted.info, call)

    async def trust_bundle(self, info: EnrolmentInfo, nonce: bytes, ca_id: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.GetTrustBundleRequest(nonce=nonce, ca_id=ca_id)
            return (
                await stub.GetTrustBundle(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(info, call)

    async def _call(self, info: EnrolmentInfo, call: Callable[[EnrolmentServiceAsyncStub], Awaitable[str]]) -> str:
        roots = "".join(info.tls_trust_anchors).encode("ascii", "replace")
        error = NftrustError(Reason.PEER_UNAVAILABLE)
        endpoints = info.endpoints
        if self._connected is not None and self._connected[0] in endpoints:
            endpoints = [self._connected[0], *(each for each in endpoints if each != self._connected[0])]
        for endpoint in endpoints:
            channel = await self._channel(endpoint, roots)
            try:
                return await call(cast("EnrolmentServiceAsyncStub", EnrolmentServiceStub(channel)))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                await self._disconnect()  # gRPC would make the next call wait for its own back-off
                if not error.transient:
                    break
        raise error

    async def _channel(self, endpoint: str, roots: bytes) -> grpc.aio.Channel:
        if self._connected is None or self._connected[0] != endpoint:
            await self._disconnect()
            self._connected = endpoint, open_channel(endpoint, trust_roots=roots, identity=None)
        return self._connected[1]

    async def _disconnect(self) -> None:
        if self._connected is not None:
            channel, self._connected = self._connected[1], None
            await channel.close()
