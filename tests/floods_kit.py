"""Floods against a listener: what hostile or broken peers send, each bounded in count and ended with its block.

Everything goes to loopback. A flood keeps its connections open until its block
ends, so that what the listener holds for them can be seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

#: The HTTP/2 connection preface and an empty SETTINGS frame (RFC 9113 clauses 3.4, 6.5).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
#: The first bytes of a TLS ClientHello whose rest never comes.
HALF_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """A TLS listener on loopback. ``client`` are certificate and key where it wants mutual TLS."""

    host: str
    port: int
    roots: Path
    client: tuple[Path, Path] | None = None

    def tcp(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=CONNECT_SECONDS)

    def tls(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.roots))
        context.set_alpn_protocols(["h2"])
        if self.client is not None:
            context.load_cert_chain(*map(str, self.client))
        return context.wrap_socket(self.tcp(), server_hostname=self.host)


def silent(target: Target) -> socket.socket:
    """Connects and says nothing."""
    return target.tcp()


def half_hello(target: Target) -> socket.socket:
    connection = target.tcp()
    connection.sendall(HALF_HELLO)
    return connection


def plaintext(target: Target) -> socket.socket:
    connection = target.tcp()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


def garbage(target: Target) -> socket.socket:
    connection = target.tcp()
    connection.sendall(os.urandom(512))
    return connection


def half_preface(target: Target) -> socket.socket:
    connection = target.tls()
    connection.sendall(PREFACE[:20])
    return connection


def half_body(target: Target) -> socket.socket:
    """A gRPC call whose message is announced and never sent."""
    connection = target.tls()
    connection.sendall(
        PREFACE + _headers(b"/nftrust.api.ca_ra.v1.EnrolmentService/EnrolCertificate") + _frame(0, 0, 1, b"\0")
    )
    return connection


def garbage_frames(target: Target) -> socket.socket:
    connection = target.tls()
    connection.sendall(PREFACE + os.urandom(2048))
    return connection


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 clause 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _headers(path: bytes) -> bytes:
    """A HEADERS frame of literal fields without indexing (RFC 7541 clause 6.2.2)."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    block = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
    return _frame(1, 4, 1, block)


BELOW_GRPC: tuple[Callable[[Target], socket.socket], ...] = (
    silent,
    half_hello,
    plaintext,
    garbage,
    half_preface,
    half_body,
    garbage_frames,
)


@contextmanager
def flood(target: Target, kind: Callable[[Target], socket.socket], count: int) -> Iterator[None]:
    """``count`` connections of this kind, open for the block. Those that the listener refuses are let go."""
    with ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError):
                stack.enter_context(kind(target))
        yield
