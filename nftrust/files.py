"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from nftrust.errors import NftrustError, Reason

_REASONS = {
    errno.ENOSPC: Reason.STORAGE_FULL,
    errno.EDQUOT: Reason.STORAGE_FULL,
    errno.EROFS: Reason.STORAGE_READ_ONLY,
    errno.EACCES: Reason.STORAGE_READ_ONLY,
    errno.EPERM: Reason.STORAGE_READ_ONLY,
}


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` durably; after a crash it is the old or the new file, whole.

    Raises NftrustError: STORAGE_FULL, STORAGE_READ_ONLY, STORAGE_UNAVAILABLE.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    made = False
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = True
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if made:
            draft.unlink(missing_ok=True)
        raise unwritten(error, path) from None


def unwritten(error: OSError, path: Path) -> NftrustError:
    """What it means that ``path``, or something below it, could not be written."""
    reason = _REASONS.get(error.errno or 0, Reason.STORAGE_UNAVAILABLE)
    return NftrustError(reason, f"{path}: cannot be written")


def read_file(path: Path, limit: int = 1 << 20) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises NftrustError(CONFIG_INVALID) that names the file."""
    try:
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: {os.strerror(error.errno or 0)}") from None
    if len(data) > limit:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: larger than {limit} bytes")
    return data
