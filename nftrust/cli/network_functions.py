"""`nftrust nf`, `nftrust enrol` and `nftrust enrolment`."""

from __future__ import annotations

import uuid
from pathlib import Path
from time import monotonic, sleep

import click
from google.protobuf.json_format import Parse, ParseError

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.output import as_dict, clock, emit_fields, emit_json, emit_table, time
from nftrust.cli.session import RENEWAL_SECONDS, Session
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.files import read_file

EXIT_NOT_ENROLLED = 3
EXIT_NOT_RETIRED = 3
ENDED = (pb.Enrolment.SUCCEEDED, pb.Enrolment.FAILED, pb.Enrolment.CANCELLED, pb.Enrolment.DELIVERED)
#: All that nftrust does for the NF is done.
DONE = (pb.Enrolment.SUCCEEDED, pb.Enrolment.DELIVERED)
MAX_SECRET_FILE_BYTES = 256
OUTPUT = click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)


@click.group()
def nf() -> None:
    """Network functions at the CM proxy."""


@nf.command("create")
@click.option("--file", "path", type=click.Path(path_type=Path), help="JSON of a NetworkFunction; options override it.")
@click.option("--nf-instance-id", help="UUID version 4.")
@click.option("--nf-type", help="NFType of TS 29.510, such as AMF.")
@click.option("--fqdn", "fqdns", multiple=True, help="May be repeated; the first is the NF's FQDN.")
@click.option("--agent", "agent_endpoint", help="host:port of the NF agent.")
@click.option("--day0-root", help="Name of the configured day-0 root.")
@click.option("--transport-key", help="SHA-256 in hexadecimal, as `nf-agent init` prints it.")
@click.option("--pin-on-first-contact", is_flag=True, help="Accept the transport key seen first.")
@click.option("--require-attestation", is_flag=True, help="Enrol only with an attestation result.")
@click.option("--tls-only-iak", is_flag=True, help="Legacy NF: the IAK is protected by TLS alone.")
@click.option("--re-enrol-after-expiry", is_flag=True, help="Enrol it again by itself once its certificate has ended.")
@click.option("--profile", help="Certificate profile.")
@click.option("--tenant", help="Default: the caller's tenant.")
@OUTPUT
@click.pass_obj
def create(config: str, /, path: Path | None, output: str, **options: object) -> None:
    """Provision a network function (step 3)."""
    message = pb.NetworkFunction()
    if path is not None:
        try:
            Parse(read_file(path), message)
        except ParseError:
            raise invalid_field("--file", "not the JSON of a NetworkFunction") from None
    _apply(message, options)
    request = pb.CreateNetworkFunctionRequest(network_function=message, request_id=str(uuid.uuid4()))
    with Session.open(Path(config)) as session:
        created = session.provisioning().CreateNetworkFunction(request, timeout=session.timeout)
    _show(created, output)


def _apply(message: pb.NetworkFunction, options: dict[str, object]) -> None:
    names = {"nf_instance_id", "nf_type", "agent_endpoint", "day0_root", "tenant"}
    for name in names:
        if options[name]:
            setattr(message, name, options[name])
    if options["profile"]:
        message.certificate_profile = str(options["profile"])
    fqdns = options["fqdns"]
    if isinstance(fqdns, tuple) and fqdns:
        del message.fqdns[:]
        message.fqdns.extend(fqdns)
    if options["transport_key"]:
        message.transport_key_sha256 = _fingerprint(str(options["transport_key"]))
    if options["pin_on_first_contact"]:
        message.pin_transport_key_on_first_contact = True
    if options["require_attestation"]:
        message.attestation = pb.ATTESTATION_REQUIREMENT_REQUIRED
    if options["re_enrol_after_expiry"]:
        message.re_enrol_after_expiry = True
    if options["tls_only_iak"]:
        message.iak_delivery_mode = pb.IAK_DELIVERY_MODE_TLS_ONLY


@nf.command("list")
@OUTPUT
@click.pass_obj
def list_all(config: str, output: str) -> None:
    """The network functions."""
    with Session.open(Path(config)) as session:
        found = all_network_functions(session)
    if output == "json":
        emit_json([as_dict(item) for item in found])
        return
    emit_table(
        ["NF INSTANCE ID", "TYPE", "FQDN", "AGENT", "STATE"],
        [
            (item.nf_instance_id, item.nf_type, item.fqdns[0], item.agent_endpoint, _service_state(item))
            for item in found
        ],
    )


@nf.command("show")
@click.argument("nf_reference", metavar="NF")
@OUTPUT
@click.pass_obj
def show(config: str, nf_reference: str, output: str) -> None:
    """One network function. NF is an instance id, the start of one, an FQDN, or a type that is unique."""
    with Session.open(Path(config)) as session:
        found = resolve(session, nf_reference)
    _show(found, output)


@nf.command("reinstantiate")
@click.argument("nf_reference", metavar="NF")
@click.option("--transport-key", help="SHA-256 of the new token's, in hexadecimal, as `nf-agent init` prints it.")
@click.option("--pin-on-first-contact", is_flag=True, help="Accept the transport key seen first.")
@click.option("--watch", is_flag=True, help="Show the steps as they happen; exit status 3 unless it succeeds.")
@OUTPUT
@click.pass_obj
def reinstantiate(
    config: str, nf_reference: str, transport_key: str | None, pin_on_first_contact: bool, watch: bool, output: str
) -> int:
    """Let an NF instance go on with another token, once; its old certificates are revoked when it has the new one."""
    if bool(transport_key) == pin_on_first_contact:
        raise click.UsageError("one of --transport-key and --pin-on-first-contact")
    with Session.open(Path(config)) as session:
        request = pb.ReinstantiateNetworkFunctionRequest(
            name=resolve(session, nf_reference).name,
            transport_key_sha256=_fingerprint(transport_key) if transport_key else b"",
            request_id=str(uuid.uuid4()),
        )
        started = session.provisioning().ReinstantiateNetworkFunction(request, timeout=session.timeout)
        if watch:
            started = follow(session, started.name, quiet=output == "json")
    if output == "json":
        emit_json(as_dict(started))
    elif not watch:
        click.echo(started.name)
    return EXIT_NOT_ENROLLED if watch and started.state not in DONE else 0


def _fingerprint(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise invalid_field("--transport-key", "not hexadecimal") from None


@nf.command("delete")
@click.argument("nf_reference", metavar="NF")
@click.pass_obj
def delete(config: str, nf_reference: str) -> None:
    """Remove a network function that has no active enrolment."""
    with Session.open(Path(config)) as session:
        found = resolve(session, nf_reference)
        request = pb.DeleteNetworkFunctionRequest(name=found.name, etag=found.etag)
        session.provisioning().DeleteNetworkFunction(request, timeout=session.timeout)


@nf.command("retire")
@click.argument("nf_reference", metavar="NF")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the CA/RA has closed it.")
@OUTPUT
@click.pass_obj
def retire(config: str, nf_reference: str, wait: bool, output: str) -> int:
    """Take a network function out of service for good: its certificates are revoked, nothing more is issued to it.

    Cannot be undone. The CM proxy goes on by itself where the CA/RA cannot be reached; the exit status is then 3.
    """
    with Session.open(Path(config)) as session:
        name = resolve(session, nf_reference).name
        stub = session.provisioning()
        found = stub.RetireNetworkFunction(pb.RetireNetworkFunctionRequest(name=name), timeout=session.timeout)
        deadline = monotonic() + session.timeout
        while wait and found.state != pb.NetworkFunction.RETIRED and monotonic() < deadline:
            sleep(0.1)
            found = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=name), timeout=session.timeout)
    _show(found, output)
    return EXIT_NOT_RETIRED if wait and found.state != pb.NetworkFunction.RETIRED else 0


@nf.command("renew")
@click.argument("nf_reference", metavar="NF")
@OUTPUT
@click.pass_obj
def renew(config: str, nf_reference: str, output: str) -> int:
    """Have a network function renew its certificate now, with a new key. It does so by itself in time."""
    with Session.open(Path(config)) as session:
        request = pb.RenewNetworkFunctionRequest(name=resolve(session, nf_reference).name)
        renewed = session.provisioning().RenewNetworkFunction(request, timeout=RENEWAL_SECONDS)
    if output == "json":
        emit_json(as_dict(renewed))
    else:
        emit_fields([("certificate SHA-256", renewed.certificate_sha256.hex())])
    return 0


def _show(found: pb.NetworkFunction, output: str) -> None:
    if output == "json":
        emit_json(as_dict(found))
        return
    emit_fields(
        [
            ("name", found.name),
            ("state", _service_state(found)),
            ("NF type", found.nf_type),
            ("FQDNs", " ".join(found.fqdns)),
            ("NF agent", found.agent_endpoint),
            ("tenant", found.tenant),
            ("day-0 root", found.day0_root),
            ("transport key", found.pinned_transport_key_sha256.hex() or "to be pinned at first contact"),
            ("attestation", pb.AttestationRequirement.Name(found.attestation).rpartition("_")[2].lower()),
            ("IAK delivery", pb.IakDeliveryMode.Name(found.iak_delivery_mode)[18:].lower().replace("_", "-")),
            ("profile", found.certificate_profile),
            ("after expiry", "enrolled again" if found.re_enrol_after_expiry else "left to OAM"),
            ("created", time(found.create_time)),
            ("etag", found.etag),
        ]
    )


def _service_state(found: pb.NetworkFunction) -> str:
    state = pb.NetworkFunction.State.Name(found.state).lower().replace("_", " ")
    problem = found.retirement_error
    return " ".join(filter(None, (state, time(found.retire_time), problem.reason, problem.message, problem.remedy)))


@click.command()
@click.argument("nf_reference", metavar="NF")
@click.option("--watch", is_flag=True, help="Show the steps as they happen; exit status 3 unless it succeeds.")
@click.option("--again", is_flag=True, help="Allow a further certificate for an NF that has one.")
@click.option("--reference", help="Reference value that a foreign CA/RA gave for this NF.")
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with that CA/RA's secret, readable by you alone; one newline at its end is not part of it.",
)
@OUTPUT
@click.pass_obj
def enrol(
    config: str,
    nf_reference: str,
    watch: bool,
    again: bool,
    reference: str | None,
    secret_file: Path | None,
    output: str,
) -> int:
    """Enrol a network function (steps 4 to 10)."""
    if (reference is None) != (secret_file is None):
        raise click.UsageError("--reference and --secret-file go together")
    with Session.open(Path(config)) as session:
        parent = resolve(session, nf_reference).name
        request = pb.StartEnrolmentRequest(parent=parent, request_id=str(uuid.uuid4()), allow_re_enrolment=again)
        if reference is not None and secret_file is not None:
            request.foreign_credential.reference = reference
            request.foreign_credential.secret = read_secret(secret_file)
        enrolment_ = session.provisioning().StartEnrolment(request, timeout=session.timeout)
        if watch:
            enrolment_ = follow(session, enrolment_.name, quiet=output == "json")
    if output == "json":
        emit_json(as_dict(enrolment_))
    elif not watch:
        click.echo(enrolment_.name)
    return EXIT_NOT_ENROLLED if watch and enrolment_.state not in DONE else 0


def read_secret(path: Path) -> bytes:
    """Raises NftrustError(CONFIG_INVALID) where others may read it."""
    data = read_file(path, MAX_SECRET_FILE_BYTES)
    if path.stat().st_mode & 0o077:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: readable by others: mode 0600")
    return data.removesuffix(b"\n").removesuffix(b"\r")


def follow(session: Session, name: str, *, quiet: bool) -> pb.Enrolment:
    """Print each step once, until the enrolment ends or a person is needed."""
    shown: set[int] = set()
    problem = ""
    current = pb.Enrolment()
    for update in session.provisioning().WatchEnrolment(pb.WatchEnrolmentRequest(name=name)):
        current = update.enrolment
        for step in current.steps:
            if step.number not in shown and not quiet:
                click.echo(f"{clock(step.time)}  step {step.number:>2}  {step.description}")
            shown.add(step.number)
        state = pb.Enrolment.State.Name(current.state)
        latest = f"{state}: {current.error.reason}: {current.error.message} {current.error.remedy}"
        if current.error.reason and latest != problem and not quiet:
            problem = latest
            click.echo(latest, err=True)
        if current.state in ENDED or current.state == pb.Enrolment.PARKED:
            break
    if not quiet:
        click.echo(f"{pb.Enrolment.State.Name(current.state)}  {current.certificate}".rstrip())
    return current


@click.group()
def enrolment() -> None:
    """Enrolments at the CM proxy."""


@enrolment.command("list")
@click.argument("nf_reference", metavar="[NF]", required=False)
@OUTPUT
@click.pass_obj
def list_enrolments(config: str, nf_reference: str | None, output: str) -> None:
    """Enrolments, the newest first; of one NF or of all."""
    with Session.open(Path(config)) as session:
        parent = resolve(session, nf_reference).name if nf_reference else "networkFunctions/-"
        found: list[pb.Enrolment] = []
        token = ""
        while True:
            request = pb.ListEnrolmentsRequest(parent=parent, page_size=1000, page_token=token)
            page = session.provisioning().ListEnrolments(request, timeout=session.timeout)
            found.extend(page.enrolments)
            token = page.next_page_token
            if not token:
                break
    if output == "json":
        emit_json([as_dict(item) for item in found])
        return
    emit_table(
        ["ENROLMENT", "STATE", "STARTED", "REASON"],
        [(item.name, pb.Enrolment.State.Name(item.state), time(item.create_time), item.error.reason) for item in found],
    )


@enrolment.command("show")
@click.argument("name")
@OUTPUT
@click.pass_obj
def show_enrolment(config: str, name: str, output: str) -> None:
    """One enrolment with its steps."""
    with Session.open(Path(config)) as session:
        found = session.provisioning().GetEnrolment(pb.GetEnrolmentRequest(name=name), timeout=session.timeout)
    if output == "json":
        emit_json(as_dict(found))
        return
    emit_fields(
        [
            ("name", found.name),
            ("state", pb.Enrolment.State.Name(found.state)),
            ("reason", " ".join(filter(None, (found.error.reason, found.error.message, found.error.remedy)))),
            ("registration", found.registration),
            ("certificate", found.certificate),
            ("started", time(found.create_time)),
            ("ended", time(found.end_time)),
        ]
    )
    for step in found.steps:
        click.echo(f"{clock(step.time)}  step {step.number:>2}  {step.description}")


@enrolment.command("cancel")
@click.argument("name")
@click.pass_obj
def cancel(config: str, name: str) -> None:
    """Give an enrolment up and revoke its registration."""
    with Session.open(Path(config)) as session:
        session.provisioning().CancelEnrolment(pb.CancelEnrolmentRequest(name=name), timeout=session.timeout)


def all_network_functions(session: Session) -> list[pb.NetworkFunction]:
    """Every page."""
    found: list[pb.NetworkFunction] = []
    token = ""
    stub = session.provisioning()
    while True:
        request = pb.ListNetworkFunctionsRequest(page_size=1000, page_token=token)
        page = stub.ListNetworkFunctions(request, timeout=session.timeout)
        found.extend(page.network_functions)
        token = page.next_page_token
        if not token:
            return found


def resolve(session: Session, reference: str) -> pb.NetworkFunction:
    """The one network function that ``reference`` means. Raises NftrustError(NF_NOT_FOUND, INVALID_FIELD)."""
    reference = reference.removeprefix("networkFunctions/")
    if len(reference) == 36:
        request = pb.GetNetworkFunctionRequest(name=f"networkFunctions/{reference}")
        return session.provisioning().GetNetworkFunction(request, timeout=session.timeout)
    matches = [
        item
        for item in all_network_functions(session)
        if item.nf_instance_id.startswith(reference.lower())
        or reference.lower() in item.fqdns
        or item.nf_type == reference.upper()
    ]
    if not matches:
        raise NftrustError(Reason.NF_NOT_FOUND)
    if len(matches) > 1:
        raise invalid_field("NF", f"{len(matches)} network functions match")
    return matches[0]
