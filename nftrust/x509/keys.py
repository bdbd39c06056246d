"""Key policy: types, sizes, strengths (TS 33.310 clause 6.1.1; NIST SP 800-57 part 1, table 2)."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from nftrust.errors import NftrustError, Reason

NfPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
MIN_RSA_EXPONENT = 65537


def strength(key: object) -> int:
    """Security strength in bits. Raises NftrustError(CSR_KEY_REFUSED) for a key the profile refuses."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, ec.SECP256R1):
            return 128
        if isinstance(key.curve, ec.SECP384R1):
            return 192
    if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e >= MIN_RSA_EXPONENT:
        if 2048 <= key.key_size < 3072:
            return 112
        if 3072 <= key.key_size <= 4096:
            return 128
    raise NftrustError(Reason.CSR_KEY_REFUSED)


def require_certifiable(key: object, issuer: ec.EllipticCurvePublicKey) -> NfPublicKey:
    """``key`` if the profile takes it and the issuer is at least as strong (TS 33.310 clause 6.1.1)."""
    if strength(key) > strength(issuer):
        raise NftrustError(Reason.CSR_KEY_REFUSED, "the key is stronger than the CA's")
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key


def spki(key: NfPublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: NfPublicKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(spki(key)).digest()


def load_transport_key(der: bytes) -> rsa.RSAPublicKey:
    """A transport key: RSA, 3072 to 4096 bits. Raises NftrustError(TRANSPORT_KEY_UNUSABLE)."""
    try:
        key = load_der_public_key(der) if len(der) <= 1024 else None
    except Exception:  # noqa: BLE001 - the parser's own errors are many; all mean the same
        key = None
    if (
        not isinstance(key, rsa.RSAPublicKey)
        or not 3072 <= key.key_size <= 4096
        or key.public_numbers().e < MIN_RSA_EXPONENT
        or spki(key) != der
    ):
        raise NftrustError(Reason.TRANSPORT_KEY_UNUSABLE)
    return key


def signature_hash(key: ec.EllipticCurvePublicKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash an EC CA key of this size signs with."""
    return hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
