"""CA certificates, the response certificate and CRLs."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nftrust.errors import Reason
from nftrust.x509 import authority
from nftrust.x509.authority import RESPONSE_EKU, check_issuing, check_response_certificate
from nftrust.x509.path import validate_path
from nftrust.x509.profile import BACKDATING
from tests.pki import make_ca
from tests.unit.support import AMF, DAY, HOME, NOW, SUBJECT, YEAR, NfCa, ec_key, nf_ca, rebuild, refused, rsa_key

CA = nf_ca()
CA_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
#: A CA that shares all names with ``CA``, by other keys.
TWIN = nf_ca("twin")


def basic(certificate: x509.Certificate) -> x509.Extension[x509.BasicConstraints]:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints)


def usage(certificate: x509.Certificate) -> x509.Extension[x509.KeyUsage]:
    return certificate.extensions.get_extension_for_class(x509.KeyUsage)


def key_id(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def issuer_id(certificate: x509.Certificate) -> bytes | None:
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier


def test_ca_name() -> None:
    assert [(item.oid, item.value) for item in authority.ca_name("XX", HOME, "issuing")] == [
        (NameOID.COUNTRY_NAME, "XX"),
        (NameOID.ORGANIZATION_NAME, HOME),
        (NameOID.COMMON_NAME, "issuing"),
    ]


def test_root() -> None:
    root = CA.root
    root.verify_directly_issued_by(root)
    assert (root.subject, root.public_key()) == (root.issuer, CA.root_key.public_key())
    assert (basic(root).critical, basic(root).value.ca, basic(root).value.path_length) == (True, True, None)
    assert (usage(root).critical, usage(root).value) == (True, CA_USAGE)
    assert (root.not_valid_before_utc, root.not_valid_after_utc) == (NOW - BACKDATING, NOW + 10 * YEAR)


@pytest.mark.parametrize("curve", ["secp256r1", "secp384r1"])
def test_issuing(curve: str) -> None:
    ca = nf_ca(curve, curve)
    issuing = ca.issuing
    issuing.verify_directly_issued_by(ca.root)
    assert (basic(issuing).critical, basic(issuing).value.ca, basic(issuing).value.path_length) == (True, True, 0)
    assert (usage(issuing).critical, usage(issuing).value) == (True, CA_USAGE)
    assert issuer_id(issuing) == key_id(ca.root)
    assert issuing.signature_hash_algorithm.name == {"secp256r1": "sha256", "secp384r1": "sha384"}[curve]
    check_issuing(issuing, ca.issuing_key.public_key(), [ca.root])


def test_issuing_request_to_an_external_root() -> None:
    request = authority.issuing_csr(CA.issuing_key, CA.issuing.subject)
    assert request.is_signature_valid
    assert (request.subject, request.public_key()) == (CA.issuing.subject, CA.issuing_key.public_key())
    asked = {extension.oid: (extension.critical, extension.value) for extension in request.extensions}
    assert asked == {
        x509.BasicConstraints.oid: (True, x509.BasicConstraints(ca=True, path_length=0)),
        x509.KeyUsage.oid: (True, CA_USAGE),
    }


def reissued(**changes: object) -> x509.Certificate:
    """The issuing CA's certificate with changes, by its root."""
    return rebuild(CA.issuing, CA.root_key, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("why", "certificate"),
    [
        ("not for the key in the token", lambda: reissued(key=ec_key("other").public_key())),
        ("extension is missing", lambda: reissued(drop=(x509.BasicConstraints.oid,))),
        ("extension is missing", lambda: reissued(drop=(x509.KeyUsage.oid,))),
        ("extension is missing", lambda: reissued(drop=(x509.SubjectKeyIdentifier.oid,))),
        ("basicConstraints", lambda: reissued(put=((x509.BasicConstraints(True, None), True),))),
        ("basicConstraints", lambda: reissued(put=((x509.BasicConstraints(True, 1), True),))),
        ("basicConstraints", lambda: reissued(put=((x509.BasicConstraints(False, None), True),))),
        ("basicConstraints", lambda: reissued(put=((x509.BasicConstraints(True, 0), False),))),
        ("keyUsage", lambda: reissued(put=((CA_USAGE, False),))),
        ("keyUsage", lambda: reissued(put=((_usage(cert_sign=False, crl_sign=True), True),))),
        ("keyUsage", lambda: reissued(put=((_usage(cert_sign=True, crl_sign=False), True),))),
        ("chain to the root", lambda: rebuild(CA.issuing, TWIN.root_key)),
        ("chain to the root", lambda: reissued(issuer=SUBJECT)),
    ],
)
def test_refused_issuing(why: str, certificate: object) -> None:
    with refused(Reason.CONFIG_INVALID) as caught:
        check_issuing(certificate(), CA.issuing_key.public_key(), [CA.root])  # type: ignore[operator]
    assert why in caught.value.message


def _usage(*, cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, cert_sign, crl_sign, False, False)


@pytest.mark.parametrize("chain", [[], [TWIN.root], [CA.root, TWIN.root], [CA.issuing]])
def test_refused_chain_of_the_issuing(chain: list[x509.Certificate]) -> None:
    with refused(Reason.CONFIG_INVALID):
        check_issuing(CA.issuing, CA.issuing_key.public_key(), chain)


def test_issuing_below_an_intermediate() -> None:
    root = make_ca("operator root")
    middle = root.intermediate("operator policy")
    assert isinstance(middle.key, ec.EllipticCurvePrivateKey)
    key = CA.issuing_key.public_key()
    issuing = authority.make_issuing(middle.key, middle.certificate, key, CA.issuing.subject, NOW, DAY)
    check_issuing(issuing, key, [middle.certificate, root.certificate])
    with refused(Reason.CONFIG_INVALID) as caught:
        check_issuing(issuing, key, [middle.certificate])
    assert "root" in caught.value.message


# The response certificate


def test_response_certificate() -> None:
    response = CA.response
    response.verify_directly_issued_by(CA.issuing)
    assert response.not_valid_after_utc == CA.issuing.not_valid_after_utc
    assert issuer_id(response) == key_id(CA.issuing)
    extended = response.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (extended.critical, list(extended.value)) == (True, [RESPONSE_EKU])
    assert usage(response).value.digital_signature
    assert not usage(response).value.key_cert_sign
    assert check_response_certificate(response, CA.chain, NOW) == CA.response_key.public_key()


def responded(**changes: object) -> x509.Certificate:
    return rebuild(CA.response, CA.issuing_key, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "certificate",
    [
        lambda: CA.issue(AMF),
        lambda: CA.issuing,
        lambda: TWIN.response,
        lambda: responded(drop=(x509.ExtendedKeyUsage.oid,)),
        lambda: responded(put=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True),)),
        lambda: responded(put=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), True),)),
        lambda: responded(key=rsa_key().public_key()),
        lambda: responded(not_after=NOW - BACKDATING / 2),
        lambda: responded(not_before=NOW + DAY),
        lambda: rebuild(CA.response, TWIN.issuing_key),
        lambda: rebuild(CA.response, CA.response_key, issuer=CA.response.subject),
        lambda: make_ca("services").issue(uri_sans=["urn:nftrust:ca-ra:one"], eku=[RESPONSE_EKU]).certificate,
    ],
    ids=[
        "nf certificate",
        "ca certificate",
        "other ca",
        "no eku",
        "server",
        "any",
        "rsa",
        "expired",
        "not yet",
        "forged",
        "self-signed",
        "services ca",
    ],
)
def test_refused_response_certificate(certificate: object) -> None:
    with refused(Reason.RESPONSE_INVALID):
        check_response_certificate(certificate(), CA.chain, NOW)  # type: ignore[operator]


def test_response_certificate_of_an_nf_below_the_ca() -> None:
    """pathLen 0, and an NF is no CA: whatever an NF's key signs is not the CA's answer."""
    nf = CA.issue(AMF)
    forged = rebuild(CA.response, ec_key("nf"), issuer=nf.subject)
    with refused(Reason.RESPONSE_INVALID):
        check_response_certificate(forged, [nf, *CA.chain], NOW)


@pytest.mark.parametrize(
    "chain", [[], [CA.root], [CA.issuing, TWIN.root], [TWIN.issuing, CA.root], TWIN.chain, [*TWIN.chain, CA.root]]
)
def test_response_certificate_by_another_chain(chain: list[x509.Certificate]) -> None:
    with refused(Reason.RESPONSE_INVALID):
        check_response_certificate(CA.response, chain, NOW)


def test_chain_that_has_expired() -> None:
    short = NfCa("short", lifetime=4 * DAY)
    assert check_response_certificate(short.response, short.chain, NOW + DAY)
    with refused(Reason.RESPONSE_INVALID):
        check_response_certificate(short.response, short.chain, NOW + 3 * DAY)


def test_an_nf_certificate_leads_to_the_root() -> None:
    validate_path([CA.issue(AMF), CA.issuing], [CA.root], NOW)
