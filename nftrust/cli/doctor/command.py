"""`nftrust doctor`: puts the checks together and runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from nftrust.cli.doctor import report
from nftrust.cli.doctor.authority import CertificateAuthority
from nftrust.cli.doctor.checks import Check, Finding, Result, ok, refused, run
from nftrust.cli.doctor.listener import Listener
from nftrust.cli.doctor.local import LocalRole
from nftrust.cli.doctor.network_functions import NetworkFunctions
from nftrust.cli.doctor.operator import HOP, WELL, Operator
from nftrust.cli.doctor.services import Clocks, Service
from nftrust.cli.network_functions import OUTPUT
from nftrust.cli.output import emit_json
from nftrust.cli.session import OperatorConfig, Session
from nftrust.clock import Clock, SystemClock
from nftrust.config import load
from nftrust.errors import NftrustError

CONFIGURATION = "oam.configuration"


@click.command()
@click.option("--nf", "nfs", multiple=True, metavar="NF", help="Only these NFs; may be repeated. Default: all.")
@click.option(
    "--role-config",
    "role_configs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="On the host of a role: its configuration, to look at its files and its token, too.",
)
@click.option("--all", "every", is_flag=True, help="Show also what is well, check by check.")
@OUTPUT
@click.pass_obj
def doctor(config: str, nfs: tuple[str, ...], role_configs: tuple[Path, ...], every: bool, output: str) -> int:
    """Look at every hop; name what is broken and its remedy.

    Exit status 0: all is well; 6: something is broken; 7: nothing is broken,
    but something wants attention or could not be seen from here.
    """
    results = list(diagnose(Path(config), nfs, role_configs))
    if output == "json":
        emit_json(report.as_json(results))
    else:
        report.show(results, Console(highlight=False), every=every)
    return report.exit_code(results)


def diagnose(
    config: Path, nfs: Sequence[str] = (), role_configs: Sequence[Path] = (), clock: Clock | None = None
) -> Iterator[Result]:
    """Every check and what it found, in order. Nothing is changed anywhere."""
    clock = clock or SystemClock()
    with contextlib.ExitStack() as stack:

        def configuration() -> Finding:
            try:
                read = load(OperatorConfig, config)
            except NftrustError as error:
                return refused(error.reason.name, error.message)
            return ok(f"{config} can be read", remote_checks(Session(read, stack), tuple(nfs), clock))

        checks = [Check(CONFIGURATION, HOP, configuration)]
        for path in role_configs:
            checks += LocalRole(path, clock).checks()
        yield from run(checks)


def remote_checks(session: Session, nfs: tuple[str, ...], clock: Clock) -> tuple[Check, ...]:
    """From OAM's own files outwards: listeners, roles, the CA, the CM proxy's peers, the NFs."""
    config = session.config
    operator = Operator(config, clock)
    clocks = Clocks(clock)

    def service(role: str, title: str, target: str, has_token: bool) -> Service:
        listener = Listener(
            f"{role}.management",
            f"{title} management listener",
            target,
            role,
            operator.anchors,
            clock,
            session.timeout,
            WELL,
        )
        return Service(listener, session, clocks, has_token)

    ca_ra = service("ca-ra", "CA/RA", config.ca_ra, True)
    verifier = service("verifier", "verifier", config.verifier, False)
    proxy = service("cm-proxy", "CM proxy", config.cmproxy, True)
    services = (ca_ra, verifier, proxy)
    return (
        *operator.checks(),
        *(check for each in services for check in each.checks()),
        clocks.check(),
        *(each.time_check() for each in services),
        *CertificateAuthority(ca_ra, clock).checks(),
        *NetworkFunctions(proxy, ca_ra, verifier, clock, nfs).checks(),
    )
