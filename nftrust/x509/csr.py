"""Checks of a CSR against the registration (TR 33.876 step 10; PKCS #10, RFC 2986).

A CSR conveys a key and the urn:uuid identity; the profile decides the rest.
The checks are numbered; the tests name them by number.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from nftrust.x509.keys import NfPublicKey, require_certifiable
from nftrust.x509.names import NfIdentity

MAX_CSR_BYTES = 8 * 1024
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def check_csr(der: bytes, identity: NfIdentity, subject: x509.Name, issuer: ec.EllipticCurvePublicKey) -> NfPublicKey:
    """The key that the CSR conveys, after checks 1 to 7.

    Raises NftrustError with a CSR_* reason.
    """
    csr = _parse(der)  # 1, 2
    key = _key(csr, issuer)  # 3
    if not isinstance(_signature_hash(csr), _HASHES):  # 4: SHA-2 only
        raise NftrustError(Reason.CSR_ALGORITHM_REFUSED)
    if not _signed(csr):  # 5: proof of possession
        raise NftrustError(Reason.CSR_SIGNATURE_INVALID)
    _check_names(csr, identity, subject)  # 6, 7
    return key


def _parse(der: bytes) -> x509.CertificateSigningRequest:
    if len(der) > MAX_CSR_BYTES:  # 1: bounded before it is parsed
        raise NftrustError(Reason.CSR_TOO_LARGE)
    try:  # 2: PKCS #10, one DER value
        return x509.load_der_x509_csr(der)
    except Exception:  # noqa: BLE001 - whatever the parser raises on hostile bytes
        raise NftrustError(Reason.CSR_MALFORMED) from None


def _key(csr: x509.CertificateSigningRequest, issuer: ec.EllipticCurvePublicKey) -> NfPublicKey:
    try:
        key = csr.public_key()
    except Exception:  # noqa: BLE001 - whatever a hostile key makes the parser raise
        raise NftrustError(Reason.CSR_KEY_REFUSED) from None
    return require_certifiable(key, issuer)


def _signature_hash(csr: x509.CertificateSigningRequest) -> hashes.HashAlgorithm | None:
    try:
        return csr.signature_hash_algorithm
    except Exception:  # noqa: BLE001 - an unknown or malformed algorithm is a refused one
        return None


def _signed(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except Exception:  # noqa: BLE001 - an unsupported scheme is not a valid signature
        return False


def _check_names(csr: x509.CertificateSigningRequest, identity: NfIdentity, subject: x509.Name) -> None:
    try:
        extensions = list(csr.extensions)
        attributes = [(attribute.oid, str(attribute.value)) for attribute in csr.subject]
    except Exception:  # noqa: BLE001 - malformed attributes surface here only
        raise NftrustError(Reason.CSR_MALFORMED) from None
    names: list[x509.GeneralName] = []
    for extension in extensions:  # 6: subjectAltName is the only extension taken from a request
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            raise NftrustError(Reason.CSR_EXTENSION_REFUSED, metadata={"oid": extension.oid.dotted_string})
        names.extend(extension.value)
    allowed = set(identity.alternative_names())
    if x509.UniformResourceIdentifier(urn(identity.nf_instance_id)) not in names:  # 7a
        raise NftrustError(Reason.CSR_IDENTITY_MISSING)
    if not set(names) <= allowed:  # 7b: no name beyond the registration
        raise NftrustError(Reason.CSR_IDENTITY_MISMATCH)
    values = {str(name.value) for name in allowed}
    expected = {(attribute.oid, str(attribute.value)) for attribute in subject}
    for oid, value in attributes:  # 7c: nor in the subject
        if (oid, value) not in expected and not (oid == NameOID.COMMON_NAME and value in values):
            raise NftrustError(Reason.CSR_IDENTITY_MISMATCH)
