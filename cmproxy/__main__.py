"""The command `cmproxy`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cmproxy.app import serving
from cmproxy.config import CmProxyConfig
from cmproxy.initialise import write_client_csr
from nftrust.role.main import Command, Role


def _init(config: CmProxyConfig, arguments: argparse.Namespace) -> int:
    write_client_csr(config, arguments.out)
    return 0


ROLE = Role(
    "cmproxy",
    "cmproxy",
    CmProxyConfig,
    serving,
    lambda config: [config.management.address],
    [
        Command(
            "init",
            "make the TLS client key in the token and write the request for its certificate",
            _init,
            [("--out", {"type": Path, "required": True, "help": "PEM request for `nftrust pki service --csr`"})],
        )
    ],
)
main = ROLE.main

if __name__ == "__main__":
    sys.exit(main())
