"""``python -m softhsm.initialise MODULE LABEL < PIN``: C_InitToken and C_InitPIN, in a process of its own.

softhsm2-util takes PINs only in its arguments, where every user of the
machine can read them. The module's state is global to a process, and the
caller may have a token open: hence a process of its own.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11.cryptoki import Cryptoki, CryptokiError


def initialise(module: Path, label: str, pin: bytes) -> None:
    """Make the token in the module's free slot. Raises OSError or CryptokiError."""
    so_pin = secrets.token_urlsafe(24).encode("ascii")
    cryptoki = Cryptoki(module)
    cryptoki.initialise()
    slot = cryptoki.slots(token_present=False)[0]
    cryptoki.call("InitToken", slot, so_pin, len(so_pin), label.encode("ascii").ljust(32))
    session = cryptoki.open_session(slot)
    cryptoki.login(session, ck.CKU_SO, so_pin)
    cryptoki.call("InitPIN", session, pin, len(pin))
    cryptoki.finalise()


if __name__ == "__main__":
    try:
        initialise(Path(sys.argv[1]), sys.argv[2], sys.stdin.buffer.read())
    except (OSError, CryptokiError) as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)
