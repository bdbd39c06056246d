"""A foreign CA/RA's secret in the CM proxy's token: in, wrapped, out for one NF, and no other way out."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import templates
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.cryptoki import CryptokiError
from nftrust.x509.keys import spki
from tests.contract.test_pkcs11_custody import CHANGES, Attacker, attacker
from tests.soft_nf import new_transport_key
from tests.token_fixtures import SharedToken

pytestmark = pytest.mark.token
__all__ = ["attacker"]  # a fixture of the custody tests
# OAEP needs no collision resistance; it is what SoftHSM offers.
OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)


@pytest.fixture
def escrow(shared_token: SharedToken) -> Iterator[str]:
    label = "escrow-" + secrets.token_hex(4)
    shared_token.client.call(op.GenerateSecret(label, "escrow"))
    yield label
    shared_token.client.call(op.DestroyKey(label))


@pytest.fixture
def recipient() -> rsa.RSAPrivateKey:
    return new_transport_key()


@pytest.mark.parametrize("size", [32, 40, 48, 120, 128])
def test_the_secret_arrives(shared_token: SharedToken, escrow: str, recipient: rsa.RSAPrivateKey, size: int) -> None:
    secret = secrets.token_bytes(size)
    blob = shared_token.client.call(op.SealSecret(escrow, secret))
    assert secret not in blob
    for _ in range(2):  # as often as the enrolment is repeated
        wrapped = shared_token.client.call(op.RewrapSecret(escrow, blob, spki(recipient.public_key())))
        assert recipient.decrypt(wrapped, OAEP) == secret


def test_the_nf_s_token_makes_macs_with_it(shared_token: SharedToken, escrow: str) -> None:
    secret = secrets.token_hex(24).encode()
    client: TokenClient = shared_token.client
    blob = client.call(op.SealSecret(escrow, secret))
    wrapped = client.call(op.RewrapSecret(escrow, blob, shared_token.transport_spki))
    made = client.call(op.TransportIakMac(shared_token.labels.transport, wrapped, b"data"))
    assert made == hmac.digest(secret, b"data", hashlib.sha256)


def test_a_changed_or_foreign_blob_is_refused(
    shared_token: SharedToken, escrow: str, recipient: rsa.RSAPrivateKey
) -> None:
    blob = shared_token.client.call(op.SealSecret(escrow, secrets.token_bytes(48)))
    changed = bytes([blob[0] ^ 1]) + blob[1:]
    for wrong in (changed, b"", blob[:-8], secrets.token_bytes(56)):
        with pytest.raises(NftrustError) as caught:
            shared_token.client.call(op.RewrapSecret(escrow, wrong, spki(recipient.public_key())))
        assert caught.value.reason is Reason.STORED_ROW_TAMPERED


@pytest.mark.parametrize("size", [0, 16, 31, 33, 47, 129])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(NftrustError) as caught:
        op.SealSecret("kek", bytes(size))
    assert caught.value.reason is Reason.INVALID_FIELD


def test_the_secret_is_not_in_the_operation_s_text() -> None:
    assert "A" * 32 not in repr(op.SealSecret("kek", b"A" * 32))


@pytest.mark.parametrize("change", [{ck.CKA_DECRYPT: True}, {ck.CKA_SENSITIVE: False}, {ck.CKA_DERIVE: True}])
def test_a_pin_holder_cannot_read_it(
    shared_token: SharedToken, escrow: str, attacker: Attacker, change: dict[int, bool]
) -> None:
    secret = secrets.token_bytes(48)
    blob = shared_token.client.call(op.SealSecret(escrow, secret))
    kek = attacker.key(escrow, ck.CKO_SECRET_KEY)
    with pytest.raises(CryptokiError):
        attacker.unwrap(kek, templates.AES_KEY_WRAP, blob, {**templates.PASSING_ATTRIBUTES, **change})
    passing = attacker.unwrap(kek, templates.AES_KEY_WRAP, blob, templates.PASSING_ATTRIBUTES)
    with pytest.raises(CryptokiError):
        attacker.value(passing)
    with pytest.raises(CryptokiError):
        attacker.decrypt(templates.AES_KEY_WRAP, kek, blob)
    for attributes in CHANGES:
        with pytest.raises(CryptokiError):
            attacker.change(kek, attributes)
