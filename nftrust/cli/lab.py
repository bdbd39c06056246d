"""`nftrust lab` and `nftrust demo`."""

from __future__ import annotations

from pathlib import Path

import click

from nftrust.cli.output import emit_json
from nftrust.errors import NftrustError, Reason
from nftrust.lab import control, sba
from nftrust.lab.demo import run_demo
from nftrust.lab.layout import LAB_FILE, OPERATOR_FILE, Lab

DIRECTORY = click.option("--dir", "directory", default=".lab", show_default=True, type=click.Path(path_type=Path))
NFS = click.option("--nfs", default=3, show_default=True, type=click.IntRange(1, 200), help="How many NF agents.")


@click.group()
def lab() -> None:
    """The whole system on loopback with SoftHSM tokens."""


@lab.command("up")
@DIRECTORY
@NFS
@click.option("--store", help="SQLAlchemy URL of a PostgreSQL server; default: SQLite.")
@click.option("--allow-tls-only-iak", is_flag=True, help="Allow the legacy delivery mode.")
@click.option(
    "--replicas", default=1, show_default=True, type=click.IntRange(1, 16), help="Fronts of the CA/RA (SQLite: 1 or 2)."
)
@click.option("--nginx", is_flag=True, help="The NRF serves with nginx, its key in its token (examples/nf-nginx).")
def up(directory: Path, nfs: int, store: str | None, allow_tls_only_iak: bool, replicas: int, nginx: bool) -> None:
    """Bring the lab up and write lab.json."""
    if nginx and (lacks := sba.missing()):
        raise NftrustError(Reason.CONFIG_INVALID, f"--nginx: missing: {lacks}")
    made = Lab.make(
        directory,
        nfs,
        store=store,
        allow_tls_only_iak=allow_tls_only_iak,
        replicas=replicas,
        nginx=nginx or None,
    )
    control.up(made, lambda text: click.echo(f"· {text}"))
    click.echo(f"ready: {made.directory / LAB_FILE}")
    click.echo(f"next:  nftrust --config {made.directory / OPERATOR_FILE} nf create --file NF/network-function.json")


@lab.command("status")
@DIRECTORY
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def status(directory: Path, output: str) -> int:
    """Whether each process runs; exit status 1 unless all do."""
    found = control.status(Lab.open(directory))
    if output == "json":
        emit_json(found)
    else:
        for name, running in found.items():
            click.echo(f"{'up  ' if running else 'down'}  {name}")
    return 0 if all(found.values()) else 1


@lab.command("down")
@DIRECTORY
def down(directory: Path) -> None:
    """End the lab's processes; what is stored stays."""
    control.down(Lab.open(directory))


@click.command()
@DIRECTORY
@NFS
def demo(directory: Path, nfs: int) -> int:
    """Three NFs get their first certificates, step by step; then one calls another with them."""
    nginx = None if Lab.exists(directory) else not sba.missing()
    return run_demo(Lab.make(directory, nfs, nginx=nginx))
