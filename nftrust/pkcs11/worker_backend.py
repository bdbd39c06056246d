"""The token in a worker process of its own, on a socket pair."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import wire
from nftrust.pkcs11.backend import Reply, all_unavailable, close_held_pin
from nftrust.pkcs11.operations import GenerateKeyPair, Operation
from nftrust.pkcs11.pin import hold_pin

START_LIMIT_SECONDS = 60.0
#: A worker that takes longer over a batch hangs, and is killed.
REPLY_LIMIT_SECONDS = 10.0
#: More for each operation of a batch: a slow module does some twenty signatures a second.
OPERATION_LIMIT_SECONDS = 0.05
KEY_PAIR_LIMIT_SECONDS = 20.0
#: What a reply says of a batch that was given up for its length.
HANGS = "the worker hangs"
_END_SECONDS = 2.0


class WorkerBackend:
    """Spawns the worker (never forks), talks to it, kills it when it hangs."""

    def __init__(self, config: TokenConfig, *, reply_limit: float = REPLY_LIMIT_SECONDS) -> None:
        self._config = hold_pin(config)
        self._held_pin = self._config.pin_fd
        self._reply_limit = reply_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id, if it runs."""
        process = self._process
        return process.pid if process else None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno()] + ([] if self._held_pin is None else [self._held_pin])
        try:
            self._channel = ours
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nftrust.pkcs11.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
            )
        except OSError:
            raise NftrustError(Reason.TOKEN_UNAVAILABLE, "the token worker cannot be started") from None
        finally:
            theirs.close()
        failure = self._greet(ours)
        if failure is not None:
            self.stop()
            raise failure

    def execute(self, operations: Sequence[Operation[Any]]) -> Reply:
        channel = self._channel
        if channel is None:
            return Reply(all_unavailable(operations), "no worker")
        pairs = sum(isinstance(operation, GenerateKeyPair) for operation in operations)
        operations_limit = len(operations) * OPERATION_LIMIT_SECONDS
        channel.settimeout(self._reply_limit + operations_limit + pairs * KEY_PAIR_LIMIT_SECONDS)
        try:
            wire.send(channel, wire.encode(operations))
            return wire.decode_reply(wire.receive(channel), operations)
        except TimeoutError:
            if self._process is not None:
                self._process.kill()
            return Reply(all_unavailable(operations), HANGS)
        except (EOFError, OSError, ValueError):
            return Reply(all_unavailable(operations), f"the worker ended{self._exit_status()}")

    def running(self) -> bool:
        process = self._process
        return process is not None and process.poll() is None

    def stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        close_held_pin(self._held_pin)
        self._held_pin = None

    def abandon(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def _greet(self, channel: socket.socket) -> NftrustError | None:
        """Send the configuration; the worker's refusal, or why there is no answer."""
        channel.settimeout(START_LIMIT_SECONDS)
        try:
            wire.send(channel, wire.encode(wire.Start(self._config, os.getpid())))
            started = wire.started_decoder.decode(wire.receive(channel))
        except (EOFError, OSError, ValueError):
            return NftrustError(Reason.TOKEN_UNAVAILABLE, "the token worker did not start")
        return started.failure.error() if started.failure else None

    def _exit_status(self) -> str:
        """For the log: how the worker ended, if it has."""
        try:
            status = self._process.wait(_END_SECONDS) if self._process else None
        except subprocess.TimeoutExpired:
            return ""
        return "" if status is None else f" (status {status})"
