"""Every refusal of a CSR, by the number of its check, and what a hostile one can provoke."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from nftrust.x509.csr import MAX_CSR_BYTES, check_csr
from nftrust.x509.keys import NfPublicKey
from tests.unit.support import (
    AMF,
    HOME,
    NF_ID,
    OTHER_ID,
    SUBJECT,
    ec_key,
    refusal,
    refused,
    rsa_key,
    sign_csr_info,
    spki,
    tlv,
)

ISSUER = ec_key("issuer").public_key()
KEY = ec_key("csr")
URN = x509.UniformResourceIdentifier(urn(NF_ID))
FQDN = AMF.fqdns[0]
ECDSA_SHA256 = "2a8648ce3d040302"
#: AlgorithmIdentifier of a P-256 key.
EC_P256 = tlv(0x30, bytes.fromhex("06072a8648ce3d0201 06082a8648ce3d030107"))


def check(der: bytes, issuer: ec.EllipticCurvePublicKey = ISSUER) -> NfPublicKey:
    return check_csr(der, AMF, SUBJECT, issuer)


def csr(
    key: object = KEY,
    names: Sequence[x509.GeneralName] | None = (URN,),
    *,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = (),
    extensions: Sequence[x509.ExtensionType] = (),
    algorithm: hashes.HashAlgorithm | None = None,
    **sign: object,
) -> bytes:
    """A request, DER, signed by ``key``."""
    attributes = [x509.NameAttribute(oid, value) for oid, value in subject]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    chosen = None if isinstance(key, ed25519.Ed25519PrivateKey) else algorithm or hashes.SHA256()
    return builder.sign(key, chosen, **sign).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def info_of(der: bytes) -> bytes:
    return x509.load_der_x509_csr(der).tbs_certrequest_bytes


GOOD = csr()
INFO = info_of(GOOD)


def test_a_good_request() -> None:
    assert check(GOOD) == KEY.public_key()


def test_every_registered_name_may_be_asked_for() -> None:
    names = [*AMF.alternative_names()]
    subject = [
        (NameOID.COUNTRY_NAME, "XX"),
        (NameOID.ORGANIZATION_NAME, HOME),
        (NameOID.COMMON_NAME, FQDN),
    ]
    assert check(csr(names=names, subject=subject)) == KEY.public_key()
    assert check(csr(subject=[(NameOID.COMMON_NAME, urn(NF_ID))])) == KEY.public_key()


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda a: a.name)
def test_sha2_is_taken(algorithm: hashes.HashAlgorithm) -> None:
    assert check(csr(algorithm=algorithm)) == KEY.public_key()


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_keys_are_taken(bits: int) -> None:
    assert check(csr(rsa_key(bits))) == rsa_key(bits).public_key()


def test_rsa_pss_is_taken() -> None:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    assert check(csr(rsa_key(), rsa_padding=pss)) == rsa_key().public_key()


# Checks 1 and 2: size and form


@pytest.mark.parametrize("size", [MAX_CSR_BYTES + 1, 9 * 1024, 1_000_000])
@pytest.mark.parametrize("start", [b"", GOOD])
def test_too_large(size: int, start: bytes) -> None:
    with refused(Reason.CSR_TOO_LARGE):
        check(start.ljust(size, b"\0"))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\0",
        b"garbage",
        b"\x30\x80\0\0",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30" * MAX_CSR_BYTES,
        b"\xa0\x80" * 4000,
        GOOD + b"\0",
        GOOD.ljust(MAX_CSR_BYTES, b"\0"),
        b"\0" + GOOD,
        GOOD + GOOD,
        INFO,
        x509.load_der_x509_csr(GOOD).public_bytes(serialization.Encoding.PEM),
    ],
)
def test_garbage(der: bytes) -> None:
    with refused(Reason.CSR_MALFORMED):
        check(der)


def test_truncated_anywhere() -> None:
    for length in range(len(GOOD)):
        with refused(Reason.CSR_MALFORMED):
            check(GOOD[:length])


# Check 3: the key


def ec_on(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa_key(1024),
        lambda: rsa_key(2048, 3),
        lambda: ec_on(ec.SECP192R1()),
        lambda: ec_on(ec.SECP224R1()),
        lambda: ec_on(ec.SECP256K1()),
        lambda: ec_on(ec.BrainpoolP256R1()),
        lambda: ec_on(ec.SECP521R1()),
        lambda: ed25519.Ed25519PrivateKey.generate(),
        lambda: _small_dsa(),
    ],
    ids=["rsa-1024", "rsa-e3", "p-192", "p-224", "k-256", "brainpool", "p-521", "ed25519", "dsa"],
)
def test_refused_key(make: object) -> None:
    der = csr(make())  # type: ignore[operator]
    with refused(Reason.CSR_KEY_REFUSED):
        check(der)


def _small_dsa() -> dsa.DSAPrivateKey:
    return dsa.generate_private_key(1024)


def test_rsa_beyond_4096_bits() -> None:
    modulus = (1 << 4100) + 1
    info = _info(_spki_rsa(modulus, 65537))
    with refused(Reason.CSR_KEY_REFUSED):
        check(sign_csr_info(info, KEY, hashes.SHA256(), ECDSA_SHA256))


def test_key_stronger_than_the_ca() -> None:
    der = csr(ec_key("csr", "secp384r1"))
    with refused(Reason.CSR_KEY_REFUSED) as caught:
        check(der)
    assert "stronger" in caught.value.message
    assert check(der, ec_key("issuer", "secp384r1").public_key()) == ec_key("csr", "secp384r1").public_key()


def _spki_rsa(modulus: int, exponent: int) -> bytes:
    def integer(value: int) -> bytes:
        return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))

    algorithm = tlv(0x30, bytes.fromhex("06092a864886f70d010101 0500"))
    return tlv(0x30, algorithm + tlv(0x03, b"\0" + tlv(0x30, integer(modulus) + integer(exponent))))


def _info(public: bytes, attributes: bytes = b"") -> bytes:
    return tlv(0x30, tlv(0x02, b"\0") + tlv(0x30, b"") + public + tlv(0xA0, attributes))


@pytest.mark.parametrize(
    "public",
    [
        tlv(0x30, tlv(0x30, bytes.fromhex("06032a0304")) + tlv(0x03, b"\0\1")),
        tlv(0x30, tlv(0x30, bytes.fromhex("06072a8648ce3d0201 06032a0304")) + tlv(0x03, b"\0\4" + b"\1" * 64)),
        tlv(
            0x30, tlv(0x30, bytes.fromhex("06072a8648ce3d0201 06082a8648ce3d030107")) + tlv(0x03, b"\0\4" + b"\1" * 64)
        ),
        tlv(0x30, EC_P256 + tlv(0x03, b"\0\0")),
        tlv(0x30, EC_P256 + tlv(0x03, b"\0")),
        _spki_rsa(0, 0),
        _spki_rsa(4, 2),
    ],
    ids=["unknown algorithm", "unknown curve", "off the curve", "infinity", "empty", "rsa zero", "rsa even"],
)
def test_key_that_is_none(public: bytes) -> None:
    with refused(Reason.CSR_KEY_REFUSED):
        check(sign_csr_info(_info(public), KEY, hashes.SHA256(), ECDSA_SHA256))


# Check 4: the algorithm


@pytest.mark.parametrize("algorithm", [hashes.SHA224(), hashes.SHA3_256()], ids=lambda a: a.name)
def test_refused_hash(algorithm: hashes.HashAlgorithm) -> None:
    with refused(Reason.CSR_ALGORITHM_REFUSED):
        check(csr(algorithm=algorithm))


@pytest.mark.parametrize(
    "oid",
    ["2a8648ce3d0401", "2a8648ce3d040301", "2b6570", "2a864886f70d010104", "2a0304", "2b06010401"],
    ids=["ecdsa-sha1", "ecdsa-sha224", "ed25519", "rsa-md5", "unknown", "private"],
)
def test_refused_algorithm(oid: str) -> None:
    with refused(Reason.CSR_ALGORITHM_REFUSED):
        check(sign_csr_info(INFO, KEY, hashes.SHA256(), oid))


def test_sha1_signature_that_would_verify() -> None:
    digest = hashes.Hash(hashes.SHA1())
    digest.update(INFO)
    # ECDSA takes the digest as a number: SHA-1's, padded on the left, signs like one of 32 octets.
    signature = KEY.sign(digest.finalize().rjust(32, b"\0"), ec.ECDSA(Prehashed(hashes.SHA256())))
    algorithm = tlv(0x30, bytes.fromhex("06072a8648ce3d0401"))
    with refused(Reason.CSR_ALGORITHM_REFUSED):
        check(tlv(0x30, INFO + algorithm + tlv(0x03, b"\0" + signature)))


# Check 5: proof of possession


def test_signed_by_another_key() -> None:
    with refused(Reason.CSR_SIGNATURE_INVALID):
        check(sign_csr_info(INFO, ec_key("other"), hashes.SHA256(), ECDSA_SHA256))


def test_signature_over_other_content() -> None:
    other = csr(subject=[(NameOID.COMMON_NAME, FQDN)])
    _, _, algorithm_and_signature = other.partition(info_of(other))
    with refused(Reason.CSR_SIGNATURE_INVALID):
        check(tlv(0x30, INFO + algorithm_and_signature))


def test_algorithm_of_another_key_type() -> None:
    with refused(Reason.CSR_SIGNATURE_INVALID):
        check(sign_csr_info(INFO, KEY, hashes.SHA256(), "2a864886f70d01010b"))


# Check 6: extensions


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage(False, False, False, False, False, True, True, False, False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.SubjectKeyIdentifier(b"1"),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.34"), bytes.fromhex("30051603") + b"UDM"),
    ],
    ids=lambda extension: extension.oid.dotted_string,
)
def test_extension_beyond(extension: x509.ExtensionType) -> None:
    with refused(Reason.CSR_EXTENSION_REFUSED) as caught:
        check(csr(extensions=[extension]))
    assert caught.value.metadata == {"oid": extension.oid.dotted_string}


# Check 7: names


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        [x509.DNSName(FQDN)],
        [x509.UniformResourceIdentifier(urn(OTHER_ID))],
        [x509.UniformResourceIdentifier(urn(NF_ID).upper())],
        [x509.UniformResourceIdentifier(urn(NF_ID) + "/")],
        [x509.DNSName(urn(NF_ID))],
        [x509.RFC822Name(urn(NF_ID))],
    ],
)
def test_registered_urn_is_missing(names: list[x509.GeneralName] | None) -> None:
    with refused(Reason.CSR_IDENTITY_MISSING):
        check(csr(names=names) if names != [] else _csr_with_empty_names())


def _csr_with_empty_names() -> bytes:
    """A subjectAltName without names; the builder refuses to make one."""
    extension = tlv(0x30, bytes.fromhex("0603551d11") + tlv(0x04, tlv(0x30, b"")))
    request = tlv(0x30, bytes.fromhex("06092a864886f70d01090e") + tlv(0x31, tlv(0x30, extension)))
    return sign_csr_info(_info(spki(KEY.public_key()), request), KEY, hashes.SHA256(), ECDSA_SHA256)


@pytest.mark.parametrize(
    "beyond",
    [
        x509.UniformResourceIdentifier(urn(OTHER_ID)),
        x509.UniformResourceIdentifier("https://evil.example.org"),
        x509.UniformResourceIdentifier(f"https://{FQDN}/"),
        x509.UniformResourceIdentifier(f"http://{FQDN}"),
        x509.DNSName("evil.example.org"),
        x509.DNSName(f"two.amf.{HOME}"),
        x509.DNSName(f"*.amf.{HOME}"),
        x509.DNSName(f"*.{HOME}"),
        x509.DNSName("*"),
        x509.DNSName(FQDN + "."),
        x509.DNSName(FQDN + "\0.evil.example.org"),
        x509.RFC822Name(f"one@{HOME}"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        x509.DirectoryName(SUBJECT),
        x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x0c\x01x"),
    ],
    ids=repr,
)
def test_name_beyond_the_registration(beyond: x509.GeneralName) -> None:
    with refused(Reason.CSR_IDENTITY_MISMATCH):
        check(csr(names=[URN, beyond]))


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (NameOID.COMMON_NAME, "evil.example.org"),
        (NameOID.COMMON_NAME, f"*.{HOME}"),
        (NameOID.COMMON_NAME, urn(OTHER_ID)),
        (NameOID.COMMON_NAME, FQDN.upper()),
        (NameOID.COUNTRY_NAME, "YY"),
        (NameOID.ORGANIZATION_NAME, "another operator"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, HOME),
        (NameOID.ORGANIZATION_NAME, FQDN),
        (NameOID.SERIAL_NUMBER, "1"),
        (NameOID.EMAIL_ADDRESS, f"one@{HOME}"),
    ],
)
def test_subject_beyond_the_registration(oid: x509.ObjectIdentifier, value: str) -> None:
    with refused(Reason.CSR_IDENTITY_MISMATCH):
        check(csr(subject=[(oid, value)]))


# Hostile bytes


def test_each_changed_octet_is_refused() -> None:
    for position in range(len(GOOD)):
        for flip in (0x01, 0x80, 0xFF):
            der = bytearray(GOOD)
            der[position] ^= flip
            _, reason = refusal(lambda der=der: check(bytes(der)))
            if reason is None:  # the count of unused bits of the signature is not signed
                assert info_of(bytes(der)) == INFO
            else:
                assert reason.name.startswith("CSR_")


@given(st.lists(st.tuples(st.integers(0, len(INFO) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_changed_content_that_is_signed_anew(changes: list[tuple[int, int]]) -> None:
    info = bytearray(INFO)
    for position, flip in changes:
        info[position] ^= flip
    key, reason = refusal(lambda: check(sign_csr_info(bytes(info), KEY, hashes.SHA256(), ECDSA_SHA256)))
    if reason is not None:
        assert reason.name.startswith("CSR_")
    else:
        assert key == KEY.public_key()
        assert urn(NF_ID).encode() in info


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_by_type(der: bytes) -> None:
    with refused(Reason.CSR_MALFORMED):
        check(der)


@given(st.binary(max_size=200))
def test_any_attributes_are_refused_by_type(attributes: bytes) -> None:
    with pytest.raises(NftrustError) as caught:
        check(sign_csr_info(_info(spki(KEY.public_key()), attributes), KEY, hashes.SHA256(), ECDSA_SHA256))
    assert caught.value.reason in (Reason.CSR_MALFORMED, Reason.CSR_IDENTITY_MISSING)
