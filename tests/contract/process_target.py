"""What the process tests drive: a supervisor, and fronts that tell their process id to whoever connects.

python -m tests.contract.process_target supervise ADDRESS FRONTS [BEHAVIOUR]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from pathlib import Path

from nftrust import logs
from nftrust.config import LogConfig
from nftrust.errors import NftrustError, Reason
from nftrust.process.front import Front, run_front
from nftrust.process.supervisor import Supervisor

SILENCE_SECONDS = 1.5


async def serve(front: Front, address: str, behaviour: str) -> None:
    """One front. ``behaviour``: normal, refuse, busy (at start), block (on a connection), stuck (at the drain)."""
    if behaviour == "refuse":
        raise NftrustError(Reason.PIN_INCORRECT)
    if behaviour.startswith("busy:") and not _mark(behaviour):
        raise NftrustError(Reason.STORAGE_UNAVAILABLE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{os.getpid()}\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        if behaviour == "block":
            time.sleep(3600)  # noqa: ASYNC251 - the event loop hangs, the process lives

    host, _, port = address.rpartition(":")
    async with await asyncio.start_server(answer, host, int(port), reuse_port=True):
        front.ready()
        await front.stop.wait()
        if behaviour == "stuck":
            await asyncio.sleep(3600)
    os.write(1, f"drained {os.getpid()}\n".encode())  # in one piece: fronts share the pipe


def _mark(behaviour: str) -> bool:
    """Whether an earlier front has left its mark; leaves one."""
    path = Path(behaviour.partition(":")[2])
    found = path.exists()
    path.touch()
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("supervise", "front"))
    parser.add_argument("address")
    parser.add_argument("fronts", type=int)
    parser.add_argument("behaviour", nargs="?", default="normal")
    parser.add_argument("--control-fd", type=int, default=-1)
    arguments = parser.parse_args()
    logs.configure(LogConfig())
    if arguments.part == "front":
        return run_front(arguments.control_fd, lambda front: serve(front, arguments.address, arguments.behaviour))
    command = [sys.executable, "-m", "tests.contract.process_target", "front"]
    supervisor = Supervisor(
        [*command, arguments.address, str(arguments.fronts), arguments.behaviour],
        [arguments.address],
        fronts=arguments.fronts,
        on_ready=lambda: print("ready", flush=True),
        silence=SILENCE_SECONDS,
        drain=2.0 if arguments.behaviour == "stuck" else 20.0,
    )
    try:
        return supervisor.run()
    except NftrustError as error:
        print(f"{error.reason.name}: {error.message}", file=sys.stderr)
        return 78


def free_address() -> str:
    """A loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
