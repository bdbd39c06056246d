"""Errors on the wire: NftrustError to google.rpc.Status and back (AIP-193)."""

from __future__ import annotations

from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from nftrust.errors import Code, NftrustError, Reason

DOMAIN = "nftrust"
#: Key of the trailing metadata in which gRPC carries a google.rpc.Status.
STATUS_KEY = "grpc-status-details-bin"
DEFAULT_RETRY_SECONDS = 1.0

MAX_TEXT = 512
MAX_METADATA = 16
MAX_STATUS_BYTES = 6 * 1024
MAX_RETRY_SECONDS = 3600.0

_RETRIABLE = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})

#: What a bare status code means that the layers below the application sent.
_BARE_CODES = {
    grpc.StatusCode.UNAVAILABLE: Reason.PEER_UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.PEER_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Reason.PEER_UNAVAILABLE,
    grpc.StatusCode.UNKNOWN: Reason.PEER_UNAVAILABLE,
    grpc.StatusCode.INTERNAL: Reason.PEER_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE,
    grpc.StatusCode.UNIMPLEMENTED: Reason.PEER_INCOMPATIBLE,
}


M = TypeVar("M", bound=Message)


class RemoteError(NftrustError):
    """A refusal by a peer. ``reason`` is the peer's, where this version knows it.

    ``remote_reason`` is the peer's own word (empty where the refusal came from
    below its application), ``code`` the gRPC status code.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        code: grpc.StatusCode,
        remote_reason: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after=retry_after)
        self.code = code
        self.remote_reason = remote_reason


def grpc_code(error: NftrustError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return grpc.StatusCode[error.reason.code.name]


def to_status(error: NftrustError, correlation_id: str = "") -> status_pb2.Status:
    """ErrorInfo always; RetryInfo where a retry helps; BadRequest for a named field; RequestInfo.

    The status is bounded, because gRPC drops a call whose trailers are too large.
    """
    code = error.reason.code
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=error.message[:MAX_TEXT])
    metadata = {key[:64]: value[:MAX_TEXT] for key, value in list(error.metadata.items())[:MAX_METADATA]}
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN, metadata=metadata))
    if code in _RETRIABLE:
        retry = error_details_pb2.RetryInfo()
        seconds = DEFAULT_RETRY_SECONDS if error.retry_after is None else error.retry_after
        retry.retry_delay.FromMilliseconds(int(min(max(seconds, 0.0), MAX_RETRY_SECONDS) * 1000))
        _attach(status, retry)
    if code is Code.INVALID_ARGUMENT and "field" in error.metadata:
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=error.metadata["field"][:64], description=status.message)
        _attach(status, request)
    if correlation_id:
        _attach(status, error_details_pb2.RequestInfo(request_id=correlation_id))
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> RemoteError:
    """The refusal that a call ended with, as one of ours. Never raises."""
    code = error.code()
    status = _read_status(error)
    info = _detail(status, error_details_pb2.ErrorInfo()) if status else None
    if status is None or info is None or info.domain != DOMAIN:
        # The text of a layer below may name addresses and libraries: it stays out of our errors.
        reason = _BARE_CODES.get(code, Reason.PEER_INCOMPATIBLE)
        return RemoteError(reason, reason.meaning, code=code, metadata={"grpc_code": code.name})
    reason = Reason.__members__.get(info.reason) or _BARE_CODES.get(code, Reason.PEER_INCOMPATIBLE)
    retry = _detail(status, error_details_pb2.RetryInfo())
    return RemoteError(
        reason,
        status.message[:MAX_TEXT],
        code=code,
        remote_reason=info.reason[:64],
        metadata={key[:64]: value[:MAX_TEXT] for key, value in list(info.metadata.items())[:MAX_METADATA]},
        retry_after=min(max(retry.retry_delay.ToMilliseconds() / 1000, 0.0), MAX_RETRY_SECONDS) if retry else None,
    )


def _attach(status: status_pb2.Status, detail: Message) -> None:
    """Add a detail unless the status would outgrow the trailers (metadata keys count, hence the slack)."""
    entry = status.details.add()
    entry.Pack(detail)
    if status.ByteSize() > MAX_STATUS_BYTES:
        del status.details[-1]


def _read_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _detail(status: status_pb2.Status, wanted: M) -> M | None:
    """The first detail of the type of ``wanted``, read into it."""
    for entry in status.details:
        if entry.Is(wanted.DESCRIPTOR):
            try:
                entry.Unpack(wanted)
            except DecodeError:
                return None
            return wanted
    return None
