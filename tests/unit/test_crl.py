"""CRLs: what they list, that others can read them, and that a long one is no trouble."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust.errors import NftrustError, Reason
from nftrust.x509 import crl as module
from nftrust.x509.crl import RevocationReason, Revoked, make_crl
from nftrust.x509.issuance import new_serial
from tests.unit.support import NOW, NfCa

CA = NfCa("crl")
DAY = timedelta(days=1)


def make(number: int, revoked: list[Revoked]) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(make_crl(CA.issuing_key, CA.issuing, number, NOW, DAY, revoked))


def test_an_empty_crl() -> None:
    crl = make(7, [])
    assert crl.is_signature_valid(CA.issuing_key.public_key())
    assert (crl.issuer, len(crl)) == (CA.issuing.subject, 0)
    assert (crl.last_update_utc, crl.next_update_utc) == (NOW, NOW + DAY)
    number = crl.extensions.get_extension_for_class(x509.CRLNumber)
    assert (number.critical, number.value.crl_number) == (False, 7)
    identifier = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    own = CA.issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert (identifier.critical, identifier.value.key_identifier) == (False, own)
    assert len(crl.extensions) == 2


@pytest.mark.parametrize("serial", [1, 127, 128, 255, 256, (1 << 127) - 1, 1 << 126, new_serial()])
@pytest.mark.parametrize("reason", RevocationReason)
def test_an_entry(serial: int, reason: RevocationReason) -> None:
    [entry] = make(1, [Revoked(serial, NOW, reason)])
    assert (entry.serial_number, entry.revocation_date_utc) == (serial, NOW)
    found = [extension.value.reason for extension in entry.extensions if isinstance(extension.value, x509.CRLReason)]
    # A reason that says nothing is left out (RFC 5280 clause 5.3.1).
    assert found == ([] if reason is RevocationReason.UNSPECIFIED else [reason.flag])


@pytest.mark.parametrize("year", [2049, 2050])
def test_both_forms_of_time(year: int) -> None:
    time = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    [entry] = make(1, [Revoked(5, time, RevocationReason.SUPERSEDED)])
    assert entry.revocation_date_utc == time


def test_the_entries_are_those_that_the_builder_of_cryptography_makes() -> None:
    revoked = [Revoked(new_serial(), NOW - n * DAY, reason) for n, reason in enumerate(RevocationReason)]
    builder = x509.CertificateRevocationListBuilder().issuer_name(CA.issuing.subject).last_update(NOW).next_update(NOW)
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.serial).revocation_date(each.revoke_time)
        if each.reason is not RevocationReason.UNSPECIFIED:
            entry = entry.add_extension(x509.CRLReason(each.reason.flag), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    theirs = builder.sign(CA.issuing_key, module.signature_hash(CA.issuing_key.public_key()))
    content = b"".join(module._entry(each) for each in revoked)
    assert content in theirs.tbs_certlist_bytes
    assert content in make(1, revoked).tbs_certlist_bytes


def test_a_hundred_thousand_entries() -> None:
    revoked = [Revoked((1 << 126) + n, NOW, RevocationReason.KEY_COMPROMISE) for n in range(100_000)]
    crl = make(2, revoked)
    assert len(crl) == 100_000
    assert crl.get_revoked_certificate_by_serial_number((1 << 126) + 99_999) is not None
    assert crl.get_revoked_certificate_by_serial_number((1 << 126) + 100_000) is None


def test_a_crl_that_was_not_signed_by_this_ca_is_not_let_out() -> None:
    with pytest.raises(NftrustError) as caught:
        make_crl(ec.generate_private_key(ec.SECP256R1()), CA.issuing, 1, NOW, DAY)
    assert caught.value.reason is Reason.INTERNAL
