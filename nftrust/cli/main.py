"""`nftrust`: what OAM does from a terminal.

Exit codes: 0 done; 1 refused, with the reason; 2 wrong usage; 3 an enrolment
ended without a certificate, a retirement is still under way, or a drill has
left NFs; 4 an audit log does not verify; 5 a service cannot be reached; 6 and 7
are `nftrust doctor`'s (something is broken; something wants attention); 130
interrupted.
"""

from __future__ import annotations

import sys

import click

from nftrust import __version__
from nftrust.cli import certificates, drill, inspection, lab, network_functions, pki
from nftrust.cli.doctor.command import doctor
from nftrust.errors import Code, NftrustError, Reason

EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 5, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"{__doc__}")
@click.version_option(__version__, prog_name="nftrust")
@click.option(
    "--config",
    envvar="NFTRUST_CONFIG",
    default=".lab/nftrust.toml",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="Where the services are and who is calling; environment NFTRUST_CONFIG.",
)
@click.pass_context
def cli(context: click.Context, config: str) -> None:
    """Initial trust and certificates for 5G network functions."""
    context.obj = config


cli.add_command(network_functions.nf)
cli.add_command(network_functions.enrol)
cli.add_command(network_functions.enrolment)
cli.add_command(inspection.ca)
cli.add_command(inspection.audit)
cli.add_command(inspection.registration)
cli.add_command(certificates.certificate)
cli.add_command(certificates.certificate, "cert")
cli.add_command(certificates.expiry)
cli.add_command(pki.pki)
cli.add_command(drill.drill)
cli.add_command(doctor)
cli.add_command(lab.lab)
cli.add_command(lab.demo)


def main(argv: list[str] | None = None) -> int:
    """Run the command; every refusal is one line with its reason and the remedy."""
    try:
        code = cli.main(args=argv, standalone_mode=False)
    except NftrustError as error:
        return report(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_REFUSED
    return code if isinstance(code, int) else 0


def report(error: NftrustError) -> int:
    """One line on standard error; the exit code."""
    click.echo(f"nftrust: {error.reason.name}: {error.message} {error.reason.remedy}", err=True)
    unreachable = error.reason is Reason.PEER_UNAVAILABLE or error.reason.code is Code.UNAVAILABLE
    return EXIT_UNREACHABLE if unreachable else EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
