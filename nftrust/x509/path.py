"""Path validation (RFC 5280 clause 6) by `cryptography`'s verifier, with typed results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

MAX_CHAIN_CERTIFICATES = 4
MAX_CERTIFICATE_BYTES = 8 * 1024


class PathInvalid(Exception):
    """The chain does not lead to the anchor."""


class OutsideValidity(PathInvalid):
    """The leaf is expired or not yet valid."""


def load_chain(chain: Sequence[bytes]) -> list[x509.Certificate]:
    """DER certificates, leaf first, bounded before they are parsed. Raises PathInvalid."""
    if not 1 <= len(chain) <= MAX_CHAIN_CERTIFICATES or any(len(der) > MAX_CERTIFICATE_BYTES for der in chain):
        raise PathInvalid
    try:
        return [x509.load_der_x509_certificate(der) for der in chain]
    except Exception:  # noqa: BLE001 - whatever the parser raises on hostile bytes
        raise PathInvalid from None


def validate_path(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime) -> None:
    """``chain`` (leaf first) leads to one of ``anchors`` at ``now``; the leaf's own profile is the caller's.

    Raises OutsideValidity or PathInvalid.
    """
    leaf, *intermediates = chain
    try:
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise OutsideValidity
        verifier = (
            PolicyBuilder()
            .store(Store(list(anchors)))
            .time(now)
            .max_chain_depth(MAX_CHAIN_CERTIFICATES)
            .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all())
            .build_client_verifier()
        )
        verifier.verify(leaf, intermediates)
    except (VerificationError, ValueError):
        raise PathInvalid from None


def pem_chain(certificates: Sequence[x509.Certificate]) -> bytes:
    """Concatenated PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
