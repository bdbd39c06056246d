"""Every operation on a real token, through both kinds of client."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.client import TokenClient
from tests.token_fixtures import SharedToken, opened

pytestmark = pytest.mark.token

HASHES: dict[op.HashName, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@pytest.fixture(params=["in_process", "worker"])
def client(request: pytest.FixtureRequest, shared_token: SharedToken) -> Iterator[TokenClient]:
    """Both kinds of client, on the same token."""
    if request.param == "worker":
        yield shared_token.client
        return
    with opened(TokenClient.in_process, shared_token.config) as client:
        yield client


@pytest.fixture(params=["in_process", "worker"])
def signer(request: pytest.FixtureRequest, signing_token: SharedToken) -> Iterator[TokenClient]:
    """Both kinds of client, on a token of each module."""
    if request.param == "worker":
        yield signing_token.client
        return
    with opened(TokenClient.in_process, signing_token.config) as client:
        yield client


@pytest.fixture
def label(signer: TokenClient) -> Iterator[str]:
    """A label of the test's own; its key is destroyed."""
    name = "test-" + secrets.token_hex(4)
    yield name
    if name in {key.label for key in signer.call(op.ListKeys())}:
        signer.call(op.DestroyKey(name))


def refusal(client: TokenClient, operation: op.Operation[object]) -> Reason:
    with pytest.raises(NftrustError) as caught:
        client.call(operation)
    return caught.value.reason


@pytest.mark.parametrize(("label_of", "size"), [("p256", 32), ("p384", 48)])
@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
def test_ecdsa(signer: TokenClient, label_of: str, size: int, name: op.HashName) -> None:
    digest = hashlib.new(name, b"message").digest()
    raw = signer.call(op.SignDigest(label_of, "ecdsa", name, digest))
    assert len(raw) == 2 * size
    public = load_der_public_key(signer.call(op.PublicKey(label_of)))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = encode_dss_signature(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))
    public.verify(signature, b"message", ec.ECDSA(HASHES[name]))
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"another", ec.ECDSA(HASHES[name]))


@pytest.mark.parametrize("scheme", ["rsa-pss", "rsa-pkcs1v15"])
@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
def test_rsa(signer: TokenClient, scheme: op.Scheme, name: op.HashName) -> None:
    algorithm = HASHES[name]
    digest = hashlib.new(name, b"message").digest()
    signature = signer.call(op.SignDigest("rsa", scheme, name, digest))
    public = load_der_public_key(signer.call(op.PublicKey("rsa")))
    assert isinstance(public, rsa.RSAPublicKey)
    chosen = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if scheme == "rsa-pss" else padding.PKCS1v15()
    public.verify(signature, digest, chosen, Prehashed(algorithm))


def test_macs(signer: TokenClient) -> None:
    mac = signer.call(op.Mac("mac", b"data"))
    assert len(mac) == 32
    assert signer.call(op.VerifyMac("mac", b"data", mac))
    for data, wrong in (
        (b"Data", mac),
        (b"data", bytes(32)),
        (b"data", mac[:-1]),
        (b"data", b""),
        (b"data", mac + b"\0"),
    ):
        assert not signer.call(op.VerifyMac("mac", data, wrong))


def test_an_imported_secret_makes_the_macs_of_its_value(signer: TokenClient, label: str) -> None:
    value = secrets.token_bytes(32)
    signer.call(op.ImportSecret(label, value))
    assert signer.call(op.Mac(label, b"data")) == hmac.digest(value, b"data", "sha256")


def test_an_iak_proves_on_both_sides(client: TokenClient, shared_token: SharedToken) -> None:
    minted = client.call(op.MintIak("kek", shared_token.transport_spki))
    assert (len(minted.vault_blob), len(minted.delivery)) == (op.VAULT_BLOB_BYTES, 384)
    mac = client.call(op.TransportIakMac("transport", minted.delivery, b"request"))
    assert client.call(op.VerifyIakMac("kek", minted.vault_blob, b"request", mac))
    assert not client.call(op.VerifyIakMac("kek", minted.vault_blob, b"Request", mac))
    assert not client.call(op.VerifyIakMac("kek", minted.vault_blob, b"request", mac[:16]))
    other = client.call(op.MintIak("kek", shared_token.transport_spki))
    assert not client.call(op.VerifyIakMac("kek", other.vault_blob, b"request", mac))


def test_an_iak_in_clear_is_the_one_in_the_vault(client: TokenClient) -> None:
    minted = client.call(op.MintIak("kek", None))
    assert len(minted.delivery) == op.IAK_BYTES
    mac = hmac.digest(minted.delivery, b"request", "sha256")
    assert client.call(op.VerifyIakMac("kek", minted.vault_blob, b"request", mac))
    with pytest.raises(Exception):  # noqa: B017 - whatever pyca says: the KEK is not the IAK
        aes_key_unwrap(minted.delivery, minted.vault_blob)


def test_a_foreign_recipient_can_open_the_delivery(client: TokenClient) -> None:
    recipient = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    spki = recipient.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    minted = client.call(op.MintIak("kek", spki))
    iak = recipient.decrypt(minted.delivery, padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))
    assert client.call(op.VerifyIakMac("kek", minted.vault_blob, b"x", hmac.digest(iak, b"x", "sha256")))


@pytest.mark.parametrize("position", [0, 7, 8, 39])
def test_a_tampered_blob_is_named_and_costs_nothing_else(
    client: TokenClient, shared_token: SharedToken, position: int
) -> None:
    minted = client.call(op.MintIak("kek", shared_token.transport_spki))
    mac = client.call(op.TransportIakMac("transport", minted.delivery, b"x"))
    blob = bytearray(minted.vault_blob)
    blob[position] ^= 1
    assert refusal(client, op.VerifyIakMac("kek", bytes(blob), b"x", mac)) is Reason.STORED_ROW_TAMPERED
    assert client.available
    assert client.call(op.VerifyIakMac("kek", minted.vault_blob, b"x", mac))


@pytest.mark.parametrize("length", [0, 24, 32, 39, 48])
def test_a_blob_of_another_length_is_tampered_with(client: TokenClient, length: int) -> None:
    assert refusal(client, op.VerifyIakMac("kek", bytes(length), b"x", bytes(32))) is Reason.STORED_ROW_TAMPERED


def test_a_delivery_for_another_key_is_refused(client: TokenClient, shared_token: SharedToken) -> None:
    minted = client.call(op.MintIak("kek", shared_token.transport_spki))
    for delivery in (bytes(384), b"\xff" * 384, minted.delivery[:-1], minted.delivery[::-1], b"", bytes(512)):
        assert refusal(client, op.TransportIakMac("transport", delivery, b"x")) is Reason.ENROLMENT_INFO_INVALID
    assert client.available


def test_a_recipient_that_is_no_transport_key_is_refused(client: TokenClient) -> None:
    assert refusal(client, op.MintIak("kek", b"garbage")) is Reason.TRANSPORT_KEY_UNUSABLE
    assert refusal(client, op.MintIak("kek", client.call(op.PublicKey("p256")))) is Reason.TRANSPORT_KEY_UNUSABLE


def test_a_key_does_only_what_it_is_for(signer: TokenClient) -> None:
    """A label of another kind is as good as none."""
    for operation in (
        op.SignDigest("absent", "ecdsa", "sha256", bytes(32)),
        op.SignDigest("transport", "rsa-pss", "sha256", bytes(32)),
        op.SignDigest("rsa", "ecdsa", "sha256", bytes(32)),
        op.SignDigest("p256", "rsa-pss", "sha256", bytes(32)),
        op.SignDigest("mac", "ecdsa", "sha256", bytes(32)),
        op.Mac("kek", b""),
        op.Mac("p256", b""),
        op.MintIak("mac", None),
        op.MintIak("transport", None),
        op.VerifyIakMac("mac", bytes(40), b"", bytes(32)),
        op.TransportIakMac("rsa", bytes(384), b""),
        op.PublicKey("absent"),
        op.PublicKey("kek"),
        op.DestroyKey("absent"),
    ):
        assert refusal(signer, operation) is Reason.KEY_MISSING, operation


def test_a_label_is_given_once(signer: TokenClient, label: str) -> None:
    spki = signer.call(op.GenerateKeyPair(label, "ec-p256"))
    for operation in (
        op.GenerateKeyPair(label, "ec-p256"),
        op.GenerateKeyPair("mac", "ec-p256"),
        op.GenerateSecret("p256", "mac"),
        op.GenerateSecret(label, "mac"),
        op.ImportSecret(label, bytes(32)),
    ):
        assert refusal(signer, operation) is Reason.KEY_EXISTS, operation
    assert signer.call(op.PublicKey(label)) == spki


def test_a_destroyed_key_is_gone_and_its_label_free(signer: TokenClient, label: str) -> None:
    first = signer.call(op.GenerateKeyPair(label, "ec-p256"))
    signer.call(op.SignDigest(label, "ecdsa", "sha256", bytes(32)))
    signer.call(op.DestroyKey(label))
    assert refusal(signer, op.SignDigest(label, "ecdsa", "sha256", bytes(32))) is Reason.KEY_MISSING
    assert refusal(signer, op.PublicKey(label)) is Reason.KEY_MISSING
    second = signer.call(op.GenerateKeyPair(label, "ec-p384"))
    assert first != second
    assert len(signer.call(op.SignDigest(label, "ecdsa", "sha256", bytes(32)))) == 96


def test_the_list_names_private_and_secret_keys(client: TokenClient) -> None:
    assert client.call(op.ListKeys()) == [
        op.KeyInfo("kek", "secret"),
        op.KeyInfo("mac", "secret"),
        op.KeyInfo("p256", "private"),
        op.KeyInfo("p384", "private"),
        op.KeyInfo("rsa", "private"),
        op.KeyInfo("transport", "private"),
    ]


def test_the_probe_finds_what_softhsm_is_known_to_do(client: TokenClient) -> None:
    """SoftHSM 2.6.1: templates enforced, OAEP by SHA-1 only, ECDH without a key derivation only."""
    assert client.call(op.ProbeCustody()) == op.CustodyReport(True, ["sha1"], ["null"])


async def test_one_bad_operation_leaves_the_rest_of_its_batch_good(
    client: TokenClient, shared_token: SharedToken
) -> None:
    minted = await client.run(op.MintIak("kek", shared_token.transport_spki))
    good = op.SignDigest("p256", "ecdsa", "sha256", bytes(32))
    bad: list[op.Operation[object]] = [
        op.VerifyIakMac("kek", bytes(40), b"", bytes(32)),
        op.TransportIakMac("transport", bytes(384), b""),
        op.Mac("absent", b""),
        op.MintIak("kek", b"garbage"),
        op.TransportIakMac("transport", minted.delivery, b"", "sha256"),
    ]
    mixed = [operation for pair in zip([good] * len(bad), bad, strict=True) for operation in pair] + [good]
    results = await asyncio.gather(*(client.run(operation) for operation in mixed), return_exceptions=True)
    assert all(isinstance(result, bytes) for result in results[::2])
    reasons = [result.reason for result in results[1::2] if isinstance(result, NftrustError)]
    assert reasons == [
        Reason.STORED_ROW_TAMPERED,
        Reason.ENROLMENT_INFO_INVALID,
        Reason.KEY_MISSING,
        Reason.TRANSPORT_KEY_UNUSABLE,
        Reason.TOKEN_INCAPABLE,
    ]
    assert client.available


async def test_run_all_gives_results_in_order_or_the_first_error(client: TokenClient) -> None:
    mac = await client.run(op.Mac("mac", b"a"))
    assert await client.run_all([op.VerifyMac("mac", b"a", mac), op.Mac("mac", b"a")]) == [True, mac]
    with pytest.raises(NftrustError) as caught:
        await client.run_all([op.Mac("mac", b"a"), op.Mac("absent", b"a")])
    assert caught.value.reason is Reason.KEY_MISSING


def test_many_threads_share_a_client(signer: TokenClient) -> None:
    futures = [signer.submit([op.Mac("mac", str(number % 7).encode())]) for number in range(500)]
    results = [future.result(30)[0] for future in futures]
    assert len(set(results)) == 7
    assert results[0] == results[7]
