"""Errors there and back: what is on the wire, what a hostile peer may make of it."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from nftrust.errors import Code, NftrustError, Reason
from nftrust.rpc.handlers import host_of
from nftrust.rpc.status import MAX_STATUS_BYTES, STATUS_KEY, from_rpc_error, grpc_code, to_status


def wire_error(
    status: status_pb2.Status | bytes | None, code: grpc.StatusCode, details: str = "bare text"
) -> grpc.aio.AioRpcError:
    """What a client catches."""
    raw = status.SerializeToString() if isinstance(status, status_pb2.Status) else status
    trailers = grpc.aio.Metadata() if raw is None else grpc.aio.Metadata((STATUS_KEY, raw))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    sent = NftrustError(reason, "a message", metadata={"field": "name"}, retry_after=3.5)
    error = from_rpc_error(wire_error(to_status(sent, "id"), grpc_code(sent)))
    assert (error.reason, error.remote_reason, error.message) == (reason, reason.name, "a message")
    assert error.metadata == {"field": "name"}
    assert error.code.name == reason.code.name
    retriable = reason.code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)
    assert error.retry_after == (3.5 if retriable else None)


def test_every_code_is_a_grpc_code() -> None:
    for code in Code:
        assert grpc.StatusCode[code.name].value[0] > 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.PEER_UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PEER_UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, Reason.PEER_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.PEER_INCOMPATIBLE),
        (grpc.StatusCode.PERMISSION_DENIED, Reason.PEER_INCOMPATIBLE),
    ],
)
def test_bare_codes_have_a_meaning_and_their_text_stays_out(code: grpc.StatusCode, reason: Reason) -> None:
    error = from_rpc_error(wire_error(None, code, "ipv4:192.0.2.1:443: ssl library text"))
    assert (error.reason, error.message, error.remote_reason) == (reason, reason.meaning, "")


def with_info(reason: str, domain: str) -> status_pb2.Status:
    status = status_pb2.Status(code=14, message="m" * 5000)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain)
    for number in range(100):
        info.metadata[f"{number}" * 50] = "v" * 5000
    status.details.add().Pack(info)
    return status


def test_a_reason_of_a_newer_version_keeps_its_code_and_word() -> None:
    error = from_rpc_error(wire_error(with_info("BRAND_NEW", "nftrust"), grpc.StatusCode.UNAVAILABLE))
    assert (error.reason, error.remote_reason) == (Reason.PEER_UNAVAILABLE, "BRAND_NEW")
    assert len(error.message) <= 512
    assert len(error.metadata) <= 16
    assert all(len(key) <= 64 and len(value) <= 512 for key, value in error.metadata.items())


def test_reasons_of_other_domains_are_not_ours() -> None:
    error = from_rpc_error(wire_error(with_info("PIN_INCORRECT", "example.com"), grpc.StatusCode.UNAVAILABLE))
    assert (error.reason, error.remote_reason) == (Reason.PEER_UNAVAILABLE, "")


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", b"\x1a\x03\x0a\x01\xff"])
def test_a_damaged_status_counts_as_none(raw: bytes) -> None:
    assert from_rpc_error(wire_error(raw, grpc.StatusCode.UNAVAILABLE)).reason is Reason.PEER_UNAVAILABLE


def test_a_damaged_detail_counts_as_none() -> None:
    status = with_info("DEADLINE", "nftrust")
    status.details[0].value = b"\xff\xff"
    assert from_rpc_error(wire_error(status, grpc.StatusCode.UNAVAILABLE)).reason is Reason.PEER_UNAVAILABLE


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 1e12])
def test_retry_times_are_bounded(seconds: float) -> None:
    status = to_status(NftrustError(Reason.RATE_LIMITED, retry_after=seconds))
    error = from_rpc_error(wire_error(status, grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert error.retry_after is not None
    assert 0 <= error.retry_after <= 3600


def test_a_status_always_fits_the_trailers() -> None:
    metadata = {f"{number}" * 60: "é" * 2000 for number in range(100)}
    status = to_status(NftrustError(Reason.INVALID_FIELD, "é" * 10_000, metadata=metadata), "id")
    assert status.ByteSize() <= MAX_STATUS_BYTES
    assert status.code == 3


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:1234", "127.0.0.1"),
        ("ipv6:%5B::1%5D:1234", "::1"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host
