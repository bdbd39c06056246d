"""`nftrust ca`, `registration` and `audit`: what the CA/RA and the logs say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust.api.audit.v1 import audit_service_pb2 as audit_pb
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as registration_pb
from nftrust.audit import AuditEvent, ChainedEvent, verify_chain
from nftrust.cli.download import fetch
from nftrust.cli.network_functions import OUTPUT, resolve
from nftrust.cli.output import as_dict, emit_fields, emit_json, emit_table, time
from nftrust.cli.session import Session
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically

EXIT_AUDIT_BROKEN = 4
AUDITED = ("ca_ra", "cmproxy", "verifier")


@click.group()
def ca() -> None:
    """The issuing CA."""


@ca.command("show")
@click.option("--pem", is_flag=True, help="Print issuing CA and root as PEM.")
@OUTPUT
@click.pass_obj
def show_ca(config: str, pem: bool, output: str) -> None:
    """The CA's certificates and counters."""
    with Session.open(Path(config)) as session:
        found = session.certificates().GetCertificateAuthority(
            certificate_pb.GetCertificateAuthorityRequest(), timeout=session.timeout
        )
    if output == "json":
        emit_json(as_dict(found))
        return
    if pem:
        click.echo(found.issuing_ca_pem + found.root_ca_pem, nl=False)
        return
    issuing = x509.load_pem_x509_certificate(found.issuing_ca_pem.encode())
    root = x509.load_pem_x509_certificate(found.root_ca_pem.encode())
    emit_fields(
        [
            ("issuing CA", issuing.subject.rfc4514_string()),
            ("valid until", f"{issuing.not_valid_after_utc:%Y-%m-%d}"),
            ("root", root.subject.rfc4514_string()),
            ("CA id", found.ca_id),
            ("home domain", found.home_domain),
            ("CRL", f"{found.crl_url} (next update {time(found.crl_next_update)})"),
            ("OCSP", found.ocsp_url),
            ("certificates issued", str(found.certificate_count)),
        ]
    )
    if len(found.issuing_cas) > 1:
        rows = [_generation(each) for each in found.issuing_cas]
        emit_table(["CA", "STATE", "SUBJECT", "VALID UNTIL", "ACTIVATED", "MAY BE ACTIVATED"], rows)


def _generation(found: certificate_pb.IssuingCa) -> tuple[str, ...]:
    """A row of a rollover (docs/rollover.md)."""
    issuing = x509.load_pem_x509_certificate(found.issuing_ca_pem.encode())
    waits = found.state == certificate_pb.IssuingCa.ANNOUNCED
    return (
        str(found.generation),
        certificate_pb.IssuingCa.State.Name(found.state).lower(),
        issuing.subject.rfc4514_string(),
        f"{issuing.not_valid_after_utc:%Y-%m-%d}",
        time(found.activate_time),
        time(found.activate_after) if waits else "",
    )


@ca.command("crl")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it there, DER.")
@OUTPUT
@click.pass_obj
def crl(config: str, out: Path | None, output: str) -> None:
    """Fetch the CRL from where certificates say that it is, verify it and show what it lists."""
    with Session.open(Path(config)) as session:
        authority = session.certificates().GetCertificateAuthority(
            certificate_pb.GetCertificateAuthorityRequest(), timeout=session.timeout
        )
    encoded = fetch(authority.crl_url, session.timeout)
    issuing = x509.load_pem_x509_certificate(authority.issuing_ca_pem.encode())
    found = read_crl(encoded, issuing)
    if out is not None:
        write_atomically(out, encoded, 0o644)
    number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    if output == "json":
        emit_json({"number": number, "entries": [_entry(each) for each in found]})
        return
    emit_fields(
        [
            ("issuer", found.issuer.rfc4514_string()),
            ("number", str(number)),
            ("this update", f"{found.last_update_utc:%Y-%m-%d %H:%M:%SZ}"),
            ("next update", f"{found.next_update_utc:%Y-%m-%d %H:%M:%SZ}"),
            ("entries", str(len(found))),
        ]
    )
    emit_table(["CERTIFICATE", "REVOKED", "REASON"], [tuple(_entry(each).values()) for each in found])


def read_crl(encoded: bytes, issuing: x509.Certificate) -> x509.CertificateRevocationList:
    """Raises NftrustError(RESPONSE_INVALID) if it is none of this CA."""
    key = issuing.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        found = x509.load_der_x509_crl(encoded)
        good = found.is_signature_valid(key) and found.issuer == issuing.subject
    except ValueError:
        good = False
    if not good:
        raise NftrustError(Reason.RESPONSE_INVALID, "the CRL is not signed by the issuing CA")
    return found


def _entry(revoked: x509.RevokedCertificate) -> dict[str, str]:
    try:
        reason = revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        reason = "unspecified"
    date = f"{revoked.revocation_date_utc:%Y-%m-%d %H:%M:%SZ}"
    return {"certificate": f"certificates/{revoked.serial_number:x}", "revoke_time": date, "reason": reason}


@ca.command("reinstate")
@click.argument("nf_instance_id")
@click.pass_obj
def reinstate(config: str, nf_instance_id: str) -> None:
    """Lift the suspension that a theft signal caused, after investigation."""
    with Session.open(Path(config)) as session:
        session.registrations().ReinstateEndEntity(
            registration_pb.ReinstateEndEntityRequest(nf_instance_id=nf_instance_id), timeout=session.timeout
        )


@click.group()
def registration() -> None:
    """Registrations at the CA/RA."""


@registration.command("list")
@click.argument("nf_reference", metavar="[NF]", required=False)
@OUTPUT
@click.pass_obj
def list_registrations(config: str, nf_reference: str | None, output: str) -> None:
    """Registrations, the newest first; of one NF or of all."""
    with Session.open(Path(config)) as session:
        nf_instance_id = resolve(session, nf_reference).nf_instance_id if nf_reference else ""
        request = registration_pb.ListRegistrationsRequest(nf_instance_id=nf_instance_id, page_size=1000)
        found = session.registrations().ListRegistrations(request, timeout=session.timeout).registrations
    if output == "json":
        emit_json([as_dict(item) for item in found])
        return
    emit_table(
        ["REGISTRATION", "STATE", "NF INSTANCE ID", "TYPE", "EXPIRES"],
        [
            (
                item.name,
                registration_pb.Registration.State.Name(item.state),
                item.nf_instance_id,
                item.nf_type,
                time(item.expire_time),
            )
            for item in found
        ],
    )


@click.group()
def audit() -> None:
    """The hash-chained audit logs."""


@audit.command("list")
@click.argument("role", type=click.Choice(AUDITED))
@OUTPUT
@click.pass_obj
def list_audit(config: str, role: str, output: str) -> None:
    """The audit events of a role, in order."""
    with Session.open(Path(config)) as session:
        found = list(events(session, role))
    if output == "json":
        emit_json([as_dict(item) for item in found])
        return
    for item in found:
        click.echo(f"{item.sequence:>6}  {time(item.time)}  {item.action}  {item.subject}  {item.actor}  {item.detail}")


@audit.command("verify")
@OUTPUT
@click.pass_obj
def verify(config: str, output: str) -> int:
    """Recompute the hash chain of every role's log; exit status 4 if one is broken."""
    results = []
    with Session.open(Path(config)) as session:
        for role in AUDITED:
            count = 0

            def counted(role: str = role) -> Iterator[ChainedEvent]:
                nonlocal count
                for item in events(session, role):
                    count += 1
                    yield chained(item)

            results.append((role, verify_chain(counted()), count))
    if output == "json":
        emit_json([{"role": role, "events": count, "first_broken": broken} for role, broken, count in results])
    else:
        for role, broken, count in results:
            verdict = f"{count} events, chain intact" if broken is None else f"BROKEN at event {broken}"
            click.echo(f"{role:<9} {verdict}")
    return EXIT_AUDIT_BROKEN if any(broken is not None for _, broken, _ in results) else 0


def events(session: Session, role: str) -> Iterator[audit_pb.AuditEvent]:
    """Every audit event of a role, in order."""
    stub = session.audit(role)
    token = ""
    while True:
        request = audit_pb.ListAuditEventsRequest(page_size=1000, page_token=token)
        page = stub.ListAuditEvents(request, timeout=session.timeout)
        yield from page.events
        token = page.next_page_token
        if not token:
            return


def chained(item: audit_pb.AuditEvent) -> ChainedEvent:
    """As the chain is verified."""
    event = AuditEvent(
        sequence=item.sequence,
        time=item.time.ToDatetime(UTC),
        actor=item.actor,
        action=item.action,
        subject=item.subject,
        detail=item.detail,
    )
    return ChainedEvent(event=event, hash=item.hash)
