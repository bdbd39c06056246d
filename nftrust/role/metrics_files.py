"""Where the fronts of a server keep the values of their metrics: files that the supervisor makes for them.

They are prometheus_client's, one of each kind for each front by its number, so
that a front that replaces another counts on from where that one ended, and
fronts that fail again and again leave nothing behind. Their space is taken
before a front maps them: one that wrote to a map on a full disk would be
killed by a signal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nftrust.errors import NftrustError, Reason

#: Read by prometheus_client when it is imported.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: What holds only while the front lives.
LIVE = ("gauge_livesum", "gauge_livemin", "gauge_livemax")
KINDS = {"counter": 1 << 18, "histogram": 1 << 18, **dict.fromkeys(LIVE, 1 << 16)}
#: A file that says so of itself holds nothing (the length that is in use comes first).
_NOTHING = bytes(8)


@contextmanager
def metrics_files(name: str, fronts: int) -> Iterator[Path]:
    """Make the files of so many fronts, told to processes started from here on; removed at the end.

    What killed supervisors of this role left behind goes first.
    Raises NftrustError(STORAGE_UNAVAILABLE).
    """
    for left in Path(tempfile.gettempdir()).glob(f"nftrust-{name}-*"):
        _remove_if_left(left, left.name.removeprefix(f"nftrust-{name}-").partition("-")[0])
    with ExitStack() as stack:
        try:
            prefix = f"nftrust-{name}-{os.getpid()}-"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
            stack.callback(os.close, _lock(folder))
            for front in range(fronts):
                for kind, size in KINDS.items():
                    _make(_file(Path(folder), kind, front), size)
        except OSError as error:
            cause = f"no room for metrics in {tempfile.gettempdir()}: {type(error).__name__}"
            raise NftrustError(Reason.STORAGE_UNAVAILABLE, cause) from None
        os.environ[DIRECTORY_VARIABLE] = folder
        yield Path(folder)


def forget_gauges(folder: Path, front: int) -> None:
    """Of a front that has ended."""
    for kind in LIVE:
        with suppress(OSError), _file(folder, kind, front).open("r+b", buffering=0) as file:
            file.write(_NOTHING)


def _lock(folder: str | Path) -> int:
    """Until it is closed: tells systemd-tmpfiles, and supervisors in other containers, that somebody uses it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(folder: Path, pid: str) -> None:
    if pid.isdecimal() and not Path("/proc", pid).exists():
        with suppress(OSError):
            descriptor = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _file(folder: Path, kind: str, front: int) -> Path:
    return folder / f"{kind}_{front}.db"


def _make(path: Path, size: int) -> None:
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
