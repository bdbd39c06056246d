"""Frames between a client and its token worker: four bytes of length, then msgpack."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from nftrust.config import TokenConfig
from nftrust.pkcs11.backend import Reply
from nftrust.pkcs11.operations import AnyOperation, Failure, Operation, Outcome

MAX_FRAME_BYTES = 1 << 26
_LENGTH = struct.Struct("!I")


class Start(msgspec.Struct, frozen=True):
    """The first frame to a worker. ``parent`` is the process it must not outlive."""

    config: TokenConfig
    parent: int


class Started(msgspec.Struct, frozen=True):
    """The answer to :class:`Start`."""

    failure: Failure | None = None


class _RawOutcome(msgspec.Struct, frozen=True, array_like=True):
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    failure: Failure | None = None


class _RawReply(msgspec.Struct, frozen=True, array_like=True):
    outcomes: list[_RawOutcome]
    lost: str = ""


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_reply_decoder = msgspec.msgpack.Decoder(_RawReply)
_value_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
start_decoder = msgspec.msgpack.Decoder(Start, dec_hook=lambda target, value: target(value))
started_decoder = msgspec.msgpack.Decoder(Started)
batch_decoder = msgspec.msgpack.Decoder(list[AnyOperation])


def encode(message: Start | Started | Reply | Sequence[Operation[Any]]) -> bytes:
    """The body of a frame."""
    return _encoder.encode(message)


def decode_reply(body: bytes, operations: Sequence[Operation[Any]]) -> Reply:
    """A reply, each value decoded as its operation's result. Raises ValueError (msgspec errors are such)."""
    raw = _reply_decoder.decode(body)
    if len(raw.outcomes) != len(operations):
        raise ValueError("a reply to another batch")
    outcomes = [
        Outcome(failure=outcome.failure)
        if outcome.failure
        else Outcome(value=_value_decoder(operation.RESULT).decode(outcome.value))
        for outcome, operation in zip(raw.outcomes, operations, strict=True)
    ]
    return Reply(outcomes, raw.lost)


def _value_decoder(result: Any) -> msgspec.msgpack.Decoder[Any]:
    key = str(result)
    decoder = _value_decoders.get(key)
    if decoder is None:
        decoder = _value_decoders[key] = msgspec.msgpack.Decoder(result)
    return decoder


def send(channel: socket.socket, body: bytes) -> None:
    """Send a frame. Raises OSError."""
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> bytes:
    """The body of the next frame. Raises EOFError at the end, OSError (TimeoutError too), ValueError."""
    (length,) = _LENGTH.unpack(_receive_exactly(channel, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError("frame too large")
    return _receive_exactly(channel, length)


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < size:
        piece = channel.recv(size - len(pieces))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)
