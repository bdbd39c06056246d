"""A running front as its supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from nftrust.errors import NftrustError
from nftrust.process.control import ALIVE, FRONT_VARIABLE, IMPAIRED, READY, REFUSED, Lines, parse_refusal
from nftrust.process.liveness import Vigil

_CHUNK_BYTES = 1 << 16
#: Else every connection of a stranger would have gRPC write a line that is no JSON.
_DEFAULTS = {"GRPC_VERBOSITY": "ERROR"}


class Child:
    """Starts ``command`` with ``--control-fd N`` as front ``number``, and listens to what it says."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int], silence: float, number: int) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--control-fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), *pass_fds),
                start_new_session=True,
                env={**_DEFAULTS, **os.environ, FRONT_VARIABLE: str(number)},
            )
        self.control.setblocking(False)
        self.started = time.monotonic()
        self.vigil = Vigil(self.process.pid, self.started, silence=silence)
        self.ready = self.impaired = False
        #: It will say no more.
        self.hung_up = False
        #: Why it cannot start, if it has said so.
        self.refusal: NftrustError | None = None
        self._lines = Lines()

    def receive(self) -> bool:
        """Take what it has said; False where there is nothing more, now or ever."""
        try:
            data = self.control.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self.hung_up = not data
        for word, text in self._lines.feed(data):
            if word == REFUSED:
                self.refusal = parse_refusal(text)
            elif word in (ALIVE, READY, IMPAIRED):
                self.vigil.heard(time.monotonic())
                self.ready = word != ALIVE
                self.impaired = word == IMPAIRED
        return bool(data)

    def tell(self, word: str) -> None:
        """One that does not listen is not waited for: it hears the next change."""
        with contextlib.suppress(OSError):
            self.control.send(f"{word}\n".encode())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """After its end."""
        while self.receive():
            pass  # its last words
        self.control.close()
