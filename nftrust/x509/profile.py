"""The NF certificate profile: table 6.1.3c.3-1 of TS 33.310, and the linter for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from nftrust.errors import NftrustError, Reason
from nftrust.x509 import nftypes
from nftrust.x509.keys import NfPublicKey
from nftrust.x509.names import NfIdentity

MAX_VALIDITY = timedelta(days=3 * 365)
#: Certificates start a little in the past: the peers' clocks differ.
BACKDATING = timedelta(minutes=5)
_EXTENDED_KEY_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """What a named profile decides."""

    name: str
    validity: timedelta
    #: NFs of one NF set may share an FQDN (TS 23.003 clause 28.12).
    shared_fqdns: bool = False

    def __post_init__(self) -> None:
        if not timedelta(minutes=1) <= self.validity <= MAX_VALIDITY:
            raise NftrustError(Reason.CONFIG_INVALID, f"profile {self.name}: validity beyond 1 minute to 3 years")


@dataclass(frozen=True, slots=True)
class Issuer:
    """What the profile needs to know of the issuing CA."""

    certificate: x509.Certificate
    crl_url: str
    ca_issuers_url: str
    ocsp_url: str
    #: Subject of every NF certificate: C and O.
    nf_subject: x509.Name


def build(
    profile: CertificateProfile, identity: NfIdentity, key: NfPublicKey, issuer: Issuer, serial: int, now: datetime
) -> x509.CertificateBuilder:
    """Every field of table 6.1.3c.3-1; nothing of it comes from a request but ``key``.

    Raises NftrustError(CA_EXPIRED) outside the issuing CA's own validity.
    """
    ca = issuer.certificate
    if not ca.not_valid_before_utc <= now < ca.not_valid_after_utc:
        raise NftrustError(Reason.CA_EXPIRED)
    not_before = now.replace(microsecond=0) - BACKDATING
    not_after = min(not_before + min(BACKDATING + profile.validity, MAX_VALIDITY), ca.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(_subject(ca))
        .subject_name(issuer.nf_subject)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .public_key(key)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(_EXTENDED_KEY_USAGE, critical=False)
        .add_extension(_authority_key_id(ca), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(identity.alternative_names(), critical=True)
        .add_extension(_nf_types(identity.nf_type), critical=False)
        .add_extension(_crl_points(issuer.crl_url), critical=False)
        .add_extension(_information_access(issuer.ocsp_url, issuer.ca_issuers_url), critical=False)
    )


@lru_cache(maxsize=64)
def _nf_types(nf_type: str) -> x509.UnrecognizedExtension:
    return nftypes.encode([nf_type])


@lru_cache(maxsize=8)
def _subject(ca: x509.Certificate) -> x509.Name:
    """cryptography parses it anew each time."""
    return ca.subject


@lru_cache(maxsize=8)
def _authority_key_id(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


@lru_cache(maxsize=8)
def _crl_points(crl_url: str) -> x509.CRLDistributionPoints:
    url = x509.UniformResourceIdentifier(crl_url)
    return x509.CRLDistributionPoints([x509.DistributionPoint([url], None, None, None)])


@lru_cache(maxsize=8)
def _information_access(ocsp_url: str, ca_issuers_url: str) -> x509.AuthorityInformationAccess:
    """Where the issuer's certificate and its OCSP responder are (RFC 5280 clause 4.2.2.1)."""
    places = (
        (AuthorityInformationAccessOID.OCSP, ocsp_url),
        (AuthorityInformationAccessOID.CA_ISSUERS, ca_issuers_url),
    )
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in places]
    )


#: (extension class or OID, critical) in the table; all are present in each certificate.
_REQUIRED: tuple[tuple[x509.ObjectIdentifier, bool], ...] = (
    (x509.KeyUsage.oid, True),
    (x509.ExtendedKeyUsage.oid, False),
    (x509.AuthorityKeyIdentifier.oid, False),
    (x509.SubjectKeyIdentifier.oid, False),
    (x509.SubjectAlternativeName.oid, True),
    (nftypes.NF_TYPES_OID, False),
    (x509.CRLDistributionPoints.oid, False),
    (x509.AuthorityInformationAccess.oid, False),
)


def lint(certificate: x509.Certificate, identity: NfIdentity, key: NfPublicKey, issuer: Issuer) -> None:
    """Check a certificate as a relying party would read it, before the CA key is used.

    Raises NftrustError(INTERNAL): a certificate that fails is our own mistake.
    """
    problem = _first_problem(certificate, identity, key, issuer)
    if problem is not None:
        raise NftrustError(Reason.INTERNAL, metadata={"lint": problem})


def _first_problem(certificate: x509.Certificate, identity: NfIdentity, key: NfPublicKey, issuer: Issuer) -> str | None:
    extensions = {extension.oid: extension for extension in certificate.extensions}
    if set(extensions) != {oid for oid, _ in _REQUIRED}:
        return "extensions"
    if any(extensions[oid].critical is not critical for oid, critical in _REQUIRED):
        return "criticality"
    names = extensions[x509.SubjectAlternativeName.oid].value
    assert isinstance(names, x509.SubjectAlternativeName)
    if names != identity.alternative_names() or not names.get_values_for_type(x509.DNSName):
        return "subjectAltName"
    ca = issuer.certificate
    checks = {
        "version": certificate.version is x509.Version.v3,
        "nfTypes": extensions[nftypes.NF_TYPES_OID].value == _nf_types(identity.nf_type),
        "keyUsage": extensions[x509.KeyUsage.oid].value == _KEY_USAGE,
        "extKeyUsage": extensions[x509.ExtendedKeyUsage.oid].value == _EXTENDED_KEY_USAGE,
        "authorityKeyIdentifier": extensions[x509.AuthorityKeyIdentifier.oid].value == _authority_key_id(ca),
        "subjectKeyIdentifier": extensions[x509.SubjectKeyIdentifier.oid].value
        == x509.SubjectKeyIdentifier.from_public_key(key),
        "cRLDistributionPoints": extensions[x509.CRLDistributionPoints.oid].value == _crl_points(issuer.crl_url),
        "authorityInfoAccess": extensions[x509.AuthorityInformationAccess.oid].value
        == _information_access(issuer.ocsp_url, issuer.ca_issuers_url),
        "serial": 0 < certificate.serial_number < 1 << 159,
        "issuer": certificate.issuer == _subject(ca),
        "subject": certificate.subject == issuer.nf_subject,
        "key": certificate.public_key() == key,
        "validity": timedelta(0) < certificate.not_valid_after_utc - certificate.not_valid_before_utc <= MAX_VALIDITY
        and certificate.not_valid_after_utc <= ca.not_valid_after_utc,
    }
    return next((name for name, good in checks.items() if not good), None)
