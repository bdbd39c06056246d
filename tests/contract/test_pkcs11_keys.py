"""Token keys in the builders of cryptography, checked by software that knows nothing of tokens."""

from __future__ import annotations

import copy
import datetime
import pickle
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509.oid import NameOID

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, TokenRsaPrivateKey, token_private_key

pytestmark = pytest.mark.token

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "amf.example")])
NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
KEYS = pytest.mark.parametrize("label", ["p256", "p384", "rsa"])
EC_KEYS = pytest.mark.parametrize("label", ["p256", "p384"])


@KEYS
@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_a_csr(token_client: TokenClient, label: str, algorithm: hashes.SHA256, tmp_path: Path) -> None:
    key = token_private_key(token_client, label)
    csr = x509.CertificateSigningRequestBuilder().subject_name(NAME).sign(key, algorithm)
    assert csr.is_signature_valid
    (tmp_path / "csr").write_bytes(csr.public_bytes(Encoding.PEM))
    checked = subprocess.run(
        ["openssl", "req", "-in", tmp_path / "csr", "-verify", "-noout"], check=True, capture_output=True, text=True
    )
    assert "OK" in checked.stdout + checked.stderr


@KEYS
def test_a_certificate_and_a_crl(token_client: TokenClient, label: str, tmp_path: Path) -> None:
    key = token_private_key(token_client, label)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.verify_directly_issued_by(certificate)
    (tmp_path / "ca").write_bytes(certificate.public_bytes(Encoding.PEM))
    subprocess.run(
        ["openssl", "verify", "-check_ss_sig", "-no_check_time", "-CAfile", tmp_path / "ca", tmp_path / "ca"],
        check=True,
        capture_output=True,
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(NOW)
        .next_update(NOW + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    assert crl.is_signature_valid(key.public_key())


def test_an_rsa_pss_certificate_request(token_client: TokenClient) -> None:
    key = token_private_key(token_client, "rsa")
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
    csr = x509.CertificateSigningRequestBuilder().subject_name(NAME).sign(key, hashes.SHA256(), rsa_padding=pss)
    assert csr.is_signature_valid


@EC_KEYS
def test_ec_signatures(token_client: TokenClient, label: str) -> None:
    key = token_private_key(token_client, label)
    assert isinstance(key, TokenEcPrivateKey)
    public = load_der_public_key(token_client.call(op.PublicKey(label)))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert (key.curve.name, key.key_size) == (public.curve.name, public.key_size)
    public.verify(key.sign(b"data", ec.ECDSA(hashes.SHA256())), b"data", ec.ECDSA(hashes.SHA256()))
    prehashed = ec.ECDSA(Prehashed(hashes.SHA384()))
    public.verify(key.sign(bytes(48), prehashed), bytes(48), prehashed)
    with pytest.raises(NftrustError) as caught:
        key.sign(bytes(47), prehashed)
    assert caught.value.reason is Reason.INVALID_FIELD


@pytest.mark.parametrize(
    "chosen",
    [
        padding.PKCS1v15(),
        padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size),
        padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH),
    ],
)
def test_rsa_signatures(token_client: TokenClient, chosen: padding.AsymmetricPadding) -> None:
    key = token_private_key(token_client, "rsa")
    assert isinstance(key, TokenRsaPrivateKey)
    assert key.key_size == 3072
    key.public_key().verify(key.sign(b"data", chosen, hashes.SHA256()), b"data", chosen, hashes.SHA256())


@pytest.mark.parametrize(
    "chosen",
    [
        padding.PSS(padding.MGF1(hashes.SHA256()), 20),
        padding.PSS(padding.MGF1(hashes.SHA512()), 32),
        padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
    ],
)
def test_a_padding_that_the_token_would_not_make_is_refused(
    token_client: TokenClient, chosen: padding.AsymmetricPadding
) -> None:
    """Rather than signed with another padding than was asked for."""
    key = token_private_key(token_client, "rsa")
    assert isinstance(key, TokenRsaPrivateKey)
    with pytest.raises(UnsupportedAlgorithm):
        key.sign(b"data", chosen, hashes.SHA256())


def test_other_hashes_are_refused(token_client: TokenClient) -> None:
    key = token_private_key(token_client, "p256")
    assert isinstance(key, TokenEcPrivateKey)
    for algorithm in (hashes.SHA1(), hashes.SHA3_256(), hashes.SHA224()):
        with pytest.raises(UnsupportedAlgorithm):
            key.sign(b"data", ec.ECDSA(algorithm))


@KEYS
def test_the_private_key_stays_where_it_is(token_client: TokenClient, label: str) -> None:
    key = token_private_key(token_client, label)
    assert copy.copy(key) is key
    assert copy.deepcopy(key) is key
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        key.private_numbers()
    with pytest.raises(TypeError):
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if isinstance(key, TokenEcPrivateKey):
        with pytest.raises(UnsupportedAlgorithm):
            key.exchange(ec.ECDH(), key.public_key())
    else:
        with pytest.raises(UnsupportedAlgorithm):
            key.decrypt(bytes(384), padding.PKCS1v15())


def test_a_missing_key_is_named(token_client: TokenClient) -> None:
    with pytest.raises(NftrustError) as caught:
        token_private_key(token_client, "absent")
    assert caught.value.reason is Reason.KEY_MISSING
    assert "absent" in caught.value.message


def test_the_public_half_is_the_tokens(token_client: TokenClient) -> None:
    for label, kind in (("p256", ec.EllipticCurvePublicKey), ("rsa", rsa.RSAPublicKey)):
        public = token_private_key(token_client, label).public_key()
        assert isinstance(public, kind)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert der == token_client.call(op.PublicKey(label))
