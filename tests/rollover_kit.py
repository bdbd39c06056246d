"""A CA/RA whose issuing CA is rolled over, and relying parties with openssl on either side."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509

from ca_ra.__main__ import ROLE
from ca_ra.config import CaRaConfig
from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.cli.download import fetch
from nftrust.config import load
from nftrust.lab.layout import ADDRESS, HOST
from nftrust.messages import RESPONSE_TYP, TRUST_BUNDLE_URL, TrustBundleResponse
from nftrust.x509.path import pem_chain
from softhsm import create_token
from tests.lab_kit import CALL_SECONDS, Channels, Process, RunningLab, free_port, read_toml, unlimited, write_toml
from tests.soft_nf import Iak, SoftNf

LEAD_IS_OVER = ("--lead-hours", "0")


@dataclass(frozen=True)
class Issued:
    """An NF's certificate, and what came with it."""

    iak: Iak
    der: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)

    @property
    def issuing(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(jose.b64url_decode(self.iak.info.ca_certificates[0]))

    @property
    def name(self) -> str:
        return f"certificates/{self.certificate.serial_number:x}"

    def access(self, method: x509.ObjectIdentifier) -> str:
        found = self.certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        return str(next(each.access_location.value for each in found if each.access_method == method))

    @property
    def crl_url(self) -> str:
        points = self.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        [url] = [name.value for point in points for name in point.full_name or ()]
        return str(url)


@dataclass
class RollingCa:
    """A CA/RA of its own tokens and its own database, beside a running lab."""

    lab: RunningLab
    directory: Path
    config: Path
    root_token: Path
    oam: Channels
    #: The enrolment information as delivered, by registration.
    delivered: dict[str, str] = field(default_factory=dict)
    _process: Process | None = field(default=None)

    @classmethod
    @contextlib.contextmanager
    def open(cls, lab: RunningLab, directory: Path) -> Iterator[RollingCa]:
        tree = read_toml(lab.lab.role("ca_ra") / "config.toml")
        ports = {name: free_port() for name in ("management", "enrolment", "http")}
        for name, port in ports.items():
            tree[name]["address"] = f"{ADDRESS}:{port}"
        tree["http"]["public_url"] = f"http://{HOST}:{ports['http']}"
        del tree["probe"]
        tree["store"] = {"url": f"sqlite:///{directory / 'store.sqlite'}"}
        tree["ca"] |= {"chain": str(directory / "chain.pem"), "response_certificate": str(directory / "response.pem")}
        tree["token"] = _token(directory, "ca")
        tree["registration"]["endpoints"] = [f"{HOST}:{ports['enrolment']}"]
        config, root_token = directory / "ca_ra.toml", directory / "root.toml"
        write_toml(config, tree)
        root_token.write_text(tomli_w.dumps(_token(directory, "root")))
        targets = {"ca_ra": f"{HOST}:{ports['management']}", "enrolment": f"{HOST}:{ports['enrolment']}"}
        with contextlib.ExitStack() as stack:
            made = cls(lab, directory, config, root_token, Channels(stack, lab.oam.credentials, targets))
            made.command("migrate")
            made.command("init", "--root-token", str(root_token))
            made.start()
            try:
                yield made
            finally:
                made.stop()

    # The process

    def command(self, *arguments: str) -> None:
        """`ca-ra` as a person runs it, in this process. Raises NftrustError where it would print one."""
        name, *rest = arguments
        options = ROLE._parser().parse_args([name, "--config", str(self.config), *rest])
        options.handler(load(CaRaConfig, self.config), options)

    def rollover(self, action: str, *options: str) -> None:
        self.command("rollover", action, *options)

    def start(self) -> None:
        self._process = Process.start("ca_ra", self.config)
        self._process.wait_ready()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    # OAM

    def about(self) -> Any:
        request = certificate_pb.GetCertificateAuthorityRequest()
        return self.oam.certificates.GetCertificateAuthority(request, timeout=CALL_SECONDS, wait_for_ready=True)

    def states(self) -> dict[int, str]:
        """By generation."""
        return {each.generation: certificate_pb.IssuingCa.State.Name(each.state) for each in self.about().issuing_cas}

    def active(self) -> Any:
        [found] = [each for each in self.about().issuing_cas if each.state == certificate_pb.IssuingCa.ACTIVE]
        return found

    def revoke(self, issued: Issued) -> None:
        request = certificate_pb.RevokeCertificateRequest(name=issued.name, reason=certificate_pb.SUPERSEDED)
        self.oam.certificates.RevokeCertificate(request, timeout=CALL_SECONDS, wait_for_ready=True)

    # NFs

    def soft_nf(self) -> SoftNf:
        return self.lab.soft_nf()

    def register(self) -> Iak:
        nf = self.lab.soft_nf()
        request = nf.request()
        answer = self.oam.registrations.RegisterEndEntity(request, timeout=CALL_SECONDS, wait_for_ready=True)
        self.delivered[answer.registration.name] = answer.enrolment_info
        return nf.accept(answer)

    def redeem(self, iak: Iak) -> Issued:
        """Its certificate, confirmed; both answers verify by the response key that the NF was told of."""
        proof = iak.proof()
        request = enrolment_pb.EnrolCertificateRequest(proof=proof)
        answer = unlimited(self.oam.enrolments.EnrolCertificate, request)
        issued = Issued(iak, iak.certificate(answer.signed_response, proof))
        confirmation = iak.confirmation(issued.der)
        request = enrolment_pb.ConfirmCertificateRequest(proof=confirmation)
        iak.confirmed(unlimited(self.oam.enrolments.ConfirmCertificate, request).signed_response, confirmation)
        return issued

    def bundle(self, response_certificate: x509.Certificate, ca_id: str = "") -> TrustBundleResponse:
        """Signed by that response key, over our nonce."""
        nonce = secrets.token_bytes(32)
        request = enrolment_pb.GetTrustBundleRequest(nonce=nonce, ca_id=ca_id)
        answer = self.oam.enrolments.GetTrustBundle(request, timeout=CALL_SECONDS, wait_for_ready=True)
        parts = jose.split(
            answer.signed_response, typ=RESPONSE_TYP, url=TRUST_BUNDLE_URL, algorithms=frozenset({"ES256"})
        )
        jose.verify(response_certificate.public_key(), parts)
        bundle = jose.parse_payload(parts, TrustBundleResponse)
        assert bundle.request_sha256 == jose.b64url(jose.sha256(nonce))
        return bundle


def response_certificate(iak: Iak) -> x509.Certificate:
    return x509.load_der_x509_certificate(jose.b64url_decode(iak.info.response_certificate))


def roots(bundle: TrustBundleResponse) -> list[x509.Certificate]:
    """The anchors of an NF that has this bundle."""
    encoded = dict.fromkeys(entry.ca_certificates[-1] for entry in bundle.authorities)
    return [x509.load_der_x509_certificate(jose.b64url_decode(each)) for each in encoded]


@dataclass(frozen=True)
class Relying:
    """A relying party with openssl and a bundle's anchors; the issuing CA's certificate comes with the NF's."""

    directory: Path
    anchors: list[x509.Certificate]

    def _files(self, issued: Issued) -> tuple[str, str, str]:
        content = {
            "anchors.pem": pem_chain(self.anchors),
            "issuing.pem": pem_chain([issued.issuing]),
            "leaf.pem": pem_chain([issued.certificate]),
        }
        for name, pem in content.items():
            (self.directory / name).write_bytes(pem)
        anchors, issuing, leaf = (str(self.directory / name) for name in content)
        return anchors, issuing, leaf

    def verify(self, issued: Issued, *, crl: bool = True) -> str:
        """What openssl says, with the CRL that the certificate names."""
        anchors, issuing, leaf = self._files(issued)
        command = ["openssl", "verify", "-x509_strict", "-CAfile", anchors, "-untrusted", issuing]
        if crl:
            path = self.directory / "crl.der"
            path.write_bytes(fetch(issued.crl_url, CALL_SECONDS))
            command += ["-crl_check", "-CRLfile", str(path)]
        done = subprocess.run([*command, leaf], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def accepts(self, issued: Issued) -> bool:
        return self.verify(issued).endswith("leaf.pem: OK\n")

    def ocsp(self, issued: Issued, issuer: x509.Certificate | None = None) -> str:
        """The status of a certificate, asked of its CA, or of another."""
        anchors, issuing, _ = self._files(issued)
        if issuer is not None:
            Path(issuing).write_bytes(pem_chain([issuer]))
        serial = f"0x{issued.certificate.serial_number:x}"
        url = issued.access(x509.AuthorityInformationAccessOID.OCSP)
        command = ["openssl", "ocsp", "-issuer", issuing, "-serial", serial, "-url", url]
        command += ["-CAfile", anchors, "-verify_other", issuing]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "Response verify OK" in done.stderr, done.stderr
        return done.stdout.partition(f"{serial}: ")[2].split("\n")[0]


def _token(directory: Path, name: str) -> dict[str, Any]:
    made = create_token(directory / f"{name}-token", f"rolling-{name}")
    return {
        "module": str(made.module),
        "label": made.label,
        "pin_file": str(made.pin_file),
        "lock_file": str(made.lock_file),
        "environment": dict(made.environment),
    }
