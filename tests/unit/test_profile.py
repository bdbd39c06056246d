"""The NF certificate: table 6.1.3c.3-1 of TS 33.310, the linter and two-phase issuance."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from nftrust.errors import Reason
from nftrust.identity import urn
from nftrust.x509 import nftypes
from nftrust.x509.issuance import new_serial, prepare
from nftrust.x509.keys import NfPublicKey
from nftrust.x509.names import NfIdentity
from nftrust.x509.path import validate_path
from nftrust.x509.profile import BACKDATING, MAX_VALIDITY, CertificateProfile, lint
from tests.unit.support import (
    AMF,
    DAY,
    HOME,
    NF_ID,
    NOW,
    OTHER_ID,
    PROFILE,
    SUBJECT,
    ec_key,
    nf_ca,
    raw_signature,
    rebuild,
    refused,
    rsa_key,
)

CA = nf_ca()
KEY = ec_key("nf").public_key()
TWO = NfIdentity(NF_ID, "AMF", (f"one.amf.{HOME}", f"set1.region1.amfset.{HOME}"))
SCP = NfIdentity(NF_ID, "SCP", (f"one.scp.{HOME}",))


@pytest.fixture(scope="module")
def certificate() -> x509.Certificate:
    return CA.issue(TWO)


def value(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType:
    return certificate.extensions.get_extension_for_class(kind).value


@pytest.mark.parametrize(
    ("oid", "critical"),
    [
        ("2.5.29.15", True),
        ("2.5.29.37", False),
        ("2.5.29.35", False),
        ("2.5.29.14", False),
        ("2.5.29.31", False),
        ("2.5.29.17", True),
        ("1.3.6.1.5.5.7.1.34", False),
        ("1.3.6.1.5.5.7.1.1", False),
    ],
)
def test_criticality(certificate: x509.Certificate, oid: str, critical: bool) -> None:
    assert certificate.extensions.get_extension_for_oid(ObjectIdentifier(oid)).critical is critical


def test_no_other_extension(certificate: x509.Certificate) -> None:
    assert len(certificate.extensions) == 8


def test_basic_fields(certificate: x509.Certificate) -> None:
    assert certificate.version is x509.Version.v3
    assert certificate.issuer == CA.issuing.subject
    assert certificate.public_key() == KEY
    assert [(item.oid, item.value) for item in certificate.subject] == [
        (NameOID.COUNTRY_NAME, "XX"),
        (NameOID.ORGANIZATION_NAME, HOME),
    ]


def test_usages(certificate: x509.Certificate) -> None:
    usage = value(certificate, x509.KeyUsage)
    assert usage == x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    assert set(value(certificate, x509.ExtendedKeyUsage)) == {  # type: ignore[call-overload]
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }


def test_key_identifiers_are_of_method_1(certificate: x509.Certificate) -> None:
    def method_1(key: NfPublicKey) -> bytes:
        point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        digest = hashes.Hash(hashes.SHA1())
        digest.update(point)
        return digest.finalize()

    assert value(certificate, x509.SubjectKeyIdentifier).digest == method_1(KEY)
    authority = value(certificate, x509.AuthorityKeyIdentifier)
    assert authority.key_identifier == method_1(CA.issuing_key.public_key())
    assert authority.authority_cert_issuer is None


def test_names(certificate: x509.Certificate) -> None:
    names = value(certificate, x509.SubjectAlternativeName)
    assert [(type(name), name.value) for name in names] == [
        (x509.UniformResourceIdentifier, urn(NF_ID)),
        (x509.UniformResourceIdentifier, f"https://one.amf.{HOME}"),
        (x509.UniformResourceIdentifier, f"https://set1.region1.amfset.{HOME}"),
        (x509.DNSName, f"one.amf.{HOME}"),
        (x509.DNSName, f"set1.region1.amfset.{HOME}"),
    ]


def test_nf_type(certificate: x509.Certificate) -> None:
    extension = certificate.extensions.get_extension_for_oid(nftypes.NF_TYPES_OID).value
    assert nftypes.decode(extension.value) == ["AMF"]


def test_where_to_find_the_crl_and_the_issuer(certificate: x509.Certificate) -> None:
    [point] = value(certificate, x509.CRLDistributionPoints)
    assert point.full_name == [x509.UniformResourceIdentifier(CA.issuer.crl_url)]
    assert (point.reasons, point.crl_issuer, point.relative_name) == (None, None, None)
    access = [
        (item.access_method, item.access_location) for item in value(certificate, x509.AuthorityInformationAccess)
    ]
    assert access == [
        (AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(CA.issuer.ocsp_url)),
        (AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(CA.issuer.ca_issuers_url)),
    ]


def test_an_scp_has_no_api_root() -> None:
    names = value(CA.issue(SCP), x509.SubjectAlternativeName)
    assert list(names) == [
        x509.UniformResourceIdentifier(urn(NF_ID)),
        x509.DNSName(f"one.scp.{HOME}"),
    ]


# Validity and serial number


def test_validity(certificate: x509.Certificate) -> None:
    assert certificate.not_valid_before_utc == NOW - BACKDATING
    assert certificate.not_valid_after_utc == NOW + PROFILE.validity


def test_validity_ends_with_the_ca() -> None:
    now = CA.issuing.not_valid_after_utc - DAY
    assert CA.issue(now=now).not_valid_after_utc == CA.issuing.not_valid_after_utc


@pytest.mark.parametrize("beyond", [timedelta(), DAY])
def test_an_expired_ca_issues_nothing(beyond: timedelta) -> None:
    with refused(Reason.CA_EXPIRED):
        CA.issue(now=CA.issuing.not_valid_after_utc + beyond)


def test_a_ca_of_the_future_issues_nothing() -> None:
    with refused(Reason.CA_EXPIRED):
        CA.issue(now=CA.issuing.not_valid_before_utc - DAY)


def test_validity_never_exceeds_three_years() -> None:
    certificate = CA.issue(profile=CertificateProfile("long", MAX_VALIDITY))
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=3 * 365)


@pytest.mark.parametrize("validity", [MAX_VALIDITY + timedelta(seconds=1), timedelta(seconds=59), -DAY, 0 * DAY])
def test_profile_beyond_the_cap(validity: timedelta) -> None:
    with refused(Reason.CONFIG_INVALID) as caught:
        CertificateProfile("wrong", validity)
    assert "wrong" in caught.value.message


def test_serial_numbers() -> None:
    serials = {new_serial() for _ in range(100)}
    assert len(serials) == 100
    assert all(1 << 126 <= serial < 1 << 127 for serial in serials)


# Two phases


@pytest.mark.parametrize(
    ("curve", "key"),
    [
        ("secp256r1", "p-256"),
        ("secp256r1", "rsa"),
        ("secp384r1", "p-256"),
        ("secp384r1", "p-384"),
        ("secp384r1", "rsa"),
    ],
)
def test_spliced_certificate_verifies(curve: str, key: str) -> None:
    keys = {"p-256": ec_key("nf"), "p-384": ec_key("nf", "secp384r1"), "rsa": rsa_key()}
    ca = nf_ca(curve, curve)
    certificate = ca.issue(key=keys[key].public_key())
    certificate.verify_directly_issued_by(ca.issuing)
    validate_path([certificate, ca.issuing], [ca.root], NOW)
    lint(certificate, AMF, keys[key].public_key(), ca.issuer)


def test_what_is_signed_is_what_was_linted() -> None:
    prepared = prepare(PROFILE, AMF, KEY, CA.issuer, NOW)
    der = prepared.assemble(raw_signature(CA.issuing_key, prepared.digest))
    certificate = x509.load_der_x509_certificate(der)
    assert certificate.public_bytes(serialization.Encoding.DER) == der
    assert certificate.tbs_certificate_bytes == prepared.tbs
    assert certificate.serial_number == prepared.serial
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (
        prepared.not_before,
        prepared.not_after,
    )


@pytest.mark.parametrize(("r", "s"), [(1, 1), (0x80, 0xFF), (1 << 255, 1), (1, 1 << 255), (1 << 248, 1 << 247)])
def test_signature_of_any_size_is_der(r: int, s: int) -> None:
    prepared = prepare(PROFILE, AMF, KEY, CA.issuer, NOW)
    certificate = x509.load_der_x509_certificate(prepared.assemble(r.to_bytes(32, "big") + s.to_bytes(32, "big")))
    assert decode_dss_signature(certificate.signature) == (r, s)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)


def test_the_draft_is_not_signed_by_the_ca() -> None:
    first = prepare(PROFILE, AMF, KEY, CA.issuer, NOW)
    second = prepare(PROFILE, AMF, KEY, CA.issuer, NOW)
    assert first.serial != second.serial
    certificate = x509.load_der_x509_certificate(first.assemble(raw_signature(CA.issuing_key, second.digest)))
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(CA.issuing)


def test_prepare_lints() -> None:
    nameless = NfIdentity(NF_ID, "AMF", ())
    with refused(Reason.INTERNAL) as caught:
        prepare(PROFILE, nameless, KEY, CA.issuer, NOW)
    assert caught.value.metadata == {"lint": "subjectAltName"}


def test_openssl_agrees(tmp_path: Path, certificate: x509.Certificate) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    paths = {}
    for name, item in {"root": CA.root, "issuing": CA.issuing, "nf": certificate}.items():
        paths[name] = tmp_path / f"{name}.pem"
        paths[name].write_bytes(item.public_bytes(serialization.Encoding.PEM))
    command = [openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", TWO.fqdns[0]]
    command += ["-CAfile", paths["root"], "-untrusted", paths["issuing"], paths["nf"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The linter


def test_lint_passes_what_is_good(certificate: x509.Certificate) -> None:
    lint(certificate, TWO, KEY, CA.issuer)


def url(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def san(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def types(text: str) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(nftypes.NF_TYPES_OID, bytes.fromhex(text))


def points(*args: object) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints([x509.DistributionPoint(*args)])  # type: ignore[arg-type]


def access(method: ObjectIdentifier, where: str) -> x509.AuthorityInformationAccess:
    return x509.AuthorityInformationAccess([x509.AccessDescription(method, url(where))])


USAGE = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
EKU = ExtendedKeyUsageOID
GOOD_NAMES = list(TWO.alternative_names())
CRL_URL, CA_URL = CA.issuer.crl_url, CA.issuer.ca_issuers_url
AIA = AuthorityInformationAccessOID

#: What is wrong, as the linter names it, and the extensions that make it so.
WRONG_EXTENSIONS: list[tuple[str, x509.ExtensionType, bool]] = [
    ("extensions", x509.BasicConstraints(ca=False, path_length=None), True),
    ("extensions", x509.TLSFeature([x509.TLSFeatureType.status_request]), False),
    ("extensions", x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0"), False),
    ("criticality", USAGE, False),
    ("criticality", x509.ExtendedKeyUsage([EKU.SERVER_AUTH, EKU.CLIENT_AUTH]), True),
    ("criticality", san(*GOOD_NAMES), False),
    ("criticality", nftypes.encode(["AMF"]), True),
    ("criticality", x509.SubjectKeyIdentifier.from_public_key(KEY), True),
    ("criticality", points([url(CRL_URL)], None, None, None), True),
    ("criticality", access(AIA.CA_ISSUERS, CA_URL), True),
    ("keyUsage", x509.KeyUsage(True, True, False, False, False, False, False, False, False), True),
    ("keyUsage", x509.KeyUsage(True, False, False, False, False, True, False, False, False), True),
    ("keyUsage", x509.KeyUsage(False, False, True, False, False, False, False, False, False), True),
    ("extKeyUsage", x509.ExtendedKeyUsage([EKU.SERVER_AUTH]), False),
    ("extKeyUsage", x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]), False),
    ("extKeyUsage", x509.ExtendedKeyUsage([EKU.SERVER_AUTH, EKU.CLIENT_AUTH, EKU.OCSP_SIGNING]), False),
    ("extKeyUsage", x509.ExtendedKeyUsage([EKU.ANY_EXTENDED_KEY_USAGE]), False),
    ("subjectAltName", san(*GOOD_NAMES[1:]), True),
    ("subjectAltName", san(*GOOD_NAMES[:-1]), True),
    ("subjectAltName", san(*GOOD_NAMES, x509.DNSName(f"two.amf.{HOME}")), True),
    ("subjectAltName", san(*GOOD_NAMES, x509.DNSName(f"*.amf.{HOME}")), True),
    ("subjectAltName", san(url(urn(OTHER_ID)), *GOOD_NAMES[1:]), True),
    ("nfTypes", nftypes.encode(["SMF"]), False),
    ("nfTypes", nftypes.encode(["AMF", "SMF"]), False),
    ("nfTypes", types("3000"), False),
    ("nfTypes", types("0500"), False),
    ("subjectKeyIdentifier", x509.SubjectKeyIdentifier(b"1" * 20), False),
    ("authorityKeyIdentifier", x509.AuthorityKeyIdentifier(b"1" * 20, None, None), False),
    ("authorityKeyIdentifier", x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(SUBJECT)], 1), False),
    ("cRLDistributionPoints", points([url("http://other.example.org/ca.crl")], None, None, None), False),
    ("cRLDistributionPoints", points([url(CRL_URL)], None, frozenset({x509.ReasonFlags.key_compromise}), None), False),
    ("authorityInfoAccess", access(AIA.CA_ISSUERS, "http://other.example.org/ca.cer"), False),
    ("authorityInfoAccess", access(AIA.OCSP, CA_URL), False),
]


def found(certificate: x509.Certificate) -> str:
    with refused(Reason.INTERNAL) as caught:
        lint(certificate, TWO, KEY, CA.issuer)
    return caught.value.metadata["lint"]


@pytest.mark.parametrize(("name", "extension", "critical"), WRONG_EXTENSIONS)
def test_lint_finds_a_wrong_extension(
    certificate: x509.Certificate, name: str, extension: x509.ExtensionType, critical: bool
) -> None:
    assert found(rebuild(certificate, CA.issuing_key, put=((extension, critical),))) == name


def test_lint_finds_a_missing_extension(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        assert found(rebuild(certificate, CA.issuing_key, drop=(extension.oid,))) == "extensions"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("issuer", {"issuer": CA.root.subject}),
        ("issuer", {"issuer": SUBJECT}),
        ("subject", {"subject": x509.Name([])}),
        ("subject", {"subject": x509.Name([*SUBJECT, x509.NameAttribute(NameOID.COMMON_NAME, TWO.fqdns[0])])}),
        ("key", {"key": ec_key("other").public_key()}),
        ("validity", {"not_after": NOW - BACKDATING}),
        ("validity", {"not_after": NOW - BACKDATING + MAX_VALIDITY + timedelta(seconds=1)}),
    ],
)
def test_lint_finds_a_wrong_field(certificate: x509.Certificate, name: str, fields: dict[str, object]) -> None:
    assert found(rebuild(certificate, CA.issuing_key, **fields)) == name


def test_lint_finds_a_certificate_that_outlives_the_ca(certificate: x509.Certificate) -> None:
    end = CA.issuing.not_valid_after_utc
    assert found(rebuild(certificate, CA.issuing_key, not_before=end - DAY, not_after=end + DAY)) == "validity"


def test_lint_checks_the_key_it_is_told(certificate: x509.Certificate) -> None:
    other = ec_key("other").public_key()
    assert isinstance(other, ec.EllipticCurvePublicKey)
    with refused(Reason.INTERNAL):
        lint(certificate, TWO, other, CA.issuer)
