"""The client's thread against a backend that fails to order. No token."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import client as client_module
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.backend import Reply, all_unavailable
from nftrust.pkcs11.client import TokenClient

PING = op.Mac("key", b"")


class ScriptedBackend:
    """Answers as told; counts starts and batches."""

    def __init__(self) -> None:
        self.start_errors: list[Exception] = []
        self.losses = 0
        self.fault: Exception | None = None
        self.starts = 0
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.ended = threading.Event()

    def start(self) -> None:
        self.starts += 1
        if self.start_errors:
            raise self.start_errors.pop(0)

    def execute(self, operations: Sequence[op.Operation[Any]]) -> Reply:
        self.batches.append(len(operations))
        self.gate.wait(10)
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault
        if self.losses:
            self.losses -= 1
            return Reply(all_unavailable(operations), "scripted")
        return Reply([op.Outcome(b"pong") for _ in operations])

    def running(self) -> bool:
        return True

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.ended.set()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    monkeypatch.setattr(client_module, "SHORTEST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE_SECONDS", 0.01)
    return ScriptedBackend()


@pytest.fixture
def client(backend: ScriptedBackend) -> Iterator[TokenClient]:
    client = TokenClient(backend)
    yield client
    backend.gate.set()
    client.close()
    assert backend.ended.is_set()


def reason_of(client: TokenClient) -> Reason | None:
    error = client.submit([PING]).exception(10)
    return error.reason if isinstance(error, NftrustError) else None


def wait_for_batch(backend: ScriptedBackend, count: int) -> None:
    while len(backend.batches) < count:
        threading.Event().wait(0.001)


def test_what_is_queued_during_a_batch_is_the_next_batch(backend: ScriptedBackend, client: TokenClient) -> None:
    backend.gate.clear()
    first = client.submit([PING])
    wait_for_batch(backend, 1)
    rest = [client.submit([PING]) for _ in range(client_module.MAX_BATCH + 2)]
    backend.gate.set()
    assert [future.result(10) for future in (first, *rest)] == [[b"pong"]] * (client_module.MAX_BATCH + 3)
    assert backend.batches == [1, client_module.MAX_BATCH, 2]


def test_a_loss_costs_the_batch_and_one_start(backend: ScriptedBackend, client: TokenClient) -> None:
    client.ready()
    backend.losses = 1
    assert reason_of(client) is Reason.TOKEN_UNAVAILABLE
    assert reason_of(client) is None
    assert backend.starts == 2


def test_losses_in_a_row_back_off_and_heal(backend: ScriptedBackend, client: TokenClient) -> None:
    client.ready()
    backend.losses = 5
    while reason_of(client) is not None:
        assert backend.starts <= 6
    assert backend.starts == 6
    assert client.available


@pytest.mark.parametrize("error", [NftrustError(Reason.TOKEN_MISSING), ValueError("a bug")])
def test_a_failed_start_is_said_and_tried_again(backend: ScriptedBackend, error: Exception) -> None:
    backend.start_errors = [error] * 100_000  # until it has been said, however long this thread has to wait
    client = TokenClient(backend)
    try:
        with pytest.raises(NftrustError) as caught:
            client.ready(10)
        assert caught.value.reason is getattr(error, "reason", Reason.TOKEN_UNAVAILABLE)
        backend.start_errors = []
        while reason_of(client) is Reason.TOKEN_UNAVAILABLE:
            pass
        assert backend.starts > 1
        client.ready()
    finally:
        client.close()


def test_an_accident_in_the_backend_is_a_loss(backend: ScriptedBackend, client: TokenClient) -> None:
    backend.fault = ZeroDivisionError()
    assert reason_of(client) is Reason.TOKEN_UNAVAILABLE
    assert reason_of(client) is None


def test_close_finishes_the_batch_and_refuses_the_rest(backend: ScriptedBackend) -> None:
    client = TokenClient(backend)
    backend.gate.clear()
    first = client.submit([PING])
    wait_for_batch(backend, 1)
    second = client.submit([PING])
    closer = threading.Thread(target=client.close)
    closer.start()
    while not (refused := client.submit([PING])).done():
        threading.Event().wait(0.001)
    backend.gate.set()
    closer.join(10)
    assert first.result(10) == [b"pong"]
    for error in (second.exception(10), refused.exception(10)):
        assert isinstance(error, NftrustError)
        assert error.reason is Reason.SHUTTING_DOWN
    assert reason_of(client) is Reason.SHUTTING_DOWN
    with pytest.raises(NftrustError):
        client.ready()
    client.close()


def test_a_full_queue_refuses(backend: ScriptedBackend, client: TokenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_QUEUED", 3)
    backend.gate.clear()
    client.submit([PING])
    wait_for_batch(backend, 1)
    waiting = [client.submit([PING]) for _ in range(3)]
    assert reason_of(client) is Reason.TOKEN_UNAVAILABLE
    backend.gate.set()
    assert [future.result(10) for future in waiting] == [[b"pong"]] * 3


def test_a_call_that_is_given_up_is_not_done(backend: ScriptedBackend, client: TokenClient) -> None:
    backend.gate.clear()
    client.submit([PING])
    wait_for_batch(backend, 1)
    with pytest.raises(NftrustError) as caught:
        client.call(PING, timeout=0.01)
    assert caught.value.reason is Reason.DEADLINE
    last = client.submit([PING])
    backend.gate.set()
    assert last.result(10) == [b"pong"]
    assert backend.batches == [1, 1]


async def test_a_cancelled_task_takes_its_operation_out_of_the_queue(
    backend: ScriptedBackend, client: TokenClient
) -> None:
    backend.gate.clear()
    first = asyncio.create_task(client.run(PING))
    await asyncio.sleep(0)
    wait_for_batch(backend, 1)
    second = asyncio.create_task(client.run(PING))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    backend.gate.set()
    assert await first == b"pong"
    assert await client.run(PING) == b"pong"
    assert backend.batches == [1, 1]


@pytest.mark.parametrize(("size", "well"), [(1, False), (100, True)])
def test_a_large_batch_has_more_time_before_its_token_looks_ill(
    client: TokenClient, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, size: int, well: bool
) -> None:
    """A network HSM may do some twenty signatures a second."""
    monkeypatch.setattr(client_module, "SLUGGISH_SECONDS", 0.05)
    client.ready()
    backend.gate.clear()
    future = client.submit([PING] * size)
    while not backend.batches:
        time.sleep(0.01)
    assert backend.batches == [size]
    time.sleep(0.3)
    assert client.available is well
    backend.gate.set()
    assert future.result(10) == [b"pong"] * size
