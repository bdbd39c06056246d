"""The cross-process lock around everything that touches the files of a SoftHSM token.

SoftHSM 2.6.1 unlocks its files before it flushes them and rewrites the token
object at each login: without this lock processes that start together fail, and
objects can be left broken for good.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason

LOCK_LIMIT_SECONDS = 20.0
_POLL_SECONDS = 0.005


class FileLock:
    """An exclusive flock on a file, waited for with a limit; the kernel frees it when its holder dies."""

    def __init__(self, path: Path | None) -> None:
        """Without a path it excludes nobody."""
        self._descriptor: int | None = None
        if path is not None:
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                raise NftrustError(Reason.TOKEN_MISSING, f"{path}: the lock file cannot be opened") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Raises NftrustError(TOKEN_UNAVAILABLE) if another process keeps it too long."""
        if self._descriptor is None:
            yield
            return
        self._acquire(self._descriptor)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _acquire(descriptor: int) -> None:
        limit = time.monotonic() + LOCK_LIMIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise NftrustError(Reason.TOKEN_UNAVAILABLE, "another process keeps the token's lock") from None
                time.sleep(_POLL_SECONDS)
            else:
                return


def lock_path(config: TokenConfig) -> Path | None:
    """The token's lock file. SoftHSM cannot do without; a token that names none is trusted to lock itself."""
    if config.lock_file is not None:
        return config.lock_file
    settings = config.environment.get("SOFTHSM2_CONF") or os.environ.get("SOFTHSM2_CONF")
    if "softhsm" in config.module.name and settings:
        return Path(settings + ".lock")
    return None
