"""Judgements on certificates that several hops share."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from nftrust.cli.doctor.checks import Finding, attention, broken, ok
from nftrust.x509.path import OutsideValidity, PathInvalid, validate_path

#: Less than this part of its life left, or less than so long: somebody should act.
LAST_PART = 0.1
AT_MOST = timedelta(days=30)


def validity(what: str, certificate: x509.Certificate, now: datetime, remedy: str) -> Finding:
    """Expired, not yet valid, near its end, or well."""
    return lifetime(what, certificate.not_valid_before_utc, certificate.not_valid_after_utc, now, remedy)


def lifetime(what: str, start: datetime, end: datetime, now: datetime, remedy: str) -> Finding:
    """The same of a certificate of which only the times are known."""
    if now > end:
        return broken(f"{what} expired at {end:%Y-%m-%d %H:%MZ}", remedy)
    if now < start:
        return broken(f"{what} is not valid before {start:%Y-%m-%d %H:%MZ}", "Set the clocks right, or wait.")
    return expiry(what, start, end, now, remedy)


def expiry(what: str, start: datetime, end: datetime, now: datetime, remedy: str) -> Finding:
    """ATTENTION where little of the lifetime is left."""
    if end - now < min((end - start) * LAST_PART, AT_MOST):
        return attention(f"{what} expires soon, at {end:%Y-%m-%d %H:%MZ}", remedy)
    return ok(f"{what} is valid until {end:%Y-%m-%d %H:%MZ}")


def leads_to(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime) -> bool:
    """Whether the chain (leaf first) is of one of the anchors; a leaf outside its validity is another question."""
    try:
        validate_path(chain, anchors, now)
    except OutsideValidity:
        below = [*chain[1:], None]
        return all(
            any(_issued(certificate, issuer) for issuer in (anchors if above is None else [above]))
            for certificate, above in zip(chain, below, strict=True)
        )
    except PathInvalid:
        return False
    return True


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """DNS names in lower case, and IP addresses as text, of the subjectAltName."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return [], []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [name.lower() for name in found.get_values_for_type(x509.DNSName)], addresses


def is_for_host(certificate: x509.Certificate, host: str) -> bool:
    """As gRPC decides it, but for the common name and wildcards, which a service certificate does not have."""
    dns, addresses = names(certificate)
    try:
        return str(ipaddress.ip_address(host)) in addresses
    except ValueError:
        return host.lower() in dns
