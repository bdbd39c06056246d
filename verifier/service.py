"""AttestationResultService over gRPC, and the rows behind it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, select

from nftrust.api.verifier.v1 import attestation_result_service_pb2 as pb
from nftrust.api.verifier.v1.attestation_result_service_pb2_grpc import AttestationResultServiceServicer
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.identity import parse_nf_instance_id
from nftrust.paging import cut, decode_token, page_size
from nftrust.storage import Store
from verifier.tables import attestation_result

_KIND = "result"
_STATUSES = {
    "affirming": pb.AttestationResult.AFFIRMING,
    "warning": pb.AttestationResult.WARNING,
    "contraindicated": pb.AttestationResult.CONTRAINDICATED,
}
Context = grpc.aio.ServicerContext[Any, Any]


class AttestationResultServicer(AttestationResultServiceServicer):
    """What the verifier knows of each NF."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetAttestationResult(
        self, request: pb.GetAttestationResultRequest, context: Context
    ) -> pb.AttestationResult:
        collection, _, identifier = request.name.partition("/")
        if collection != "attestationResults":
            raise invalid_field("name", "attestationResults/{nf_instance_id}")
        statement = select(attestation_result).where(
            attestation_result.c.nf_instance_id == parse_nf_instance_id(identifier)
        )
        row = await self._store.read(lambda c: c.execute(statement).one_or_none())
        if row is None:
            raise NftrustError(Reason.ATTESTATION_RESULT_NOT_FOUND)
        return _message(row)

    async def ListAttestationResults(
        self, request: pb.ListAttestationResultsRequest, context: Context
    ) -> pb.ListAttestationResultsResponse:
        size = page_size(request.page_size)
        after = decode_token(_KIND, request.page_token)
        statement = select(attestation_result).order_by(attestation_result.c.nf_instance_id).limit(size + 1)
        if after is not None:
            statement = statement.where(attestation_result.c.nf_instance_id > after)
        rows = await self._store.read(lambda c: list(c.execute(statement)))
        page, token = cut(_KIND, rows, size, lambda row: row.nf_instance_id)
        return pb.ListAttestationResultsResponse(
            attestation_results=[_message(row) for row in page], next_page_token=token
        )


def _message(row: Row[Any]) -> pb.AttestationResult:
    return pb.AttestationResult(
        name=f"attestationResults/{row.nf_instance_id}",
        status=_STATUSES[row.status],
        transport_key_sha256=bytes(row.transport_key_sha256),
        policy_version=row.policy_version,
        appraise_time=_timestamp(row.appraise_time),
        expire_time=_timestamp(row.expire_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
