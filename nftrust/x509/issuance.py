"""Two-phase issuance: build and lint with a throwaway key, then sign the same bytes with the CA key.

The CA key never signs what has not been checked (boulder's way; facts of the
field: no peer but boulder lints before the key is used).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nftrust.x509 import profile as nf_profile
from nftrust.x509.keys import NfPublicKey, signature_hash
from nftrust.x509.names import NfIdentity
from nftrust.x509.profile import CertificateProfile, Issuer

#: AlgorithmIdentifier, DER: ecdsa-with-SHA256 and ecdsa-with-SHA384 (RFC 5758 clause 3.2).
_ALGORITHM = {
    "sha256": bytes.fromhex("300a06082a8648ce3d040302"),
    "sha384": bytes.fromhex("300a06082a8648ce3d040303"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A linted to-be-signed certificate and the digest that the token signs."""

    tbs: bytes
    hash_name: Literal["sha256", "sha384"]
    serial: int
    not_before: datetime
    not_after: datetime

    @property
    def digest(self) -> bytes:
        return hashlib.new(self.hash_name, self.tbs).digest()

    def assemble(self, raw_signature: bytes) -> bytes:
        """The certificate, DER; ``raw_signature`` is r‖s as PKCS #11 returns it."""
        half = len(raw_signature) // 2
        r, s = int.from_bytes(raw_signature[:half], "big"), int.from_bytes(raw_signature[half:], "big")
        signature = b"\x00" + encode_dss_signature(r, s)
        return tlv(0x30, self.tbs + algorithm_identifier(self.hash_name) + tlv(0x03, signature))


def algorithm_identifier(hash_name: str) -> bytes:
    """ECDSA with that hash as AlgorithmIdentifier, DER."""
    return _ALGORITHM[hash_name]


def new_serial() -> int:
    """A positive serial number of at most 20 octets with 126 random bits (RFC 5280 clause 4.1.2.2)."""
    return secrets.randbits(126) | 1 << 126


def prepare(
    profile: CertificateProfile, identity: NfIdentity, key: NfPublicKey, issuer: Issuer, now: datetime
) -> Prepared:
    """Build, sign with a throwaway key, lint. Raises NftrustError(INTERNAL) where the lint fails."""
    ca_key = issuer.certificate.public_key()
    assert isinstance(ca_key, ec.EllipticCurvePublicKey)
    builder = nf_profile.build(profile, identity, key, issuer, new_serial(), now)
    draft = builder.sign(throwaway(ca_key.curve.name), signature_hash(ca_key))
    nf_profile.lint(draft, identity, key, issuer)
    return Prepared(
        tbs=draft.tbs_certificate_bytes,
        hash_name="sha384" if signature_hash(ca_key).name == "sha384" else "sha256",
        serial=draft.serial_number,
        not_before=draft.not_valid_before_utc,
        not_after=draft.not_valid_after_utc,
    )


@cache
def throwaway(curve: str) -> ec.EllipticCurvePrivateKey:
    """A key to build drafts with, which nobody keeps."""
    return ec.generate_private_key(ec.SECP384R1() if curve == "secp384r1" else ec.SECP256R1())


def tlv(tag: int, value: bytes) -> bytes:
    """One DER element (X.690 clause 8.1)."""
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + value
