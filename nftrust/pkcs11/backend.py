"""Who does a batch of operations: the calling thread, or a worker process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.operations import Failure, Operation, Outcome
from nftrust.pkcs11.pin import hold_pin
from nftrust.pkcs11.token import Token


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The outcomes of a batch, one per operation; ``lost`` says why the backend must be started anew, if so."""

    outcomes: list[Outcome]
    lost: str = ""


class Backend(Protocol):
    """One thread starts, uses and stops it, in turn, as often as it takes."""

    def start(self) -> None:
        """Open the token. Raises NftrustError."""
        ...

    def execute(self, operations: Sequence[Operation[Any]]) -> Reply:
        """Do a batch. A lost token is in the reply; nothing is raised."""
        ...

    def running(self) -> bool:
        """Whether there is still somebody to send a batch to. Thread-safe."""
        ...

    def stop(self) -> None:
        """Let go of the token; it can be started again. Never raises."""
        ...

    def close(self) -> None:
        """Stop for good."""
        ...

    def abandon(self) -> None:
        """From another thread: give up the batch in flight, if that can be done. Never raises."""
        ...


def all_unavailable(operations: Sequence[Operation[Any]]) -> list[Outcome]:
    """TOKEN_UNAVAILABLE for each operation."""
    failure = Failure.of(NftrustError(Reason.TOKEN_UNAVAILABLE))
    return [Outcome(failure=failure) for _ in operations]


class LocalBackend:
    """The token in this process, owned by the thread that starts the backend."""

    def __init__(self, config: TokenConfig) -> None:
        self._config = hold_pin(config)
        self._held_pin = self._config.pin_fd
        self._token: Token | None = None

    def start(self) -> None:
        self._token = Token.open(self._config)

    def execute(self, operations: Sequence[Operation[Any]]) -> Reply:
        token = self._token
        if token is None:
            return Reply(all_unavailable(operations), "not open")
        outcomes = token.execute_all(operations)
        if token.worn and not token.lost:
            self.stop()
            try:
                self.start()
            except NftrustError as error:
                return Reply(outcomes, error.reason.name)
        return Reply(outcomes, token.lost)

    def running(self) -> bool:
        return self._token is not None

    def stop(self) -> None:
        if self._token is not None:
            self._token.close()
            self._token = None

    def close(self) -> None:
        self.stop()
        close_held_pin(self._held_pin)
        self._held_pin = None

    def abandon(self) -> None:
        """A module that hangs in this process cannot be made to return."""


def close_held_pin(descriptor: int | None) -> None:
    """Close the memory file of :func:`nftrust.pkcs11.pin.hold_pin`, if there is one."""
    if descriptor is not None:
        os.close(descriptor)
