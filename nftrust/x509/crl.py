"""CRLs v2 (RFC 5280 clause 5), encoded entry by entry.

A list of 100,000 entries has to be out within seconds; the builder of
`cryptography` copies what it has for each entry that is added. So the frame (a
list without entries, signed by a throwaway key) comes from the builder, the
entries are encoded here and put into it, and what was signed is read back
before anybody else gets to see it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust.errors import NftrustError, Reason
from nftrust.x509.issuance import algorithm_identifier, throwaway, tlv
from nftrust.x509.keys import signature_hash

_SEQUENCE, _INTEGER, _BITS, _OCTETS, _ENUMERATED = 0x30, 0x02, 0x03, 0x04, 0x0A
_UTC_TIME, _GENERALISED_TIME = 0x17, 0x18
#: id-ce-cRLReasons (RFC 5280 clause 5.3.1).
_CRL_REASON = bytes.fromhex("0603551d15")


class RevocationReason(enum.IntEnum):
    """The CRLReasons that an issuer of NF certificates has use for; suspension is not a state of a certificate here."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    PRIVILEGE_WITHDRAWN = 9

    @property
    def flag(self) -> x509.ReasonFlags:
        """As `cryptography` names it."""
        return _FLAGS[self]


_FLAGS = {
    RevocationReason.UNSPECIFIED: x509.ReasonFlags.unspecified,
    RevocationReason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    RevocationReason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    RevocationReason.SUPERSEDED: x509.ReasonFlags.superseded,
    RevocationReason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
    RevocationReason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry."""

    serial: int
    revoke_time: datetime
    reason: RevocationReason


def make_crl(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    number: int,
    now: datetime,
    lifetime: timedelta,
    revoked: Iterable[Revoked] = (),
) -> bytes:
    """The CRL, DER. Raises NftrustError(INTERNAL) if it cannot be read back as it was meant."""
    entries = [_entry(each) for each in revoked]
    tbs = _with_entries(_frame(ca, number, now, lifetime), b"".join(entries))
    hash_algorithm = signature_hash(ca_key.public_key())
    signature = ca_key.sign(tbs, ec.ECDSA(hash_algorithm))
    encoded = tlv(_SEQUENCE, tbs + algorithm_identifier(hash_algorithm.name) + tlv(_BITS, b"\x00" + signature))
    _check(encoded, ca, number, len(entries))
    return encoded


def _frame(ca: x509.Certificate, number: int, now: datetime, lifetime: timedelta) -> bytes:
    """The TBSCertList without entries."""
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    start = now.replace(microsecond=0)
    key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    draft = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(start)
        .next_update(start + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .sign(throwaway(key.curve.name), signature_hash(key))
    )
    return draft.tbs_certlist_bytes


def _with_entries(frame: bytes, entries: bytes) -> bytes:
    """revokedCertificates stands before the extensions [0], which are the last field (clause 5.1); it is not empty."""
    if not entries:
        return frame
    content, position = _content(frame), 0
    fields = []
    while position < len(content):
        end = _end(content, position)
        fields.append(content[position:end])
        position = end
    return tlv(_SEQUENCE, b"".join(fields[:-1]) + tlv(_SEQUENCE, entries) + fields[-1])


def _content(encoded: bytes) -> bytes:
    header = 2 if encoded[1] < 0x80 else 2 + (encoded[1] & 0x7F)
    return encoded[header:]


def _end(encoded: bytes, position: int) -> int:
    """Where the element that starts at ``position`` ends."""
    first = encoded[position + 1]
    if first < 0x80:
        return position + 2 + first
    size = first & 0x7F
    return position + 2 + size + int.from_bytes(encoded[position + 2 : position + 2 + size], "big")


def _entry(revoked: Revoked) -> bytes:
    serial = revoked.serial.to_bytes(revoked.serial.bit_length() // 8 + 1, "big")
    fields = tlv(_INTEGER, serial) + _time(revoked.revoke_time)
    if revoked.reason is not RevocationReason.UNSPECIFIED:  # it should be left out (clause 5.3.1)
        reason = tlv(_ENUMERATED, bytes((revoked.reason,)))
        fields += tlv(_SEQUENCE, tlv(_SEQUENCE, _CRL_REASON + tlv(_OCTETS, reason)))
    return tlv(_SEQUENCE, fields)


def _time(time: datetime) -> bytes:
    """UTCTime through 2049, GeneralizedTime after (clause 5.1.2.6)."""
    if time.year < 2050:
        return tlv(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(_GENERALISED_TIME, time.strftime("%Y%m%d%H%M%SZ").encode())


def _check(encoded: bytes, ca: x509.Certificate, number: int, count: int) -> None:
    problem = NftrustError(Reason.INTERNAL, metadata={"lint": "crl"})
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        crl = x509.load_der_x509_crl(encoded)
        good = crl.is_signature_valid(key) and crl.issuer == ca.subject and len(crl) == count
        good = good and crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    except (ValueError, InvalidSignature, x509.ExtensionNotFound):
        raise problem from None
    if not good or crl.public_bytes(Encoding.DER) != encoded:
        raise problem
