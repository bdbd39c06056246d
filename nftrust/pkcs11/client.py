"""What everybody but this package sees of a token: a client to which operations are submitted.

One thread collects what is queued into a batch while the last batch is in
flight, so that the round trip to a worker is shared, and so is the wake-up of
the event loop that waits for it. A token that is lost is
opened again with back-off; what was in flight fails with TOKEN_UNAVAILABLE,
what was queued waits for one fresh start.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Literal, TypeVar

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.backend import Backend, LocalBackend, Reply, all_unavailable
from nftrust.pkcs11.operations import GenerateKeyPair, Operation, Outcome
from nftrust.pkcs11.requests import Request, answers, tell
from nftrust.pkcs11.worker_backend import HANGS, OPERATION_LIMIT_SECONDS, REPLY_LIMIT_SECONDS, WorkerBackend

R = TypeVar("R")
State = Literal["starting", "ready", "down", "closed"]

MAX_BATCH = 128
MAX_QUEUED = 8192
#: Where several came at once, so long is waited for more: they share the round trip. Who comes alone does not wait.
LINGER_SECONDS = 0.003
SHORTEST_PAUSE_SECONDS = 0.1
#: A token that has come back is found within so long.
LONGEST_PAUSE_SECONDS = 1.0
RETRY_AFTER_SECONDS = 1.0
#: How often an idle client looks whether its worker still runs.
IDLE_CHECK_SECONDS = 5.0
#: A batch without a key pair to make that takes longer does not look well, and nothing is queued behind it.
SLUGGISH_SECONDS = 1.5
#: How long closing waits for the batch in flight.
CLOSE_SECONDS = 2.0
#: How long a synchronous call waits.
CALL_SECONDS = 60.0

#: The operations of a batch with the reasons of those that failed, its time in seconds, and how many wait.
BatchObserver = Callable[[Sequence[tuple[str, Reason | None]], float, int], None]

_log = logging.getLogger(__name__)


def _unobserved(operations: Sequence[tuple[str, Reason | None]], seconds: float, queued: int) -> None:
    """Nobody listens."""


class TokenClient:
    """Thread-safe. Made by :meth:`in_process` or :meth:`worker`; starts at once, see :meth:`ready`."""

    def __init__(self, backend: Backend, observe: BatchObserver = _unobserved) -> None:
        self._backend = backend
        self._observe = observe
        self._changed = threading.Condition()
        self._queue: deque[Request] = deque()
        self._state: State = "starting"
        self._start_error: NftrustError | None = None
        #: Starts and batches that failed since the last batch that did not.
        self._failures = 0
        #: How often the token was lost: also outages too short to be seen by looking now and then.
        self.losses = 0
        #: Since when (monotonic) a batch that should be quick is in flight.
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._live, name="token", daemon=True)
        self._thread.start()

    @classmethod
    def in_process(cls, config: TokenConfig) -> TokenClient:
        """The token in this process, in a thread of its own (the NF agent). One token per module and process."""
        return cls(LocalBackend(config))

    @classmethod
    def worker(
        cls,
        config: TokenConfig,
        *,
        reply_limit: float = REPLY_LIMIT_SECONDS,
        observe: BatchObserver = _unobserved,
    ) -> TokenClient:
        """The token in a worker process, which is killed if a batch takes longer than ``reply_limit`` seconds."""
        return cls(WorkerBackend(config, reply_limit=reply_limit), observe)

    @property
    def available(self) -> bool:
        """Whether the token is open and answers: for health checks."""
        return self._state == "ready" and not self._sluggish() and self._backend.running()

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, if there is one."""
        return self._backend.pid if isinstance(self._backend, WorkerBackend) else None

    def ready(self, timeout: float = CALL_SECONDS) -> None:
        """Wait for the login. Raises the NftrustError of the start: TOKEN_MISSING, PIN_INCORRECT, …"""
        with self._changed:
            if not self._changed.wait_for(lambda: self._state != "starting", timeout):
                raise NftrustError(Reason.TOKEN_UNAVAILABLE)
            if self._state == "down" and self._start_error is not None:
                raise self._start_error
            if self._closed():
                raise NftrustError(Reason.SHUTTING_DOWN)

    def submit(self, operations: Sequence[Operation[Any]]) -> Future[list[Any]]:
        """Queue operations as one. The future holds their results, or the first NftrustError."""
        future: Future[list[Any]] = Future()
        self._enqueue(Request(operations, future))
        return future

    async def run(self, operation: Operation[R]) -> R:
        """Do an operation from an event loop. Raises NftrustError."""
        result: R = (await self.run_all([operation]))[0]
        return result

    async def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Do these in one batch: all results in order, or the first NftrustError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._enqueue(Request(operations, future, loop))
        return await future

    def call(self, operation: Operation[R], *, timeout: float = CALL_SECONDS) -> R:
        """Do an operation and wait, from any thread but the client's own. Raises NftrustError."""
        future = self.submit([operation])
        try:
            result: R = future.result(timeout)[0]
        except FutureTimeout:
            future.cancel()
            raise NftrustError(Reason.DEADLINE) from None
        return result

    def close(self) -> None:
        """Finish the batch in flight, refuse the rest, let go of the token. May be repeated.

        A token that does not answer is not waited for beyond a few seconds.
        """
        with self._changed:
            self._state = "closed"
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._backend.abandon()
            self._thread.join(CLOSE_SECONDS)

    def _enqueue(self, request: Request) -> None:
        with self._changed:
            refusal = self._refusal()
            if refusal is None:
                self._queue.append(request)
                self._changed.notify_all()
                return
        request.future.set_exception(NftrustError(refusal, retry_after=RETRY_AFTER_SECONDS))

    def _sluggish(self) -> bool:
        since = self._busy_since
        return since is not None and time.monotonic() - since > SLUGGISH_SECONDS

    def _refusal(self) -> Reason | None:
        if self._state == "closed":
            return Reason.SHUTTING_DOWN
        # Behind a token that seems to hang nobody queues: a prompt refusal can be tried elsewhere, or again.
        if self._state == "down" or self._sluggish() or len(self._queue) >= MAX_QUEUED:
            return Reason.TOKEN_UNAVAILABLE
        return None

    def _live(self) -> None:
        """The thread: start, serve, and start again, until closed."""
        while not self._closed():
            if self._start():
                self._serve()
                self._backend.stop()
            if self._state == "down":
                self._pause()
        self._backend.close()
        self._refuse_queued(Reason.SHUTTING_DOWN)

    def _closed(self) -> bool:
        return self._state == "closed"

    def _start(self) -> bool:
        try:
            self._backend.start()
        except NftrustError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, callers get an answer and the thread lives
            _log.error("token start failed", extra={"cause": type(error).__name__})
            failure = NftrustError(Reason.TOKEN_UNAVAILABLE)
        else:
            self._enter("ready")
            return True
        if self._start_error is None or self._start_error.reason is not failure.reason:  # once, not at each attempt
            _log.error("token not open", extra={"reason": failure.reason.name})
        self._give_up(failure)
        return False

    def _serve(self) -> None:
        """Do batches until the token is lost or the client closed."""
        served = 0
        while batch := self._next_batch(linger=served > 1):
            served = len(batch)
            operations = [operation for request in batch for operation in request.operations]
            started = time.monotonic()
            if not any(isinstance(operation, GenerateKeyPair) for operation in operations):
                # As if it had begun later: a batch has its time, and each of its operations some more.
                self._busy_since = started + len(operations) * OPERATION_LIMIT_SECONDS
            try:
                reply = self._backend.execute(operations)
            except Exception as error:  # noqa: BLE001 - as above
                reply = Reply(all_unavailable(operations), type(error).__name__)
            self._busy_since = None
            self._report(operations, reply.outcomes, time.monotonic() - started)
            if not reply.lost:
                self._failures = 0
                tell(answers(batch, reply.outcomes))
                continue
            self._lose(reply.lost, hopeful=reply.lost != HANGS)
            tell(answers(batch, reply.outcomes))
            return
        if not self._closed():
            self._lose("the worker ended while idle")

    def _report(self, operations: Sequence[Operation[Any]], outcomes: Sequence[Outcome], seconds: float) -> None:
        done = [
            (type(operation).__name__, None if outcome.failure is None else outcome.failure.error().reason)
            for operation, outcome in zip(operations, outcomes, strict=True)
        ]
        self._observe(done, seconds, len(self._queue))

    def _lose(self, cause: str, *, hopeful: bool = True) -> None:
        """What is queued waits for one fresh start, if there is hope; after a further loss it is refused.

        A fresh start of what hangs is likely to hang too.
        """
        _log.warning("token lost", extra={"cause": cause})
        self.losses += 1
        if self._failures or not hopeful:
            self._give_up(NftrustError(Reason.TOKEN_UNAVAILABLE))
        else:
            self._failures = 1
            self._enter("starting")

    def _give_up(self, error: NftrustError) -> None:
        """Refuse what comes, until the next attempt has succeeded."""
        self._failures += 1
        self._enter("down", error)
        self._refuse_queued(Reason.TOKEN_UNAVAILABLE)

    def _next_batch(self, *, linger: bool) -> list[Request]:
        """What is queued, at least one; nothing once the client is closed or the backend has ended.

        ``linger``: for what comes within some milliseconds too.
        """
        batch: list[Request] = []
        size = 0
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._closed(), IDLE_CHECK_SECONDS)
                if linger:
                    self._changed.wait_for(self._closed, LINGER_SECONDS)
                if self._closed() or not self._backend.running():
                    return []
                while self._queue and (not batch or size + len(self._queue[0].operations) <= MAX_BATCH):
                    request = self._queue.popleft()
                    if request.wanted():
                        batch.append(request)
                        size += len(request.operations)
        return batch

    def _refuse_queued(self, reason: Reason) -> None:
        with self._changed:
            refused = list(self._queue)
            self._queue.clear()
        error = NftrustError(reason, retry_after=RETRY_AFTER_SECONDS)
        tell([(request, None, error) for request in refused if request.wanted()])

    def _enter(self, state: State, error: NftrustError | None = None) -> None:
        with self._changed:
            if not self._closed():
                self._state = state
                self._start_error = error
                self._changed.notify_all()

    def _pause(self) -> None:
        """Back off with full jitter. A refused PIN is never tried again: real tokens lock."""
        error = self._start_error
        latched = error is not None and error.reason is Reason.PIN_INCORRECT
        ceiling = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2.0 ** min(self._failures, 10))
        limit = None if latched else time.monotonic() + random.uniform(SHORTEST_PAUSE_SECONDS, ceiling)
        with self._changed:
            while self._state != "closed" and (limit is None or limit > time.monotonic()):
                self._changed.wait(None if limit is None else max(0.0, limit - time.monotonic()))
