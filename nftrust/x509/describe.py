"""A certificate as a person reads it."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust.x509 import nftypes


def describe(certificate: x509.Certificate) -> list[tuple[str, str]]:
    """(name, value) lines."""
    key = certificate.public_key()
    kind = "unknown"
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"EC {key.curve.name}"
    elif isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA {key.key_size}"
    lines = [
        ("serial", f"{certificate.serial_number:x}"),
        ("subject", certificate.subject.rfc4514_string()),
        ("issuer", certificate.issuer.rfc4514_string()),
        (
            "valid",
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}Z to {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
        ),
        ("key", kind),
        ("SHA-256", hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()),
    ]
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            lines.append(("names", " ".join(str(name.value) for name in value)))
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == nftypes.NF_TYPES_OID:
            lines.append(("NF types", " ".join(nftypes.decode(value.value))))
        elif isinstance(value, x509.CRLDistributionPoints):
            urls = [str(name.value) for point in value for name in point.full_name or []]
            lines.append(("CRL", " ".join(urls)))
    return lines
