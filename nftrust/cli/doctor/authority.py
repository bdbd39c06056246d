"""The issuing CA: its certificate, its CRL as relying parties fetch it, and the way that NFs come in."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as pb
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.checks import Check, Finding, attention, broken, ok, refused
from nftrust.cli.doctor.listener import Listener
from nftrust.cli.doctor.services import Service
from nftrust.cli.download import fetch
from nftrust.cli.session import refusal
from nftrust.clock import Clock
from nftrust.errors import NftrustError

HOP = "issuing CA and CRL"
ENROLMENT = "CA/RA enrolment listener"
#: NF certificates live months: a CA with less than this left shortens them.
ENOUGH = timedelta(days=30)


@dataclass
class CertificateAuthority:
    """What the CA/RA says of its CA, and whether it holds."""

    service: Service
    clock: Clock
    about: pb.CertificateAuthority = field(default_factory=pb.CertificateAuthority)
    crl: bytes = b""

    def checks(self) -> tuple[Check, ...]:
        return (
            Check("ca-ra.authority", ENROLMENT, self.ask, self.service.needs("storage")),
            Check("ca-ra.issuing-ca", HOP, self.issuing_ca, ("ca-ra.authority",)),
            Check("ca-ra.rollover", HOP, self.rollover, ("ca-ra.authority",)),
            Check("ca-ra.crl.reach", HOP, self.fetch_crl, ("ca-ra.authority",)),
            Check("ca-ra.crl", HOP, self.judge_crl, ("ca-ra.crl.reach",)),
        )

    def ask(self) -> Finding:
        try:
            self.about = self.service.session.certificates().GetCertificateAuthority(
                pb.GetCertificateAuthorityRequest(), timeout=self.service.session.timeout
            )
        except grpc.RpcError as failure:
            error = refusal(failure)
            return refused(error.reason.name, error.message)
        return ok("the CA/RA tells of its CA", tuple(self._enrolment_checks()))

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.about.issuing_ca_pem.encode())

    def issuing_ca(self) -> Finding:
        now, certificate = self.clock.now(), self._certificate()
        remedy = "Roll over to a new CA: `ca-ra rollover announce`, in time before the lead time (docs/rollover.md)."
        found = certificates.validity("the issuing CA's certificate", certificate, now, remedy)
        if certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc < now + ENOUGH:
            until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            text = f"the issuing CA ends on {until}: NF certificates end no later"
            if any(ca.state == pb.IssuingCa.ANNOUNCED for ca in self.about.issuing_cas):
                remedy = "Its successor is announced: `ca-ra rollover activate` after the lead time."
            return attention(text, remedy)
        return found

    def rollover(self) -> Finding:
        """Which phase it is in, and whether a CA that issues no more still tells what is revoked."""
        now = self.clock.now()
        silent = [ca.generation for ca in self.about.issuing_cas if _silent(ca, now)]
        if silent:
            return broken(
                f"the CRL of CA {', '.join(map(str, silent))} is stale",
                "The CA/RA signs a new one by itself: see its log for why not (token, database).",
            )
        for ca in self.about.issuing_cas:
            if ca.state == pb.IssuingCa.ANNOUNCED:
                until = ca.activate_after.ToDatetime(UTC)
                if now < until:
                    return ok(f"CA {ca.generation} is announced; its lead time ends {until:%Y-%m-%d %H:%MZ}")
                return attention(
                    f"CA {ca.generation} is announced and its lead time is over",
                    "`ca-ra rollover activate`, or `ca-ra rollover retire` to withdraw it.",
                )
        old = [str(ca.generation) for ca in self.about.issuing_cas if ca.state == pb.IssuingCa.SUPERSEDED]
        if old:
            return ok(f"CA {', '.join(old)} is superseded; it can be retired once no certificate of it is good")
        return ok("no rollover is under way")

    def fetch_crl(self) -> Finding:
        url = self.about.crl_url
        remedy = "Relying parties need it: open the way to `http.address`, or correct `http.public_url` of the CA/RA."
        try:
            self.crl = fetch(url, self.service.session.timeout)
        except NftrustError:
            return broken(f"the CRL cannot be fetched from {url}", remedy)
        return ok(f"the CRL is at {url}")

    def judge_crl(self) -> Finding:
        url = self.about.crl_url
        try:
            crl = x509.load_der_x509_crl(self.crl)
            signed = crl.is_signature_valid(self._certificate().public_key())  # type: ignore[arg-type]
        except (ValueError, TypeError):
            signed = False
        if not signed:
            return broken(
                f"what {url} gives is no CRL of the issuing CA",
                "Check that `http.public_url` of the CA/RA leads to this CA/RA and to no other.",
            )
        end = crl.next_update_utc
        if end is None or end < self.clock.now():
            return broken(
                f"the CRL at {url} is stale: its next update was due at {end:%Y-%m-%d %H:%MZ}" if end else "no end",
                "The CA/RA signs a new one by itself: see its log for why not (token, database); else a cache is old.",
            )
        return ok(f"the CRL is good until {end:%Y-%m-%d %H:%MZ}")

    def _enrolment_checks(self) -> list[Check]:
        """NFs are told these endpoints and to trust them by these anchors."""
        try:
            anchors = x509.load_pem_x509_certificates(self.about.enrolment_trust_anchors_pem.encode())
        except ValueError:
            anchors = []
        made: list[Check] = []
        for endpoint in self.about.enrolment_endpoints:
            listener = Listener(
                "ca-ra.enrolment",
                ENROLMENT,
                endpoint,
                "ca-ra",
                anchors,
                self.clock,
                self.service.session.timeout,
                ("ca-ra.authority",),
                endpoint,
            )
            needs = (listener.well, *self.service.whole)
            look = self._enrolment_service(endpoint)
            made += [*listener.checks(), Check("ca-ra.enrolment.service", listener.title, look, needs, endpoint)]
        return made

    def _enrolment_service(self, endpoint: str) -> Callable[[], Finding]:
        """As an NF does, without a client certificate: have the CA sign its trust bundle."""

        def look() -> Finding:
            roots = self.about.enrolment_trust_anchors_pem.encode()
            try:
                with contextlib.closing(grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(roots))) as channel:
                    request = enrolment_pb.GetTrustBundleRequest(nonce=secrets.token_bytes(16))
                    EnrolmentServiceStub(channel).GetTrustBundle(request, timeout=self.service.session.timeout)
            except grpc.RpcError as failure:
                error: NftrustError = refusal(failure)
                return refused(error.reason.name, error.message, f"{endpoint}: ")
            return ok("NFs can enrol there: it answers and signs")

        return look


def _silent(ca: pb.IssuingCa, now: datetime) -> bool:
    """One that has to have a CRL, and has none that is in force; the active one's is fetched and judged by itself."""
    if ca.state not in (pb.IssuingCa.ANNOUNCED, pb.IssuingCa.SUPERSEDED):
        return False
    issuing = x509.load_pem_x509_certificate(ca.issuing_ca_pem.encode())
    return now < issuing.not_valid_after_utc and ca.crl_next_update.ToDatetime(UTC) < now
