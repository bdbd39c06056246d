"""`nftrust demo`: NFs get their first certificates, step by step, on a lab that stays up."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from google.protobuf.json_format import Parse
from rich.console import Console
from rich.live import Live
from rich.table import Table

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import Session
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.lab import control, sba
from nftrust.lab.layout import OPERATOR_FILE, Lab, NfSettings
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.describe import describe
from nftrust.x509.path import PathInvalid, validate_path

STEPS = {
    1: "NF instantiated with day-0 configuration",
    2: "platform attested",
    3: "OAM provisions the CM proxy",
    4: "CM proxy decides on attestation",
    5: "CM proxy registers the NF at the CA/RA",
    6: "CA/RA returns reference value + IAK",
    7: "CM proxy delivers enrolment information",
    8: "NF makes key pair and CSR in its token",
    9: "NF sends its request to the CA/RA",
    10: "CA/RA issues; the NF confirms",
}
ENROLMENT_SECONDS = 60.0
_ENDED = (pb.Enrolment.SUCCEEDED, pb.Enrolment.FAILED, pb.Enrolment.CANCELLED, pb.Enrolment.PARKED)


@dataclass(slots=True)
class Progress:
    """The latest state of every enrolment, shared between the watching threads and the screen."""

    nfs: Sequence[NfSettings]
    enrolments: dict[str, pb.Enrolment] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self) -> Table:
        """Steps down, NFs across; each cell says when, counted from the start of the enrolments."""
        table = Table(title="Initial trust, TR 33.876 key issue 2", title_justify="left", header_style="bold")
        table.add_column("", justify="right")
        table.add_column("step")
        for nf in self.nfs:
            table.add_column(nf.nf_type, justify="right")
        for number, text in STEPS.items():
            table.add_row(str(number), text, *(self._cell(nf, number) for nf in self.nfs))
        return table

    def _cell(self, nf: NfSettings, number: int) -> str:
        enrolment = self.enrolments.get(nf.nf_instance_id)
        if enrolment is None:
            return ""
        for step in enrolment.steps:
            if step.number == number:
                since = step.time.ToMicroseconds() / 1e6 - self.started
                return f"[green]✔[/] {since:6.2f} s" if since >= 0 else "[green]✔[/]  before"
        if number == 2 and any(step.number == 4 for step in enrolment.steps):
            return "[dim]off[/]"
        if enrolment.state in (pb.Enrolment.FAILED, pb.Enrolment.PARKED) and number == 10:
            return f"[red]✘ {enrolment.error.reason}[/]"
        return "[dim]·[/]"


def run_demo(lab: Lab) -> int:
    """0 only if every NF's certificate verifies. The lab stays up; an interruption ends it."""
    console = Console(highlight=False)
    before = time.monotonic()
    try:
        control.up(lab, lambda text: console.print(f"[dim]·[/] {text}", soft_wrap=True))
        with Session.open(lab.directory / OPERATOR_FILE) as session:
            enrolments = enrol_all(console, lab, session, lab.settings.nfs)
            good = _show_certificates(console, lab, session, enrolments)
            good = good and show_call(console, lab)
    except KeyboardInterrupt:
        control.down(lab)
        raise
    seconds = time.monotonic() - before
    verdict = "[bold green]✔ all certificates verify[/]" if good else "[bold red]✘ not all is well[/]"
    console.print(f"\n{verdict}  [dim]({seconds:.1f} s)[/]")
    _show_next(console, lab)
    return 0 if good else 3


def enrol_all(console: Console, lab: Lab, session: Session, nfs: Sequence[NfSettings]) -> dict[str, pb.Enrolment]:
    """Provision and enrol these NFs at once, showing the steps as they happen; by instance id."""
    progress = Progress(nfs)
    with _screen(console, progress), ThreadPoolExecutor(max_workers=min(16, len(progress.nfs))) as pool:
        jobs = [pool.submit(_enrol, console, lab, session, progress, nf) for nf in progress.nfs]
        for job in jobs:
            job.result()
    return progress.enrolments


@contextmanager
def _screen(console: Console, progress: Progress) -> Iterator[None]:
    """A live table on a terminal, plain lines otherwise."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=progress.table, console=console, refresh_per_second=12):
        yield


def _enrol(console: Console, lab: Lab, session: Session, progress: Progress, nf: NfSettings) -> None:
    stub = session.provisioning()
    body = Parse(read_file(lab.nf(nf) / control.PROVISION_FILE), pb.NetworkFunction())
    name = f"networkFunctions/{nf.nf_instance_id}"
    try:
        try:
            request = pb.CreateNetworkFunctionRequest(network_function=body)
            stub.CreateNetworkFunction(request, timeout=session.timeout)
        except grpc.RpcError as error:
            if from_rpc_error(error).reason is not Reason.NF_ALREADY_EXISTS:  # type: ignore[arg-type]
                raise
        earlier = stub.ListEnrolments(pb.ListEnrolmentsRequest(parent=name), timeout=session.timeout).enrolments
        again = any(enrolment.state == pb.Enrolment.SUCCEEDED for enrolment in earlier)
        start = pb.StartEnrolmentRequest(parent=name, request_id=str(uuid.uuid4()), allow_re_enrolment=again)
        started = stub.StartEnrolment(start, timeout=session.timeout)
        watch = pb.WatchEnrolmentRequest(name=started.name)
        for update in stub.WatchEnrolment(watch, timeout=ENROLMENT_SECONDS):
            _record(console, progress, nf, update.enrolment)
            if update.enrolment.state in _ENDED:
                return
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None  # type: ignore[arg-type]


def _record(console: Console, progress: Progress, nf: NfSettings, enrolment: pb.Enrolment) -> None:
    with progress.lock:
        known = progress.enrolments.get(nf.nf_instance_id, pb.Enrolment())
        progress.enrolments[nf.nf_instance_id] = enrolment
        if console.is_terminal:
            return
        seen = {step.number for step in known.steps}
        for step in enrolment.steps:
            if step.number not in seen:
                moment = step.time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
                print(f"{moment}  {nf.nf_type:<5} step {step.number:>2}  {step.description}")
        if enrolment.error.reason and enrolment.error.reason != known.error.reason:
            print(f"              {nf.nf_type:<5} {enrolment.error.reason}: {enrolment.error.message}")
        sys.stdout.flush()


def _show_certificates(console: Console, lab: Lab, session: Session, enrolments: dict[str, pb.Enrolment]) -> bool:
    crl = _fetch_crl(lab)
    stub = session.certificates()
    good = True
    for nf in lab.settings.nfs:
        enrolment = enrolments.get(nf.nf_instance_id, pb.Enrolment())
        console.print()
        if enrolment.state != pb.Enrolment.SUCCEEDED:
            console.print(f"[bold]{nf.nf_type}[/]  [red]✘ {enrolment.error.reason}: {enrolment.error.remedy}[/]")
            good = False
            continue
        request = certificate_pb.GetCertificateRequest(name=enrolment.certificate)
        issued = stub.GetCertificate(request, timeout=session.timeout)
        problem = _verify(lab, nf, issued.pem.encode(), crl)
        good = good and problem is None
        verdict = "[green]✔ verifies under the operator's root[/]" if problem is None else f"[red]✘ {problem}[/]"
        console.print(f"[bold]{nf.nf_type}[/]  {verdict}")
        for label, value in describe(x509.load_pem_x509_certificate(issued.pem.encode())):
            console.print(f"  [dim]{label:<8}[/] {value}", soft_wrap=True)
    return good


def show_call(console: Console, lab: Lab) -> bool:
    """AMF → NRF by mutual TLS, both keys in tokens; False only where it was tried and failed."""
    server, client = sba.server_of(lab), sba.client_of(lab)
    console.print()
    if server is None or client is None:
        lacks = sba.missing()
        why = f"missing: {lacks}" if lacks else "this lab was made without nginx, or without AMF and NRF"
        console.print(f"[yellow]·[/] no call from NF to NF: {why}", soft_wrap=True)
        return True
    sba.wait_until_served(lab, sba.held(lab, server))
    answer = sba.call(lab, client, server)
    mark = "[green]✔" if answer.good else "[red]✘"
    told = f"HTTP/{answer.http_version} {answer.status}" if answer.status else answer.problem
    console.print(f"[bold]{client.nf_type} → {server.nf_type}[/]  {mark} {told}[/]", soft_wrap=True)
    console.print(f"  [dim]GET     [/] {sba.url(lab, server)}", soft_wrap=True, markup=True)
    for role, nf in (("client", client), ("server", server)):
        key = read_file(lab.nf(nf) / "state" / "key.uri").decode().partition("?")[0]
        console.print(f"  [dim]{role:<8}[/] {key}", soft_wrap=True)
    return answer.good


def _verify(lab: Lab, nf: NfSettings, issued: bytes, crl: x509.CertificateRevocationList) -> str | None:
    """The first thing that is wrong, or None: the NF holds what was issued, it chains, it is not revoked."""
    chain = x509.load_pem_x509_certificates(read_file(lab.nf(nf) / "state" / "certificate.pem"))
    root = x509.load_pem_x509_certificate(read_file(lab.role("ca_ra") / "root.pem"))
    if chain[0] != x509.load_pem_x509_certificate(issued):
        return "the NF holds another certificate"
    try:
        validate_path(chain, [root], datetime.now(UTC))
    except PathInvalid:
        return "does not verify under the operator's root"
    issuing_key = chain[1].public_key()
    if not crl.is_signature_valid(issuing_key):  # type: ignore[arg-type]
        return "the CRL is not the issuing CA's"
    if crl.get_revoked_certificate_by_serial_number(chain[0].serial_number) is not None:
        return "revoked"
    return None


def _fetch_crl(lab: Lab) -> x509.CertificateRevocationList:
    url = lab.description({})["ca_ra"]["crl"]
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own lab's http URL
            return x509.load_der_x509_crl(answer.read(1 << 20))
    except (OSError, ValueError):
        raise NftrustError(Reason.PEER_UNAVAILABLE, "the CRL cannot be fetched") from None


def _show_next(console: Console, lab: Lab) -> None:
    """Where things are, and commands that work as printed."""

    def shown(path: Path) -> str:
        relative = os.path.relpath(path)
        return relative if len(relative) < len(str(path)) else str(path)

    description = lab.description({})
    pki = description["pki"]
    local = Path(".cache/bin/grpcurl")  # what `make grpcurl` installs, on PATH only inside make
    grpcurl = str(local) if local.exists() else "grpcurl"
    files = {"-cacert": "services_ca", "-cert": "oam_cert", "-key": "oam_key"}
    tls = " ".join(f"{option} {shown(Path(pki[name]))}" for option, name in files.items())
    command = "nftrust" if shutil.which("nftrust") else ".venv/bin/nftrust"
    nftrust = f"{command} --config {shown(lab.directory / OPERATOR_FILE)}"
    first = lab.settings.nfs[0]
    certificate = shown(lab.nf(first) / "state" / "certificate.pem")
    proxy, ca_ra = description["cmproxy"]["management"], description["ca_ra"]["management"]
    console.print(f"\nThe lab is up: [bold]{shown(lab.directory)}/lab.json[/] names every endpoint, file and process.")
    console.print("Try:")
    for line in (
        f"{nftrust} nf list",
        f"{nftrust} enrol {first.nf_type} --watch --again",
        f"{nftrust} audit verify",
        f"{grpcurl} {tls} {proxy} list",
        f"{grpcurl} {tls} {proxy} nftrust.api.cmproxy.v1.ProvisioningService/ListNetworkFunctions",
        f"{grpcurl} {tls} {ca_ra} nftrust.api.ca_ra.v1.CertificateService/ListCertificates",
        f"openssl verify -CAfile {shown(Path(pki['trust_anchor']))} -untrusted {certificate} {certificate}",
        f"{nftrust} lab down --dir {shown(lab.directory)}",
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False)
    if grpcurl == "grpcurl" and not shutil.which("grpcurl"):
        console.print("[dim]  (grpcurl: `make grpcurl` where Go is installed)[/]")
