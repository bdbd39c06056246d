"""The command `ca-ra`."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ca_ra.app import serving
from ca_ra.config import CaRaConfig
from ca_ra.initialise import import_issuing, make_hierarchy, write_issuing_csr
from ca_ra.rollover import COMMAND as ROLLOVER
from nftrust.config import TokenConfig, load
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.role.main import Command, Role

_KEY_TYPE = ("--key-type", {"choices": ["ec-p256", "ec-p384"], "default": "ec-p256", "help": "of the CA keys"})


def _init(config: CaRaConfig, arguments: argparse.Namespace) -> int:
    if arguments.csr is not None:
        write_issuing_csr(config, arguments.csr, arguments.key_type)
        return 0
    if arguments.root_token is None:
        raise NftrustError(Reason.CONFIG_INVALID, "give --root-token for a root of our own, or --csr for another's.")
    make_hierarchy(config, load(TokenConfig, arguments.root_token), datetime.now(UTC), arguments.key_type)
    return 0


def _import(config: CaRaConfig, arguments: argparse.Namespace) -> int:
    try:
        chain = x509.load_pem_x509_certificates(read_file(arguments.chain))
    except ValueError:
        raise NftrustError(Reason.CONFIG_INVALID, f"{arguments.chain}: not PEM certificates") from None
    import_issuing(config, chain, datetime.now(UTC))
    return 0


ROLE = Role(
    "ca_ra",
    "ca-ra",
    CaRaConfig,
    serving,
    lambda config: [config.management.address, config.enrolment.address, config.http.address],
    [
        Command(
            "init",
            "make the keys in the tokens and the CA certificates, or the request to an external root",
            _init,
            [
                (
                    "--root-token",
                    {"type": Path, "help": "TOML file of the root's token, kept apart from the issuing CA's"},
                ),
                ("--csr", {"type": Path, "help": "write the issuing CA's request for an external root here instead"}),
                _KEY_TYPE,
            ],
        ),
        Command(
            "import",
            "take over the issuing CA's certificate from an external root",
            _import,
            [("--chain", {"type": Path, "required": True, "help": "PEM: issuing CA first, root last"})],
        ),
        ROLLOVER,
    ],
)
main = ROLE.main

if __name__ == "__main__":
    sys.exit(main())
