"""A front's side of the process model: heartbeats to the supervisor, and the order to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from nftrust.errors import NftrustError

HEARTBEAT_SECONDS = 0.5
READY, ALIVE = b"R", b"."
#: sysexits.h: the supervisor does not restart a front that ends with it.
EX_CONFIG = 78
_PR_SET_PDEATHSIG = 1


class Front:
    """What a front's ``serve`` uses: say :meth:`ready`, then wait for ``stop``."""

    def __init__(self, control_fd: int) -> None:
        self.stop = asyncio.Event()
        self._control_fd = control_fd

    def ready(self) -> None:
        """All listeners serve."""
        self._send(READY)

    def _send(self, mark: bytes) -> None:
        try:
            os.write(self._control_fd, mark)
        except BlockingIOError:
            pass  # the supervisor is stopped; it finds the marks when it goes on
        except OSError:
            self.stop.set()  # the supervisor is gone

    async def beat(self) -> None:
        """From the event loop, so that a front that no longer serves no longer beats."""
        while True:
            self._send(ALIVE)
            await asyncio.sleep(HEARTBEAT_SECONDS)


def run_front(control_fd: int, serve: Callable[[Front], Awaitable[None]]) -> int:
    """Run ``serve`` until it returns; the exit status. A typed refusal at start is one line on standard error."""
    die_with_parent()
    os.set_blocking(control_fd, False)
    try:
        asyncio.run(_run(control_fd, serve))
    except NftrustError as error:
        print(f"{error.reason.name}: {error.message} {error.reason.remedy}", file=sys.stderr, flush=True)  # noqa: T201
        return 1 if error.transient else EX_CONFIG
    return 0


async def _run(control_fd: int, serve: Callable[[Front], Awaitable[None]]) -> None:
    front = Front(control_fd)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.stop.set)
    beating = asyncio.create_task(front.beat())
    try:
        await serve(front)
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


def die_with_parent() -> None:
    """SIGKILL this process when the thread that started it ends (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request
        os.kill(os.getpid(), signal.SIGKILL)
