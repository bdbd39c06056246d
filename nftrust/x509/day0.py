"""Day-0 credentials: the profile, its check by the CM proxy and the CA/RA, and the NF's statement.

gRPC for Python does not check the NF's identity (it never reads URI SANs,
accepts wildcards, falls back to the CN), so our code does (security rule 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.identity import URN_PREFIX, day0_name, urn
from nftrust.messages import STATEMENT_TYP, NfStatement
from nftrust.x509.keys import load_transport_key
from nftrust.x509.path import OutsideValidity, PathInvalid, load_chain, validate_path

_ALGORITHMS = frozenset({"ES256", "ES384"})


def check_day0_chain(
    chain: Sequence[bytes], root: x509.Certificate, nf_instance_id: str, home_domain: str, now: datetime
) -> x509.Certificate:
    """The NF's day-0 leaf, after checks 1 to 5.

    Raises NftrustError(DAY0_CHAIN_UNTRUSTED, DAY0_CERTIFICATE_EXPIRED,
    DAY0_IDENTITY_MISMATCH, DAY0_CERTIFICATE_INVALID).
    """
    try:
        certificates = load_chain(chain)
        validate_path(certificates, [root], now)  # 1: chain to the root for this NF; 2: validity
    except OutsideValidity:
        raise NftrustError(Reason.DAY0_CERTIFICATE_EXPIRED) from None
    except PathInvalid:
        raise NftrustError(Reason.DAY0_CHAIN_UNTRUSTED) from None
    leaf = certificates[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except Exception:  # noqa: BLE001 - absent or malformed extensions are the same refusal
        raise NftrustError(Reason.DAY0_CERTIFICATE_INVALID) from None
    dns = names.get_values_for_type(x509.DNSName)
    if ExtendedKeyUsageOID.SERVER_AUTH not in usages or any("*" in name for name in dns):  # 3: EKU, no wildcard
        raise NftrustError(Reason.DAY0_CERTIFICATE_INVALID)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(URN_PREFIX):  # 4: exactly one URI
        raise NftrustError(Reason.DAY0_CERTIFICATE_INVALID)
    if uris[0] != urn(nf_instance_id) or day0_name(nf_instance_id, home_domain) not in dns:  # 5: this NF; CN ignored
        raise NftrustError(Reason.DAY0_IDENTITY_MISMATCH)
    return leaf


@dataclass(frozen=True, slots=True)
class VerifiedStatement:
    """What the NF vouches for with its day-0 key."""

    transport_key: rsa.RSAPublicKey
    transport_key_sha256: bytes
    nonce: bytes


def check_statement(text: str, leaf: x509.Certificate, nf_instance_id: str, enrolment: str) -> VerifiedStatement:
    """Verify the NF's statement by the key of its (already checked) day-0 certificate.

    Raises NftrustError(NF_STATEMENT_INVALID, TRANSPORT_KEY_UNUSABLE).
    """
    try:
        jws = jose.split(text, typ=STATEMENT_TYP, algorithms=_ALGORITHMS)
        jose.verify(leaf.public_key(), jws)
        statement = jose.parse_payload(jws, NfStatement)
        transport_key = jose.b64url_decode(statement.transport_key)
        nonce = jose.b64url_decode(statement.nonce)
    except (NftrustError, ValueError):
        raise NftrustError(Reason.NF_STATEMENT_INVALID) from None
    if statement.nf_instance_id != nf_instance_id or statement.enrolment != enrolment:
        raise NftrustError(Reason.NF_STATEMENT_INVALID)
    if not 16 <= len(nonce) <= 64:
        raise NftrustError(Reason.NF_STATEMENT_INVALID)
    return VerifiedStatement(load_transport_key(transport_key), jose.sha256(transport_key), nonce)
