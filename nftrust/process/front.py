"""A front's side of the process model: heartbeats to the supervisor, and the order to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable

from nftrust.errors import NftrustError
from nftrust.process.control import ALIVE, EX_CONFIG, IMPAIRED, READY, SERVING, Lines, refusal_message

HEARTBEAT_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1 << 12

_log = logging.getLogger(__name__)

__all__ = ["EX_CONFIG", "Front", "run_front"]


class Front:
    """What a front's ``serve`` uses: say :meth:`ready`, then wait for ``stop``."""

    def __init__(self, control: socket.socket) -> None:
        self.stop = asyncio.Event()
        self.is_ready = False
        self._control = control
        self._lines = Lines()
        self._impaired = self._server_impaired = False
        self._changed = asyncio.Event()

    def ready(self) -> None:
        """All listeners serve."""
        gc.collect()
        gc.freeze()  # modules and what was made at the start stay: later collections need not look at them
        self.is_ready = True
        self._beat()

    def report(self, *, impaired: bool) -> None:
        """Whether this front lacks something that it needs to serve."""
        self._impaired = impaired
        if self.is_ready:
            self._beat()

    async def server_health(self) -> bool:
        """Waits for a change in whether all fronts of the server have what they need; what holds now."""
        await self._changed.wait()
        self._changed.clear()
        return not self._server_impaired

    def refuse(self, error: NftrustError) -> None:
        """Tell why this front cannot start."""
        with contextlib.suppress(OSError):
            self._control.send(refusal_message(error))

    def listen(self) -> None:
        """Take what the supervisor says."""
        try:
            data = self._control.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.stop.set()  # the supervisor is gone
            asyncio.get_running_loop().remove_reader(self._control)
        for word, _ in self._lines.feed(data):
            if word in (SERVING, IMPAIRED):
                self._server_impaired = word == IMPAIRED
                self._changed.set()

    async def beat(self) -> None:
        """From the event loop, so that a front that no longer serves no longer beats."""
        while True:
            self._beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _beat(self) -> None:
        word = (IMPAIRED if self._impaired else READY) if self.is_ready else ALIVE
        try:
            self._control.send(f"{word}\n".encode())
        except BlockingIOError:
            pass  # the supervisor is stopped; it finds earlier messages when it goes on
        except OSError:
            self.stop.set()  # the supervisor is gone


def run_front(control_fd: int, serve: Callable[[Front], Awaitable[None]]) -> int:
    """Run ``serve`` until it returns; the exit status.

    78 and the reason to the supervisor where ``serve`` raises a permanent
    NftrustError before it was ready; 1 where another attempt may succeed.
    """
    _die_with_parent()
    _allow_descriptors()
    with socket.socket(fileno=control_fd) as control:
        control.setblocking(False)
        return asyncio.run(_run(control, serve))


async def _run(control: socket.socket, serve: Callable[[Front], Awaitable[None]]) -> int:
    front = Front(control)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.stop.set)
    loop.add_reader(control, front.listen)
    beating = asyncio.create_task(front.beat())
    try:
        await serve(front)
    except NftrustError as error:
        if front.is_ready or error.transient:
            _log.error("front gives up", extra={"reason": error.reason.name, "detail": error.message})
            return 1
        front.refuse(error)
        return EX_CONFIG
    finally:
        loop.remove_reader(control)
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
    return 0


def _allow_descriptors() -> None:
    """As many as may be: a server without descriptors for new connections serves nobody."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _die_with_parent() -> None:
    """SIGKILL this process when the supervisor ends, however it ends (Linux).

    Where it ended before this call, the first heartbeat finds the pipe closed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
