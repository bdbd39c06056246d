"""`nftrust pki`: service, OAM and day-0 certificates."""

from __future__ import annotations

from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust import pki as library
from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, write_atomically
from nftrust.x509.path import pem_chain
from nftrust.x509.services import ROLES

DIRECTORY = click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="The PKI's folder.")


@click.group()
def pki() -> None:
    """The services PKI and the day-0 root."""


@pki.command("init")
@DIRECTORY
@click.option("--home-domain", required=True, help="TS 23.003 clause 28.2.")
@click.option("--module", required=True, type=click.Path(path_type=Path), help="PKCS#11 module.")
@click.option("--token-label", required=True)
@click.option("--pin-file", required=True, type=click.Path(path_type=Path))
def init(directory: Path, home_domain: str, module: Path, token_label: str, pin_file: Path) -> None:
    """Make the services CA and the day-0 root; their keys stay in the token."""
    token = TokenConfig(
        module=module, label=token_label, pin_file=pin_file.resolve(), lock_file=directory.resolve() / "token.lock"
    )
    library.initialise(directory, library.PkiSettings(home_domain=home_domain, token=token))
    click.echo(f"services CA  {directory / library.SERVICES_CA_FILE}")
    click.echo(f"day-0 root   {directory / library.DAY0_ROOT_FILE}")


@pki.command("service")
@DIRECTORY
@click.option("--role", required=True, type=click.Choice(ROLES))
@click.option("--name", required=True, help="Names the principal: urn:nftrust:<role>:<name>.")
@click.option("--host", "hosts", multiple=True, help="DNS name or IP address it serves under; may be repeated.")
@click.option("--csr", type=click.Path(path_type=Path), help="Certify this request's key; else a key file is made.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Without suffix: .pem, and .key without --csr."
)
def service(directory: Path, role: str, name: str, hosts: tuple[str, ...], csr: Path | None, out: Path) -> None:
    """A TLS certificate for a service or an OAM principal; repeat it to renew."""
    with library.Pki.open(directory) as opened:
        if csr is None:
            opened.service_files(out.parent, out.name, role, name, hosts)
        else:
            key = library.load_csr(read_file(csr)).public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise NftrustError(Reason.CSR_KEY_REFUSED)
            certificate = opened.service_certificate(key, role, name, hosts)
            write_atomically(out.with_name(out.name + ".pem"), pem_chain([certificate]), 0o644)


@pki.command("day0")
@DIRECTORY
@click.option("--nf-instance-id", required=True)
@click.option("--csr", required=True, type=click.Path(path_type=Path), help="The request that `nf-agent init` wrote.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def day0(directory: Path, nf_instance_id: str, csr: Path, out: Path) -> None:
    """The day-0 certificate of an NF instance; repeat it to renew."""
    with library.Pki.open(directory) as opened:
        certificate = opened.day0_certificate(read_file(csr), nf_instance_id)
    write_atomically(out, pem_chain([certificate]), 0o644)
