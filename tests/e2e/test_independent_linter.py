"""What nftrust issues, judged by an independent linter: certificates of every kind, CRL, OCSP response (pkilint)."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from nftrust.lab.layout import HOME_DOMAIN
from tests.lab_kit import RunningLab

pytestmark = [pytest.mark.process, pytest.mark.token]

#: Findings that are meant, and what of.
ACCEPTED = {
    # TS 33.310 table 6.1.3c.3-1 wants the extension critical, whatever the subject.
    "pkix.san_extension_is_critical_non_empty_subject": ("",),
    # The linter's syntax has neither URNs (RFC 8141) nor hosts without a dot.
    "pkix.invalid_uri_syntax": ('"urn:uuid:', '"urn:nftrust:', '"http://localhost:'),
    "pkix.invalid_domain_name_syntax": ('"localhost"',),
}


def findings(tool: str, path: Path, *options: str) -> set[str]:
    """Notices and worse which are not accepted: code and message."""
    command = [str(Path(sys.executable).with_name(tool)), "lint", "-s", "NOTICE", "-f", "JSON", *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout, done.stderr
    found = [each for result in json.loads(done.stdout)["results"] for each in result["finding_descriptions"]]
    return {f"{each['code']} {each['message']}" for each in found if not accepted(each["code"], each["message"] or "")}


def accepted(code: str, message: str) -> bool:
    return any(part in message for part in ACCEPTED.get(code, ()))


@pytest.fixture(scope="module")
def leaf(running_lab: RunningLab) -> x509.Certificate:
    """An NF certificate."""
    return x509.load_der_x509_certificate(running_lab.redeem(running_lab.register()))


def issuing(lab: RunningLab) -> x509.Certificate:
    return x509.load_pem_x509_certificates((lab.lab.role("ca_ra") / "chain.pem").read_bytes())[0]


def fetched(url: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data, {"Content-Type": "application/ocsp-request"} if data else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def asked(lab: RunningLab, leaf: x509.Certificate) -> bytes:
    request = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuing(lab), hashes.SHA1()).build()
    url = next(
        access.access_location.value
        for access in leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        if access.access_method == x509.AuthorityInformationAccessOID.OCSP
    )
    return fetched(url, request.public_bytes(Encoding.DER))


def written(directory: Path, certificate: x509.Certificate) -> Path:
    path = directory / "certificate.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def test_an_nf_certificate(leaf: x509.Certificate, tmp_path: Path) -> None:
    assert findings("lint_pkix_cert", written(tmp_path, leaf)) == set()


@pytest.mark.parametrize(
    "name",
    [
        "ca_ra/root.pem",
        "ca_ra/chain.pem",
        "ca_ra/response.pem",
        "pki/services-ca.pem",
        "pki/day0-root.pem",
        "pki/oam.pem",
        "cmproxy/client.pem",
        "ca_ra/server.pem",
        "nfs/amf/day0.pem",
    ],
)
def test_a_certificate_of_the_lab(running_lab: RunningLab, tmp_path: Path, name: str) -> None:
    certificate = x509.load_pem_x509_certificates((running_lab.lab.directory / name).read_bytes())[0]
    assert findings("lint_pkix_cert", written(tmp_path, certificate)) == set()


def test_the_ocsp_responder_and_its_answer(running_lab: RunningLab, leaf: x509.Certificate, tmp_path: Path) -> None:
    answer = asked(running_lab, leaf)
    path = tmp_path / "response.der"
    path.write_bytes(answer)
    assert findings("lint_ocsp_response", path) == set()
    [responder] = ocsp.load_der_ocsp_response(answer).certificates
    assert findings("lint_pkix_cert", written(tmp_path, responder)) == set()


def test_the_crl(leaf: x509.Certificate, tmp_path: Path) -> None:
    [point] = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    path = tmp_path / "crl.der"
    path.write_bytes(fetched(point.full_name[0].value))
    assert findings("lint_crl", path, "-t", "CRL", "-p", "PKIX") == set()


def test_the_linter_sees_what_is_wrong(running_lab: RunningLab, tmp_path: Path) -> None:
    wrong = running_lab.services_authority.issue(dns_sans=[f"-{HOME_DOMAIN}"]).certificate
    assert "pkix.invalid_domain_name_syntax" in " ".join(findings("lint_pkix_cert", written(tmp_path, wrong)))
