"""CA certificates, those of the response key and of the OCSP responder (TS 33.310 clauses 6.1.4a and 6.1a; RFC 5280).

Keys are pyca private keys: they may live in a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from nftrust.errors import NftrustError, Reason
from nftrust.x509.issuance import new_serial
from nftrust.x509.keys import signature_hash
from nftrust.x509.path import PathInvalid, validate_path
from nftrust.x509.profile import BACKDATING

#: id-kp-cmcCA (RFC 6402 clause 2.10): the key answers in the name of the CA (RFC 9810 clause 1.2).
RESPONSE_EKU = ObjectIdentifier("1.3.6.1.5.5.7.3.27")


def ca_name(country: str, home_domain: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, country),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, home_domain),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _ca_key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _start(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    start = now.replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .serial_number(new_serial())
        .subject_name(subject)
        .public_key(key)
        .not_valid_before(start - BACKDATING)
        .not_valid_after(start + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def make_root(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A self-signed root."""
    return (
        _start(subject, key.public_key(), now, lifetime)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_ca_key_usage(), critical=True)
        .sign(key, signature_hash(key.public_key()))
    )


def issuing_csr(key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.CertificateSigningRequest:
    """The issuing CA's request to an external root."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_key_usage(), critical=True)
        .sign(key, signature_hash(key.public_key()))
    )


def make_issuing(
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """The issuing CA: pathLen 0 (TS 33.310 clause 6.1.4a)."""
    return (
        _start(subject, public_key, now, lifetime)
        .issuer_name(root.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_key_usage(), critical=True)
        .add_extension(_authority_key_id(root), critical=False)
        .sign(root_key, signature_hash(root_key.public_key()))
    )


def check_issuing(
    certificate: x509.Certificate, key: ec.EllipticCurvePublicKey, chain: Sequence[x509.Certificate]
) -> None:
    """An imported issuing CA certificate: for our key, a CA with pathLen 0, chaining to its root.

    ``chain`` leads from the issuer to the root. Raises NftrustError(CONFIG_INVALID).
    """

    def refuse(why: str) -> NftrustError:
        return NftrustError(Reason.CONFIG_INVALID, f"issuing CA certificate: {why}")

    if certificate.public_key() != key:
        raise refuse("not for the key in the token")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        raise refuse("an extension is missing") from None
    if not (constraints.critical and constraints.value.ca and constraints.value.path_length == 0):
        raise refuse("basicConstraints is not critical CA with pathLen 0")
    if not (usage.critical and usage.value.key_cert_sign and usage.value.crl_sign):
        raise refuse("keyUsage is not critical keyCertSign and cRLSign")
    child = certificate
    for parent in chain:
        try:
            child.verify_directly_issued_by(parent)
        except Exception:  # noqa: BLE001 - any failure is the same refusal
            raise refuse("does not chain to the root") from None
        child = parent
    if child.subject != child.issuer:
        raise refuse("the chain does not end in a root")


def make_response_certificate(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    now: datetime,
) -> x509.Certificate:
    """The certificate of the response key; as long as the CA's own, so that both roll together."""
    lifetime = ca.not_valid_after_utc - now.replace(microsecond=0)
    return (
        _start(subject, public_key, now, lifetime)
        .issuer_name(ca.subject)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([RESPONSE_EKU]), critical=True)
        .add_extension(_authority_key_id(ca), critical=False)
        .sign(ca_key, signature_hash(ca_key.public_key()))
    )


def make_ocsp_certificate(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A delegated OCSP responder, not itself to be checked, so that it must live briefly (RFC 6960 clause 4.2.2.2)."""
    lifetime = min(lifetime, ca.not_valid_after_utc - now.replace(microsecond=0))
    return (
        _start(subject, public_key, now, lifetime)
        .issuer_name(ca.subject)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), critical=True)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .add_extension(_authority_key_id(ca), critical=False)
        .sign(ca_key, signature_hash(ca_key.public_key()))
    )


def check_response_certificate(
    certificate: x509.Certificate, chain: Sequence[x509.Certificate], now: datetime
) -> ec.EllipticCurvePublicKey:
    """The response key, if its certificate leads through ``chain`` (issuing CA first, anchor last) and has the EKU.

    Raises NftrustError(RESPONSE_INVALID).
    """
    refused = NftrustError(Reason.RESPONSE_INVALID, "the response certificate is not trusted")
    try:
        *intermediates, anchor = chain
        validate_path([certificate, *intermediates], [anchor], now)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (PathInvalid, ValueError, x509.ExtensionNotFound):
        raise refused from None
    key = certificate.public_key()
    if RESPONSE_EKU not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
        raise refused
    return key
