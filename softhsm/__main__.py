"""``python -m softhsm DIRECTORY LABEL``: set a token up and print its configuration as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from nftrust.errors import NftrustError
from softhsm.setup import create_token


def main(arguments: list[str]) -> int:
    """The command. Returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m softhsm DIRECTORY LABEL", file=sys.stderr)
        return 2
    try:
        config = create_token(Path(arguments[0]), arguments[1])
    except NftrustError as error:
        print(f"{error.reason.name}: {error.message}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(config, enc_hook=str).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
