"""`nftrust certificate` (also `cert`) and `expiry`: what has been issued, what ends when, what is revoked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from google.protobuf.timestamp_pb2 import Timestamp

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.cli.network_functions import OUTPUT, resolve
from nftrust.cli.output import as_dict, emit_fields, emit_json, emit_table, time
from nftrust.cli.session import Session
from nftrust.x509.describe import describe

#: As RFC 5280 spells them.
REASONS = {
    "unspecified": certificate_pb.NOT_GIVEN,
    "keyCompromise": certificate_pb.KEY_COMPROMISE,
    "affiliationChanged": certificate_pb.AFFILIATION_CHANGED,
    "superseded": certificate_pb.SUPERSEDED,
    "cessationOfOperation": certificate_pb.CESSATION_OF_OPERATION,
    "privilegeWithdrawn": certificate_pb.PRIVILEGE_WITHDRAWN,
}
BANDS = (("expired", 0), ("7 days", 7), ("30 days", 30), ("90 days", 90))


@click.group()
def certificate() -> None:
    """Certificates issued by the CA/RA."""


@certificate.command("list")
@click.argument("nf_reference", metavar="[NF]", required=False)
@OUTPUT
@click.pass_obj
def list_certificates(config: str, nf_reference: str | None, output: str) -> None:
    """Certificates, the newest first; of one NF or of all."""
    with Session.open(Path(config)) as session:
        nf_instance_id = resolve(session, nf_reference).nf_instance_id if nf_reference else ""
        found = list(certificates(session, certificate_pb.ListCertificatesRequest(nf_instance_id=nf_instance_id)))
    if output == "json":
        emit_json([as_dict(item) for item in found])
        return
    emit_table(
        ["CERTIFICATE", "NF INSTANCE ID", "VALID UNTIL", "CONFIRMED", "REVOKED"],
        [
            (item.name, item.nf_instance_id, time(item.not_after), time(item.confirm_time), _revoked(item))
            for item in found
        ],
    )


@certificate.command("show")
@click.argument("name")
@click.option("--pem", is_flag=True, help="Print PEM only.")
@OUTPUT
@click.pass_obj
def show_certificate(config: str, name: str, pem: bool, output: str) -> None:
    """One certificate, readably."""
    with Session.open(Path(config)) as session:
        found = session.certificates().GetCertificate(
            certificate_pb.GetCertificateRequest(name=name), timeout=session.timeout
        )
    if output == "json":
        emit_json(as_dict(found))
    elif pem:
        click.echo(found.pem, nl=False)
    else:
        emit_fields(
            [*describe(x509.load_pem_x509_certificate(found.pem.encode())), ("revoked", _revoked(found) or "no")]
        )


@certificate.command("revoke")
@click.argument("name")
@click.option("--reason", required=True, type=click.Choice(list(REASONS)), help="RFC 5280's name of the reason.")
@OUTPUT
@click.pass_obj
def revoke(config: str, name: str, reason: str, output: str) -> None:
    """Revoke a certificate, for good; the CRL lists it within seconds."""
    with Session.open(Path(config)) as session:
        request = certificate_pb.RevokeCertificateRequest(name=name, reason=REASONS[reason])
        found = session.certificates().RevokeCertificate(request, timeout=session.timeout)
    if output == "json":
        emit_json(as_dict(found))
    else:
        click.echo(f"{found.name} revoked {_revoked(found)}")


@click.command()
@OUTPUT
@click.pass_obj
def expiry(config: str, output: str) -> None:
    """Certificates that have expired or will within 7, 30 and 90 days; revoked ones are left out."""
    now = datetime.now(UTC)
    limit = Timestamp()
    limit.FromDatetime(now + timedelta(days=BANDS[-1][1]))
    with Session.open(Path(config)) as session:
        request = certificate_pb.ListCertificatesRequest(expire_before=limit, exclude_revoked=True)
        found = sorted(certificates(session, request), key=lambda item: item.not_after.ToDatetime(UTC))
    banded = [(_band(item.not_after.ToDatetime(UTC) - now), item) for item in found]
    if output == "json":
        emit_json([{"band": band, **as_dict(item)} for band, item in banded])
        return
    counts = ", ".join(f"{name}: {sum(band == name for band, _ in banded)}" for name, _ in BANDS)
    click.echo(counts)
    if banded:
        emit_table(
            ["WITHIN", "VALID UNTIL", "CERTIFICATE", "NF INSTANCE ID"],
            [(band, time(item.not_after), item.name, item.nf_instance_id) for band, item in banded],
        )


def certificates(
    session: Session, request: certificate_pb.ListCertificatesRequest
) -> Iterator[certificate_pb.Certificate]:
    """All pages."""
    stub = session.certificates()
    request.page_size = 1000
    while True:
        page = stub.ListCertificates(request, timeout=session.timeout)
        yield from page.certificates
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _band(left: timedelta) -> str:
    return next((name for name, days in BANDS if left <= timedelta(days=days)), BANDS[-1][0])


def _revoked(item: certificate_pb.Certificate) -> str:
    if not item.HasField("revoke_time"):
        return ""
    names = {value: name for name, value in REASONS.items()}
    return f"{time(item.revoke_time)} {names.get(item.revocation_reason, '?')}"
