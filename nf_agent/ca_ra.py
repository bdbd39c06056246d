"""The CA/RA's EnrolmentService over gRPC, as the procedure's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import grpc

from nf_agent.acceptance import AcceptedInfo
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.errors import NftrustError, Reason
from nftrust.rpc.channel import correlated, open_channel
from nftrust.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceAsyncStub


@dataclass(frozen=True, slots=True)
class GrpcEnrolmentPort:
    """Tries the endpoints of the enrolment information in turn."""

    timeout_seconds: float

    async def enrol(self, accepted: AcceptedInfo, proof: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.EnrolCertificateRequest(proof=proof)
            return (
                await stub.EnrolCertificate(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(accepted, call)

    async def confirm(self, accepted: AcceptedInfo, proof: str) -> str:
        async def call(stub: EnrolmentServiceAsyncStub) -> str:
            request = pb.ConfirmCertificateRequest(proof=proof)
            return (
                await stub.ConfirmCertificate(request, timeout=self.timeout_seconds, metadata=correlated())
            ).signed_response

        return await self._call(accepted, call)

    async def _call(self, accepted: AcceptedInfo, call: Callable[[EnrolmentServiceAsyncStub], Awaitable[str]]) -> str:
        roots = "".join(accepted.info.tls_trust_anchors).encode("ascii", "replace")
        error = NftrustError(Reason.PEER_UNAVAILABLE)
        for endpoint in accepted.info.endpoints:
            channel = open_channel(endpoint, trust_roots=roots, identity=None)
            try:
                return await call(cast("EnrolmentServiceAsyncStub", EnrolmentServiceStub(channel)))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                if not error.transient:
                    break
            finally:
                await channel.close()
        raise error
