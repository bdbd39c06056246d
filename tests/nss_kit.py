"""NSS softokn as another PKCS#11 module: ``python -m tests.nss_kit DIRECTORY LABEL PIN_FILE`` makes a token of it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from nftrust.config import TokenConfig
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11.cryptoki import Cryptoki

PLACES = ("/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so")

ENVIRONMENT = {"NSS_MAX_MP_PBE_ITERATION_COUNT": "1"}


def module() -> Path:
    return next(place for place in map(Path, PLACES) if place.exists())


def parameters(directory: Path, label: str) -> str:
    """What softokn wants of C_Initialize (pkcs11i.h of NSS): where its files are, and the label of their token."""
    return f"configdir='sql:{directory}' dbTokenDescription='{label}' cryptoTokenDescription='NSS without keys'"


def create_nss_token(directory: Path, label: str) -> TokenConfig:
    """A token of its own, made by another process: the module's state is global to a process."""
    directory.mkdir(mode=0o700, parents=True)
    pin_file = directory / "pin"
    pin_file.write_text(secrets.token_urlsafe(16))
    subprocess.run(
        [sys.executable, "-m", "tests.nss_kit", directory, label, pin_file],
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    return TokenConfig(
        module=module(),
        label=label,
        pin_file=pin_file,
        lock_file=directory / "lock",
        # Of what it writes NSS encrypts each attribute under a key that takes 10,000 iterations to derive.
        environment=ENVIRONMENT,
        module_parameters=parameters(directory, label),
    )


def main(directory: Path, label: str, pin: bytes) -> None:
    """The first PIN of a softokn is set by a security officer who has none yet."""
    cryptoki = Cryptoki(module())
    cryptoki.initialise(parameters(directory, label))
    [slot] = [slot for slot in cryptoki.slots() if cryptoki.token_label(slot) == label]
    session = cryptoki.open_session(slot)
    cryptoki.login(session, ck.CKU_SO, b"")
    cryptoki.call("InitPIN", session, pin, len(pin))
    cryptoki.finalise()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes())
