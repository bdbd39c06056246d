"""Revocation as relying parties see it: openssl with the CRL and with OCSP, over HTTP, within seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.errors import Reason
from tests.lab_kit import CALL_SECONDS, RunningLab, refused

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 30.0


def issue(lab: RunningLab) -> certificate_pb.Certificate:
    """A confirmed certificate of a software NF."""
    iak = lab.register()
    encoded = lab.redeem(iak)
    lab.confirm(iak.confirmation(encoded))
    return get(lab, name_of(encoded))


def name_of(encoded: bytes) -> str:
    return f"certificates/{x509.load_der_x509_certificate(encoded).serial_number:x}"


def get(lab: RunningLab, name: str) -> certificate_pb.Certificate:
    found: certificate_pb.Certificate = lab.oam.certificates.GetCertificate(
        certificate_pb.GetCertificateRequest(name=name), timeout=CALL_SECONDS
    )
    return found


def revoke(
    lab: RunningLab, name: str, reason: certificate_pb.RevocationReason.ValueType = certificate_pb.KEY_COMPROMISE
) -> certificate_pb.Certificate:
    request = certificate_pb.RevokeCertificateRequest(name=name, reason=reason)
    found: certificate_pb.Certificate = lab.oam.certificates.RevokeCertificate(request, timeout=CALL_SECONDS)
    return found


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Relying:
    """A relying party with openssl. It has the operator's root, and fetches the rest as the certificate says."""

    def __init__(self, lab: RunningLab, directory: Path, pem: str) -> None:
        self.root = lab.description["pki"]["trust_anchor"]
        self.directory = directory
        self.leaf = directory / "leaf.pem"
        self.leaf.write_text(pem)
        self.issuing = directory / "issuing.pem"
        certificate = x509.load_pem_x509_certificate(pem.encode())
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        urls = {entry.access_method: entry.access_location.value for entry in access}
        self.ocsp_url = urls[x509.AuthorityInformationAccessOID.OCSP]
        issuing = x509.load_der_x509_certificate(fetch(urls[x509.AuthorityInformationAccessOID.CA_ISSUERS]))
        self.issuing.write_bytes(issuing.public_bytes(Encoding.PEM))
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        [self.crl_url] = [name.value for point in points for name in point.full_name or ()]

    def crl(self) -> x509.CertificateRevocationList:
        return x509.load_der_x509_crl(fetch(self.crl_url))

    def verify(self) -> str:
        crl = self.directory / "crl.pem"
        crl.write_bytes(self.crl().public_bytes(Encoding.PEM))
        command = ["openssl", "verify", "-x509_strict", "-CAfile", self.root, "-untrusted", str(self.issuing)]
        command += ["-crl_check", "-CRLfile", str(crl), str(self.leaf)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def ocsp(self, *options: str) -> str:
        command = ["openssl", "ocsp", "-issuer", str(self.issuing), "-cert", str(self.leaf), "-url", self.ocsp_url]
        command += ["-CAfile", self.root, "-verify_other", str(self.issuing), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "Response verify OK" in done.stderr, "the answer's signature, its responder, and the nonce"
        return done.stdout


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def test_a_revoked_certificate_is_no_longer_good(running_lab: RunningLab, tmp_path: Path) -> None:
    issued = issue(running_lab)
    relying = Relying(running_lab, tmp_path, issued.pem)
    assert relying.verify().endswith("leaf.pem: OK\n")
    assert ": good" in relying.ocsp()
    before = relying.crl().extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    revoked = revoke(running_lab, issued.name)
    assert revoked.HasField("revoke_time")
    assert revoked.revocation_reason == certificate_pb.KEY_COMPROMISE
    # OCSP knows at once; the CRL is signed anew.
    assert ": revoked" in (said := relying.ocsp())
    assert "Reason: keyCompromise" in said
    assert ": revoked" in relying.ocsp("-no_nonce")
    eventually(lambda: "certificate revoked" in relying.verify(), "the CRL lists it")
    crl = relying.crl()
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == before + 1
    entry = crl.get_revoked_certificate_by_serial_number(int(issued.name.partition("/")[2], 16))
    assert entry is not None
    # Again, for the same reason: nothing happens. For another: it stays what it is.
    assert revoke(running_lab, issued.name) == revoked
    with refused(Reason.CERTIFICATE_REVOKED):
        revoke(running_lab, issued.name, certificate_pb.SUPERSEDED)
    assert get(running_lab, issued.name) == revoked


@pytest.mark.parametrize(
    ("name", "reason", "expected"),
    [
        (f"certificates/{uuid.uuid4().hex}", certificate_pb.KEY_COMPROMISE, Reason.CERTIFICATE_NOT_FOUND),
        ("certificates/", certificate_pb.KEY_COMPROMISE, Reason.INVALID_FIELD),
        ("registrations/1", certificate_pb.KEY_COMPROMISE, Reason.INVALID_FIELD),
        (f"certificates/{uuid.uuid4().hex}", certificate_pb.REVOCATION_REASON_UNSPECIFIED, Reason.INVALID_FIELD),
        (f"certificates/{uuid.uuid4().hex}", 3, Reason.INVALID_FIELD),
        (f"certificates/{uuid.uuid4().hex}", 7, Reason.INVALID_FIELD),
    ],
)
def test_what_cannot_be_revoked(running_lab: RunningLab, name: str, reason: int, expected: Reason) -> None:
    """Neither what was never issued, nor for cACompromise, certificateHold and the like."""
    with refused(expected):
        revoke(running_lab, name, certificate_pb.RevocationReason.ValueType(reason))


def test_only_oam_of_the_tenant_may_revoke(running_lab: RunningLab) -> None:
    issued = issue(running_lab)
    request = certificate_pb.RevokeCertificateRequest(name=issued.name, reason=certificate_pb.SUPERSEDED)
    with refused(Reason.CERTIFICATE_NOT_FOUND):
        running_lab.caller("oam", "other").certificates.RevokeCertificate(request, timeout=CALL_SECONDS)
    with refused(Reason.METHOD_NOT_ALLOWED):
        running_lab.caller("cm-proxy", "lab").certificates.RevokeCertificate(request, timeout=CALL_SECONDS)
    assert not get(running_lab, issued.name).HasField("revoke_time")


def test_an_unconfirmed_certificate_that_is_revoked_is_not_confirmed(running_lab: RunningLab) -> None:
    iak = running_lab.register()
    encoded = running_lab.redeem(iak)
    revoke(running_lab, name_of(encoded))
    with refused(Reason.CERTIFICATE_REVOKED):
        running_lab.confirm(iak.confirmation(encoded))


def test_a_certificate_that_nobody_confirms_is_revoked(running_lab: RunningLab, tmp_path: Path) -> None:
    """Security rule 13; one that was confirmed stays."""
    iak, confirmed = running_lab.register(), issue(running_lab)
    name = name_of(running_lab.redeem(iak))
    with running_lab.second_ca(tmp_path, confirm_within_minutes=0.001) as second:

        def found(name: str) -> certificate_pb.Certificate:
            request = certificate_pb.GetCertificateRequest(name=name)
            certificate: certificate_pb.Certificate = second.oam.certificates.GetCertificate(request, timeout=20)
            return certificate

        eventually(lambda: found(name).HasField("revoke_time"), "revoked")
        assert found(name).revocation_reason == certificate_pb.CESSATION_OF_OPERATION
        assert not found(confirmed.name).HasField("revoke_time")


def nftrust(lab: RunningLab, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "nftrust.cli.main", "--config", str(lab.config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_from_the_terminal(running_lab: RunningLab) -> None:
    issued, kept = issue(running_lab), issue(running_lab)
    code, said = nftrust(running_lab, "cert", "revoke", issued.name, "--reason", "cessationOfOperation")
    assert (code, issued.name in said, "cessationOfOperation" in said) == (0, True, True)
    code, said = nftrust(running_lab, "cert", "revoke", issued.name, "--reason", "superseded")
    assert (code, "CERTIFICATE_REVOKED" in said) == (1, True)
    assert "cessationOfOperation" in nftrust(running_lab, "cert", "show", issued.name)[1]

    def listed() -> bool:
        code, said = nftrust(running_lab, "ca", "crl", "--output", "json")
        assert code == 0, said
        entries = {entry["certificate"]: entry["reason"] for entry in json.loads(said)["entries"]}
        assert kept.name not in entries
        return entries.get(issued.name) == "cessationOfOperation"

    eventually(listed, "the CRL lists it")
    # The lab's certificates are good for 90 days, less what has passed: all that is not revoked is in a band.
    code, said = nftrust(running_lab, "expiry", "--output", "json")
    bands = {item["name"]: item["band"] for item in json.loads(said)}
    assert bands[kept.name] == "90 days"
    assert issued.name not in bands
