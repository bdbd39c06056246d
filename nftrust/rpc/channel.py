"""Client channels: mutual TLS with a key from a file or in a token."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from nftrust.errors import NftrustError, Reason
from nftrust.logs import correlation_id

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A client certificate chain and its key in PEM files; read once, when the channel is opened."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, slots=True)
class SignerIdentity:
    """A client certificate chain (PEM) and a key object that may sign in a token."""

    certificate_chain: bytes
    private_key: PrivateKey
    #: Whether the key can sign now: without it a handshake fails, and that looks as if the peer were away.
    available: Callable[[], bool] = lambda: True

    def check(self) -> None:
        """Raises NftrustError(TOKEN_UNAVAILABLE)."""
        if not self.available():
            raise NftrustError(Reason.TOKEN_UNAVAILABLE, retry_after=1.0)


#: Metadata of a call: the id under which all that belongs to one enrolment is logged, in every role.
CORRELATION_KEY = "x-correlation-id"


def correlated() -> tuple[tuple[str, str], ...]:
    """The metadata of a call that is made on behalf of what this task does."""
    identifier = correlation_id.get()
    return ((CORRELATION_KEY, identifier),) if identifier else ()


def open_channel(
    target: str,
    *,
    trust_roots: bytes,
    identity: FileIdentity | SignerIdentity | None = None,
    override_name: str | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    connect_seconds: float = 0.2,
) -> grpc.aio.Channel:
    """A channel to ``target`` (host:port) that trusts ``trust_roots`` (PEM) and nothing else.

    ``override_name`` is the DNS name expected in the server's certificate
    instead of the target's host. gRPC never looks at URI names: whoever needs
    one checks the certificate before, by :func:`nftrust.rpc.preflight.fetch_peer_chain`.
    Nothing is connected yet. Raises NftrustError(CONFIG_INVALID).
    """
    if not trust_roots.strip():
        # gRPC would fall back to the system's roots.
        raise NftrustError(Reason.CONFIG_INVALID, "a channel needs trust roots")
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnect soon after a restart of the peer; gRPC's default ceiling is two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        # For one attempt, its handshake included, whatever the option is called.
        ("grpc.min_reconnect_backoff_ms", int(connect_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # One connection per channel object: an identity is not shared by accident.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if override_name is not None:
        options.append(("grpc.ssl_target_name_override", override_name))
    return grpc.aio.secure_channel(target, _credentials(trust_roots, identity), options=options)


async def connects(channel: grpc.aio.Channel, timeout: float) -> bool:
    """Whether the channel comes to a connection, its handshake included; False at the first failure."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            state = channel.get_state(try_to_connect=True)
            while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
            return state is grpc.ChannelConnectivity.READY
    return False


def _credentials(trust_roots: bytes, identity: FileIdentity | SignerIdentity | None) -> grpc.ChannelCredentials:
    if identity is None:
        return grpc.ssl_channel_credentials(trust_roots)
    if isinstance(identity, FileIdentity):
        try:
            chain, key = identity.certificate.read_bytes(), identity.private_key.read_bytes()
        except OSError as error:
            raise NftrustError(
                Reason.CONFIG_INVALID, f"client identity {identity.certificate}: {type(error).__name__}"
            ) from None
        return grpc.ssl_channel_credentials(trust_roots, key, chain)
    return _signer_credentials(trust_roots, identity)


def _signer_credentials(trust_roots: bytes, identity: SignerIdentity) -> grpc.ChannelCredentials:
    """Credentials whose handshake signatures come from the key object; needs a recent grpcio."""
    from grpc import experimental

    make = getattr(experimental, "ssl_channel_credentials_with_custom_signer", None)
    if make is None:
        raise NftrustError(Reason.CONFIG_INVALID, "this grpcio cannot use a client key in a token; upgrade it")

    def sign(data: bytes, algorithm: object, complete: Callable[[bytes | Exception], None]) -> Callable[[], None]:
        def work() -> None:
            try:
                complete(sign_handshake(identity.private_key, algorithm_name(algorithm), data))
            except Exception:  # noqa: BLE001 - gRPC must hear of it, whatever it is, but not its text
                complete(RuntimeError("signing failed"))

        _signing_threads().submit(work)
        return lambda: None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", experimental.ExperimentalApiWarning)
        credentials: grpc.ChannelCredentials = make(
            private_key_sign_fn=sign, root_certificates=trust_roots, certificate_chain=identity.certificate_chain
        )
    return credentials


@cache
def _signing_threads() -> ThreadPoolExecutor:
    """Threads of this process that wait for tokens: gRPC's own must not."""
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="tls-signer")


def algorithm_name(algorithm: object) -> str:
    """The name of gRPC's signature algorithm, which reaches the callback as a bare number."""
    from grpc.experimental import PrivateKeySignatureAlgorithm

    return str(PrivateKeySignatureAlgorithm(algorithm).name)


_HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}


def sign_handshake(key: PrivateKey, algorithm: str, data: bytes) -> bytes:
    """A TLS handshake signature over ``data`` by the algorithm of that name (RFC 8446 clause 4.2.3).

    Raises ValueError where key and algorithm do not go together.
    """
    family, _, digest = algorithm.rpartition("_")
    chosen = _HASHES[digest]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if not family.startswith("ECDSA_"):
            raise ValueError("not an algorithm of this key")
        return key.sign(data, ec.ECDSA(chosen))
    if family == "RSA_PKCS1":
        return key.sign(data, padding.PKCS1v15(), chosen)
    if family == "RSA_PSS_RSAE":
        return key.sign(data, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen)
    raise ValueError("not an algorithm of this key")
