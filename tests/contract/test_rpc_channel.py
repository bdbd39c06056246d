"""Client channels and the preflight, against real TLS servers that demand client certificates."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import grpc.experimental
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.errors import NftrustError, Reason
from nftrust.rpc import FileIdentity, SignerIdentity, fetch_peer_chain, open_channel
from nftrust.rpc.status import from_rpc_error
from tests.contract.rpc_kit import OAM_URI, Kit, get, refusal
from tests.pki import SERVER, Key, Leaf, make_ca, service_leaf

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


#: The NF agent also runs with an older grpcio; its own keys are files.
needs_signer = pytest.mark.skipif(
    not hasattr(grpc.experimental, "ssl_channel_credentials_with_custom_signer"), reason="grpcio is too old"
)


class ElsewhereKey(ec.EllipticCurvePrivateKey):
    """A key object that is not OpenSSL's own, as one in a token: it can only sign, and counts."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.signatures = 0
        self.fail = False

    def sign(self, data: object, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        self.signatures += 1
        if self.fail:
            raise RuntimeError("inner text")
        return self._key.sign(data, signature_algorithm)  # type: ignore[arg-type]

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._key.curve

    @property
    def key_size(self) -> int:
        return self._key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        raise NotImplementedError

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        raise NotImplementedError

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        raise NotImplementedError

    def __copy__(self) -> ElsewhereKey:
        return self

    def __deepcopy__(self, memo: object) -> ElsewhereKey:
        return self


@needs_signer
async def test_a_key_that_only_signs_authenticates_the_client(kit: Kit) -> None:
    leaf = service_leaf(kit.ca, "oam")
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    key = ElsewhereKey(leaf.key)
    async with (
        kit.serving(),
        open_channel(kit.target, trust_roots=kit.ca.pem, identity=SignerIdentity(leaf.chain_pem, key)) as channel,
    ):
        await get(channel)
        await get(channel)
    assert key.signatures == 1


@needs_signer
@pytest.mark.parametrize(
    "make_key",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
)
async def test_other_kinds_of_keys_sign_too(kit: Kit, make_key: Callable[[], Key]) -> None:
    leaf = kit.ca.issue(uri_sans=[OAM_URI], key=make_key())
    identity = SignerIdentity(leaf.chain_pem, leaf.key)
    async with (
        kit.serving(),
        open_channel(kit.target, trust_roots=kit.ca.pem, identity=identity) as channel,
    ):
        await get(channel)


@needs_signer
async def test_a_signer_that_fails_costs_the_call_only(kit: Kit) -> None:
    leaf = service_leaf(kit.ca, "oam")
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    key = ElsewhereKey(leaf.key)
    key.fail = True
    async with (
        kit.serving(),
        open_channel(kit.target, trust_roots=kit.ca.pem, identity=SignerIdentity(leaf.chain_pem, key)) as channel,
    ):
        assert (await refusal(get(channel)))[0] == "UNAVAILABLE"
        key.fail = False
        await get(channel, wait_for_ready=True, timeout=20)


async def test_a_server_under_another_root_or_name_is_refused(kit: Kit) -> None:
    identity = kit.identity(service_leaf(kit.ca, "oam"))
    async with kit.serving():
        for options in (
            {"trust_roots": make_ca("services").pem},
            {"trust_roots": kit.ca.pem, "override_name": "other.example"},
        ):
            async with open_channel(kit.target, identity=identity, **options) as channel:
                assert (await refusal(get(channel)))[0] == "UNAVAILABLE"


async def test_exactly_one_leaf_can_be_the_only_trust_root(kit: Kit) -> None:
    """How the CM proxy dials an NF (security rule 1): another leaf of the same name is refused."""
    identity = kit.identity(service_leaf(kit.ca, "oam"))
    shown = service_leaf(kit.ca, "verifier")
    shown.write(kit.directory, "server")
    async with kit.serving():
        async with open_channel(kit.target, trust_roots=shown.chain_pem, identity=identity) as channel:
            await get(channel)
        other = service_leaf(kit.ca, "verifier")
        async with open_channel(kit.target, trust_roots=other.chain_pem, identity=identity) as channel:
            assert (await refusal(get(channel)))[0] == "UNAVAILABLE"


@pytest.mark.parametrize("roots", [b"", b"  \n"])
async def test_without_trust_roots_there_is_no_channel(roots: bytes) -> None:
    with pytest.raises(NftrustError) as refused:
        open_channel("localhost:1", trust_roots=roots)
    assert refused.value.reason is Reason.CONFIG_INVALID


async def test_a_missing_identity_file_is_typed(kit: Kit) -> None:
    missing = FileIdentity(kit.directory / "no.pem", kit.directory / "no.key")
    with pytest.raises(NftrustError) as refused:
        open_channel("localhost:1", trust_roots=kit.ca.pem, identity=missing)
    assert refused.value.reason is Reason.CONFIG_INVALID


async def test_a_peer_that_is_not_there_is_unavailable(kit: Kit) -> None:
    async with kit.serving():
        pass
    async with open_channel(kit.target, trust_roots=kit.ca.pem) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(channel)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.remote_reason) == (Reason.PEER_UNAVAILABLE, "")
    assert error.transient
    assert "127.0.0.1" not in error.message


# Preflight


@contextlib.asynccontextmanager
async def tls_server(directory: Path, leaf: Leaf, *, old: bool = False) -> AsyncIterator[int]:
    """An OpenSSL server that demands a client certificate, or an ``old`` one that speaks TLS 1.2 and does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*leaf.write(directory, "preflight"))
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def plain_server(serve: Serve) -> AsyncIterator[int]:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_preflight_reads_the_leaf_of_a_grpc_server_that_demands_certificates(kit: Kit) -> None:
    root = make_ca("day-0 root")
    leaf = root.intermediate("day-0 issuing").issue(uri_sans=["urn:uuid:x"], dns_sans=["x.day0"], eku=[SERVER])
    certificate, key = leaf.write(kit.directory, "day0")
    tls = ServerTlsConfig(certificate=certificate, private_key=key, client_ca=kit.directory / "services-ca.pem")
    async with kit.serving(ListenerConfig(address="127.0.0.1:0", tls=tls)):
        for host in ("127.0.0.1", "localhost"):
            chain = await fetch_peer_chain(host, kit.port, 10)
            assert chain == [leaf.certificate, *leaf.intermediates]
    assert kit.observed == []


async def test_preflight_reads_an_openssl_server(kit: Kit) -> None:
    leaf = make_ca("day-0").issue(dns_sans=["x"])
    async with tls_server(kit.directory, leaf) as port:
        assert await fetch_peer_chain("127.0.0.1", port, 10) == [leaf.certificate]


async def unreachable(port: int, timeout: float = 10.0, host: str = "127.0.0.1") -> str:
    with pytest.raises(NftrustError) as refused:
        await fetch_peer_chain(host, port, timeout)
    assert refused.value.reason is Reason.NF_UNREACHABLE
    return refused.value.metadata["cause"]


async def test_preflight_refuses_older_tls(kit: Kit) -> None:
    leaf = make_ca("day-0").issue(dns_sans=["x"])
    async with tls_server(kit.directory, leaf, old=True) as port:
        # asyncio's server closes without an alert.
        assert await unreachable(port) in ("handshake", "closed")


async def test_preflight_says_why_it_failed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def not_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.close()

    async with plain_server(silent) as port:
        assert await unreachable(port, timeout=0.1) == "timeout"
    async with plain_server(not_tls) as port:
        assert await unreachable(port) == "handshake"
    async with plain_server(closing) as port:
        assert await unreachable(port) == "closed"
    assert await unreachable(port) == "connect"
    assert await unreachable(port, host="a" * 70) == "connect"


async def test_preflight_is_bounded_in_size(kit: Kit) -> None:
    """OpenSSL itself would take certificates of 100 kB."""
    names = [f"name-{number:04}.{'x' * 40}.example" for number in range(1400)]
    leaf = make_ca("day-0").issue(dns_sans=names)
    assert 64 * 1024 < len(leaf.certificate.public_bytes(serialization.Encoding.DER)) < 100 * 1000
    async with tls_server(kit.directory, leaf) as port:
        assert await unreachable(port) == "handshake"


async def test_preflight_refuses_a_long_chain(kit: Kit) -> None:
    authority = make_ca("day-0")
    for level in range(6):
        authority = authority.intermediate(f"level {level}")
    async with tls_server(kit.directory, authority.issue(dns_sans=["x"])) as port:
        with pytest.raises(NftrustError) as refused:
            await fetch_peer_chain("127.0.0.1", port, 10)
    assert refused.value.reason is Reason.DAY0_CERTIFICATE_INVALID
