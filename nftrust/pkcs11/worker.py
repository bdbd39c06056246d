"""``python -m nftrust.pkcs11.worker FD``: a process that owns a token and does batches of operations.

It serves one client over the inherited socket FD, ends when the client closes
it or dies, and ends after any unexpected failure of the token: its client
starts another one. A crash of the module costs this process and no other.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys

from nftrust.errors import NftrustError
from nftrust.pkcs11 import wire
from nftrust.pkcs11.backend import LocalBackend
from nftrust.pkcs11.operations import Failure

_PR_SET_PDEATHSIG = 1


def serve(channel: socket.socket) -> None:
    """Start as the first frame says, then answer batches until the other side closes or the token is lost."""
    start = wire.start_decoder.decode(wire.receive(channel))
    _die_with(start.parent)
    backend = LocalBackend(start.config)
    try:
        backend.start()
    except NftrustError as error:
        wire.send(channel, wire.encode(wire.Started(Failure.of(error))))
        return
    wire.send(channel, wire.encode(wire.Started()))
    while True:
        operations = wire.batch_decoder.decode(wire.receive(channel))
        reply = backend.execute(operations)
        wire.send(channel, wire.encode(reply))
        if reply.lost:
            return


def _die_with(parent: int) -> None:
    """Be killed when the client ends, even inside a call of the module that never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main(descriptor: int) -> None:
    """The process. The token is not finalised at the end: nothing of it outlives the process."""
    # A front that drains still needs its worker: only the client's end of the socket, or its death, ends it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A core dump would hold the PIN and the module's keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as channel:
        try:
            serve(channel)
        except (EOFError, OSError):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
