"""The attestation verifier over gRPC; the CM proxy is the Relying Party (RFC 9334)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, cast

import grpc

from cmproxy.model import NetworkFunction
from nftrust.api.verifier.v1 import attestation_result_service_pb2 as pb
from nftrust.api.verifier.v1.attestation_result_service_pb2_grpc import AttestationResultServiceStub
from nftrust.clock import Clock
from nftrust.errors import Code, NftrustError, Reason
from nftrust.rpc.channel import correlated
from nftrust.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from nftrust.api.verifier.v1.attestation_result_service_pb2_grpc import AttestationResultServiceAsyncStub


@dataclass(frozen=True, slots=True)
class GrpcVerifierPort:
    """Asks for the NF's attestation result; without a verifier there is none."""

    channel: grpc.aio.Channel | None
    clock: Clock
    timeout_seconds: float

    async def require_affirming(self, nf: NetworkFunction) -> str:
        """Raises NftrustError(ATTESTATION_RESULT_MISSING) unless the result is affirming, alive and for this key."""
        if self.channel is None:
            raise NftrustError(Reason.ATTESTATION_RESULT_MISSING, "no verifier is configured")
        request = pb.GetAttestationResultRequest(name=f"attestationResults/{nf.nf_instance_id}")
        stub = cast("AttestationResultServiceAsyncStub", AttestationResultServiceStub(self.channel))
        try:
            result: pb.AttestationResult = await stub.GetAttestationResult(
                request, timeout=self.timeout_seconds, metadata=correlated()
            )
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            if error.reason.code is Code.NOT_FOUND:
                raise NftrustError(Reason.ATTESTATION_RESULT_MISSING) from None
            raise error from None
        expected = nf.expected_transport_key
        alive = result.HasField("expire_time") and result.expire_time.ToDatetime(UTC) > self.clock.now()
        # A key that is only pinned at first contact cannot be attested before it is known.
        if result.status != pb.AttestationResult.AFFIRMING or not alive or expected is None:
            raise NftrustError(Reason.ATTESTATION_RESULT_MISSING, "there is no affirming result for this NF")
        if result.transport_key_sha256 != expected:
            raise NftrustError(Reason.ATTESTATION_RESULT_MISSING, "the result is for another transport key")
        return f"affirming under policy {result.policy_version[:64]}"
