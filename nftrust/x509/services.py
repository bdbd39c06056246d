"""The services PKI and day-0 certificates, as `nftrust pki` issues them (security rules 15 and 17)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.identity import LAB_MARKER_OID, day0_name, parse_nf_instance_id, urn
from nftrust.x509.issuance import new_serial
from nftrust.x509.keys import signature_hash
from nftrust.x509.profile import BACKDATING

ROLES = ("oam", "cm-proxy", "ca-ra", "verifier")
_PRINCIPAL = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class PkiAuthority:
    """A CA of the services PKI or a day-0 root; ``lab`` marks what it issues."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    lab: bool = False


def role_uri(role: str, name: str) -> str:
    """``urn:nftrust:<role>:<name>``. Raises NftrustError(INVALID_FIELD)."""
    if role not in ROLES:
        raise invalid_field("role", f"one of {', '.join(ROLES)}")
    if not _PRINCIPAL.match(name):
        raise invalid_field("name", "lower-case letters, digits, dots and hyphens")
    return f"urn:nftrust:{role}:{name}"


def make_pki_root(
    key: ec.EllipticCurvePrivateKey, common_name: str, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A self-signed root that issues end-entity certificates directly."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    public_key = key.public_key()
    start = now.replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .serial_number(new_serial())
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .not_valid_before(start - BACKDATING)
        .not_valid_after(start + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, signature_hash(public_key))
    )


def issue_service(
    authority: PkiAuthority,
    key: ec.EllipticCurvePublicKey,
    *,
    role: str,
    name: str,
    hosts: Sequence[str],
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A service's TLS certificate, client and server: one role URI, and the hosts it serves under."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(role_uri(role, name))]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return _issue(authority, key, f"{role} {name}", names, usages, now, lifetime)


def bare_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request that conveys a key and nothing else, PEM; the PKI decides the rest."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key.public_key())).public_bytes(Encoding.PEM)


def issue_day0(
    authority: PkiAuthority,
    csr: x509.CertificateSigningRequest,
    *,
    nf_instance_id: str,
    home_domain: str,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A day-0 certificate for the instance that OAM names; of the CSR only the key is used.

    Raises NftrustError(CSR_SIGNATURE_INVALID, CSR_KEY_REFUSED, INVALID_NF_INSTANCE_ID).
    """
    nf_instance_id = parse_nf_instance_id(nf_instance_id)
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise NftrustError(Reason.CSR_KEY_REFUSED)
    if not csr.is_signature_valid:
        raise NftrustError(Reason.CSR_SIGNATURE_INVALID)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(urn(nf_instance_id)),
        x509.DNSName(day0_name(nf_instance_id, home_domain)),
    ]
    common_name = f"day-0 {nf_instance_id}"
    return _issue(authority, key, common_name, names, [ExtendedKeyUsageOID.SERVER_AUTH], now, lifetime)


def _issue(
    authority: PkiAuthority,
    key: ec.EllipticCurvePublicKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
    usages: Sequence[ObjectIdentifier],
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    start = now.replace(microsecond=0)
    ca = authority.certificate
    ca_key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .serial_number(new_serial())
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
        .issuer_name(ca.subject)
        .public_key(key)
        .not_valid_before(start - BACKDATING)
        .not_valid_after(min(start + lifetime, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    if authority.lab:
        builder = builder.add_extension(x509.UnrecognizedExtension(LAB_MARKER_OID, b"\x05\x00"), critical=False)
    return builder.sign(authority.key, signature_hash(authority.key.public_key()))
