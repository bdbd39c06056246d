"""Where a PIN comes from: a file, or a descriptor that may be read only once."""

from __future__ import annotations

import fcntl
import os

import msgspec

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason

MAX_PIN_BYTES = 256


def hold_pin(config: TokenConfig) -> TokenConfig:
    """``config`` with its PIN descriptor, if any, replaced by a sealed memory file that can be read again.

    The caller closes the new descriptor; the given one stays the giver's.
    """
    if config.pin_fd is None:
        return config
    pin = read_pin(config)
    held = os.memfd_create("pin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(held, pin)
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return msgspec.structs.replace(config, pin_fd=held)


def read_pin(config: TokenConfig) -> bytes:
    """The PIN without a final newline. Raises NftrustError(CONFIG_INVALID)."""
    try:
        if config.pin_fd is None:
            assert config.pin_file is not None
            with config.pin_file.open("rb") as handle:
                raw = handle.read(MAX_PIN_BYTES + 2)
        else:
            raw = _read_descriptor(config.pin_fd)
    except OSError:
        raise NftrustError(Reason.CONFIG_INVALID, "the PIN cannot be read from its file or descriptor") from None
    pin = raw.rstrip(b"\r\n")
    if not 0 < len(pin) <= MAX_PIN_BYTES or b"\0" in pin:
        raise NftrustError(Reason.CONFIG_INVALID, f"a PIN has 1 to {MAX_PIN_BYTES} bytes")
    return pin


def _read_descriptor(descriptor: int) -> bytes:
    """From the start where that is possible, so that a held PIN can be read again; else what is left."""
    try:
        return os.pread(descriptor, MAX_PIN_BYTES + 2, 0)
    except OSError:
        pieces = b""
        while len(pieces) < MAX_PIN_BYTES + 2:
            piece = os.read(descriptor, MAX_PIN_BYTES + 2 - len(pieces))
            if not piece:
                break
            pieces += piece
        return pieces
