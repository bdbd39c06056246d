"""Fetch a server's certificate chain before trusting it (security rule 1).

gRPC for Python offers no verification callback and never looks at URI names;
so the CM proxy reads the chain first, checks it in our own code, then dials
gRPC with exactly that leaf as the only trust root.

TLS 1.3 only: there the client has the server's chain, and the proof that the
server holds the leaf's key, before the server asks for the client's
certificate; so none is needed here, although NF agents demand one.

The intermediates come from ``get_unverified_chain``, public from Python 3.13
on and present, on the object behind ``ssl.SSLObject``, since 3.10. The
alternatives were an OpenSSL binding of our own or a TLS parser.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography import x509

from nftrust.errors import NftrustError, Reason

MAX_HANDSHAKE_BYTES = 64 * 1024
MAX_CHAIN_LENGTH = 6
_CHUNK = 8 * 1024


@dataclass(frozen=True, slots=True)
class FetchedPeer:
    """What a server showed, and where it was found; nothing of it is trusted yet."""

    #: The leaf certificate first, then what else it sent.
    chain: list[x509.Certificate]
    #: A gRPC target that leads to the same server without asking for its name again.
    target: str


async def fetch_peer_chain(
    host: str, port: int, timeout: float, *, server_name: str | None = None
) -> list[x509.Certificate]:
    """The chain of :func:`fetch_peer`."""
    return (await fetch_peer(host, port, timeout, server_name=server_name)).chain


async def fetch_peer(host: str, port: int, timeout: float, *, server_name: str | None = None) -> FetchedPeer:
    """The server's leaf certificate, then what else it sent, all of it still untrusted.

    ``server_name`` is what the server is asked for (SNI); the host where it is None.

    Raises NftrustError: NF_UNREACHABLE (``metadata["cause"]`` is one of connect,
    timeout, handshake, closed), DAY0_CERTIFICATE_INVALID (no parsable or too long a chain).
    """
    try:
        async with asyncio.timeout(timeout):
            chain, target = await _handshake(host, port, server_name or _server_name(host))
    except TimeoutError:
        raise _unreachable("timeout") from None
    except ssl.SSLError:
        raise _unreachable("handshake") from None
    except (OSError, UnicodeError):
        raise _unreachable("connect") from None
    if not 1 <= len(chain) <= MAX_CHAIN_LENGTH:
        raise NftrustError(Reason.DAY0_CERTIFICATE_INVALID, f"the NF sent {len(chain)} certificates")
    try:
        return FetchedPeer([x509.load_der_x509_certificate(der) for der in chain], target)
    except ValueError:
        raise NftrustError(Reason.DAY0_CERTIFICATE_INVALID, "the NF's certificate cannot be parsed") from None


async def _handshake(host: str, port: int, server_name: str | None) -> tuple[list[bytes], str]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _context().wrap_bio(incoming, outgoing, server_hostname=server_name)
    reader, writer = await asyncio.open_connection(host, port, limit=_CHUNK)
    received = 0
    try:
        while True:
            try:
                tls.do_handshake()
                return _chain(tls), _target(writer.get_extra_info("peername"))
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                await writer.drain()
            data = await reader.read(_CHUNK)
            received += len(data)
            if not data:
                raise _unreachable("closed")
            if received > MAX_HANDSHAKE_BYTES:
                raise _unreachable("handshake")
            incoming.write(data)
    finally:
        # Nothing more is said to this server: our side of the handshake stays unfinished.
        writer.transport.abort()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The chain is judged by the caller, against the one root provisioned for this NF.
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _server_name(host: str) -> str | None:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return None


def _chain(tls: ssl.SSLObject) -> list[bytes]:
    source: Any = tls if hasattr(tls, "get_unverified_chain") else tls._sslobj  # type: ignore[attr-defined]
    certificates = source.get_unverified_chain() or []
    return [
        certificate if isinstance(certificate, bytes) else ssl.PEM_cert_to_DER_cert(certificate.public_bytes())
        for certificate in certificates
    ]


def _target(peername: tuple[Any, ...]) -> str:
    """A socket address in gRPC's spelling of names that need no resolver."""
    address, port = peername[:2]
    return f"ipv6:[{address}]:{port}" if ":" in address else f"ipv4:{address}:{port}"


def _unreachable(cause: str) -> NftrustError:
    return NftrustError(Reason.NF_UNREACHABLE, metadata={"cause": cause})
