"""Compact JWS (RFC 7515) as nftrust uses it: bounded, fixed algorithms, verified before parsing.

The signature itself is made and checked by the caller's key; this module only
takes the serialisation apart and puts it together.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from nftrust.errors import NftrustError, Reason

Algorithm = Literal["HS256", "ES256", "ES384", "PS256"]
MAX_HEADER_BYTES = 1024
MAX_JWS_BYTES = 64 * 1024

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
T = TypeVar("T")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Protected header (RFC 7515 clause 4.1; ``url`` as RFC 8555 clause 6.4). No ``crit``, no ``jwk``."""

    alg: Algorithm
    typ: str
    kid: str = ""
    url: str = ""


class Jws(msgspec.Struct, frozen=True):
    """A compact JWS taken apart; ``payload`` is still unparsed and unverified."""

    header: Header
    signing_input: bytes
    payload: bytes
    signature: bytes


def b64url(data: bytes) -> str:
    """base64url without padding (RFC 7515 clause 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str | bytes) -> bytes:
    """The strict inverse of :func:`b64url`. Raises ValueError."""
    raw = text.encode("ascii") if isinstance(text, str) else text
    if b"=" in raw or b"+" in raw or b"/" in raw:
        raise ValueError("not base64url")
    try:
        data = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if b64url(data).encode("ascii") != raw:
        raise ValueError("not canonical base64url")
    return data


def split(text: str, *, typ: str, url: str = "", algorithms: frozenset[str]) -> Jws:
    """Take a compact JWS apart and check its header, and only that.

    Raises NftrustError(PROOF_MALFORMED).
    """
    if len(text) > MAX_JWS_BYTES:
        raise NftrustError(Reason.PROOF_MALFORMED, f"larger than {MAX_JWS_BYTES} bytes")
    try:
        raw = text.encode("ascii")
        protected, payload, signature = raw.split(b".")
        if len(protected) > MAX_HEADER_BYTES * 4 // 3:
            raise ValueError("header too large")
        header = msgspec.json.decode(b64url_decode(protected), type=Header)
        parts = Jws(header, protected + b"." + payload, b64url_decode(payload), b64url_decode(signature))
    except (ValueError, msgspec.MsgspecError):
        raise NftrustError(Reason.PROOF_MALFORMED) from None
    if header.typ != typ or header.url != url or header.alg not in algorithms:
        raise NftrustError(Reason.PROOF_MALFORMED, "the protected header is not the one this message requires")
    return parts


def parse_payload(jws: Jws, payload_type: type[T]) -> T:
    """The payload as ``payload_type``; call it after the signature has verified.

    Raises NftrustError(PROOF_MALFORMED).
    """
    try:
        return msgspec.json.decode(jws.payload, type=payload_type, strict=True)
    except msgspec.MsgspecError:
        raise NftrustError(Reason.PROOF_MALFORMED, "the payload is not the one this message requires") from None


def signing_input(header: Header, payload: msgspec.Struct) -> bytes:
    """The bytes to sign (RFC 7515 clause 5.1, step 8)."""
    return b64url(msgspec.json.encode(header)).encode() + b"." + b64url(msgspec.json.encode(payload)).encode()


def join(signing_input_bytes: bytes, signature: bytes) -> str:
    """The compact serialisation."""
    return (signing_input_bytes + b"." + b64url(signature).encode()).decode("ascii")


def algorithm_for(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> Algorithm:
    """The one JWS algorithm of a public key (RFC 7518 clause 3.1). Raises NftrustError(CSR_KEY_REFUSED)."""
    if isinstance(key, rsa.RSAPublicKey):
        return "PS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return "ES384"
    raise NftrustError(Reason.CSR_KEY_REFUSED)


def sign(key: PrivateKey, header: Header, payload: msgspec.Struct) -> str:
    """A compact JWS by ``key``, which may live in a token."""
    data = signing_input(header, payload)
    if isinstance(key, rsa.RSAPrivateKey):
        return join(data, key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()))
    digest: hashes.HashAlgorithm = hashes.SHA256() if key.curve.name == "secp256r1" else hashes.SHA384()
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
    return join(data, r.to_bytes(size, "big") + s.to_bytes(size, "big"))


def verify(key: object, jws: Jws) -> None:
    """Check the signature by an asymmetric ``key``. Raises NftrustError(PROOF_INVALID)."""
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) or algorithm_for(key) != jws.header.alg:
            raise InvalidSignature
        if isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            key.verify(jws.signature, jws.signing_input, pss, hashes.SHA256())
            return
        size = (key.curve.key_size + 7) // 8
        if len(jws.signature) != 2 * size:
            raise InvalidSignature
        r, s = (int.from_bytes(half, "big") for half in (jws.signature[:size], jws.signature[size:]))
        digest: hashes.HashAlgorithm = hashes.SHA256() if size == 32 else hashes.SHA384()
        key.verify(encode_dss_signature(r, s), jws.signing_input, ec.ECDSA(digest))
    except (InvalidSignature, NftrustError):
        raise NftrustError(Reason.PROOF_INVALID) from None


def sha256(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
