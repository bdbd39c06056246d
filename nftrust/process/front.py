"""A front's side of the process model: heartbeats to the supervisor, and the order to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Awaitable, Callable

from nftrust.errors import NftrustError
from nftrust.process.control import ALIVE, EX_CONFIG, READY, refusal_message

HEARTBEAT_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)

__all__ = ["EX_CONFIG", "Front", "run_front"]


class Front:
    """What a front's ``serve`` uses: say :meth:`ready`, then wait for ``stop``."""

    def __init__(self, control_fd: int) -> None:
        self.stop = asyncio.Event()
        self.is_ready = False
        self._control_fd = control_fd

    def ready(self) -> None:
        """All listeners serve."""
        self.is_ready = True
        self._send(READY)

    def _send(self, word: str) -> None:
        try:
            os.write(self._control_fd, f"{word}\n".encode())
        except BlockingIOError:
            pass  # the supervisor is stopped; it finds earlier messages when it goes on
        except OSError:
            self.stop.set()  # the supervisor is gone

    async def beat(self) -> None:
        """From the event loop, so that a front that no longer serves no longer beats."""
        while True:
            self._send(READY if self.is_ready else ALIVE)
            await asyncio.sleep(HEARTBEAT_SECONDS)


def run_front(control_fd: int, serve: Callable[[Front], Awaitable[None]]) -> int:
    """Run ``serve`` until it returns; the exit status.

    78 and the reason to the supervisor where ``serve`` raises a permanent
    NftrustError before it was ready; 1 where another attempt may succeed.
    """
    _die_with_parent()
    os.set_blocking(control_fd, False)
    return asyncio.run(_run(Front(control_fd), control_fd, serve))


async def _run(front: Front, control_fd: int, serve: Callable[[Front], Awaitable[None]]) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.stop.set)
    beating = asyncio.create_task(front.beat())
    try:
        await serve(front)
    except NftrustError as error:
        if front.is_ready or error.transient:
            _log.error("front gives up", extra={"reason": error.reason.name, "detail": error.message})
            return 1
        with contextlib.suppress(OSError):
            os.write(control_fd, refusal_message(error))
        return EX_CONFIG
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
    return 0


def _die_with_parent() -> None:
    """SIGKILL this process when the supervisor ends, however it ends (Linux).

    Where it ended before this call, the first heartbeat finds the pipe closed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
