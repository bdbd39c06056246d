"""One thread that works for many: what queued up while it worked is its next batch.

A thread of its own per caller would cost more in hand-overs than the work
itself; here a batch shares them, and the transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nftrust.errors import NftrustError, Reason
from nftrust.storage.engine import RETRY_AFTER_SECONDS, Outage

BATCH_LIMIT = 64
#: Where several came at once, so long is waited for more before the next batch (as PostgreSQL's commit_delay): a
#: request loses some milliseconds, and all of them share what a batch costs. Who comes alone does not wait.
LINGER_SECONDS = 0.003
#: Above this the database does not keep up and waiting longer helps nobody.
QUEUE_LIMIT = 8192

#: One unit of work. It gets what the thread works on: a transaction, or a connection to read from.
Work = Callable[[Any], Any]


class Job:
    """One unit of work and the future of the event loop that waits for it."""

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit of work returned or raised."""

    value: Any = None
    error: BaseException | None = None


class GroupThread:
    """Collects jobs and hands them to ``serve``, which tells their callers by :func:`tell` and raises nothing."""

    def __init__(self, name: str, serve: Callable[[Sequence[Job]], None]) -> None:
        self._serve = serve
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._ended = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """How many wait."""
        return self._queue.qsize()

    def submit(self, work: Work) -> asyncio.Future[Any]:
        """Queue ``work`` for the running event loop. Raises NftrustError(STORAGE_UNAVAILABLE, SHUTTING_DOWN)."""
        job = Job(work, asyncio.get_running_loop())
        with self._gate:
            if self._closed:
                raise NftrustError(Reason.SHUTTING_DOWN, retry_after=RETRY_AFTER_SECONDS)
            if self._queue.qsize() >= QUEUE_LIMIT:
                raise Outage("queue full").error()
            self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        served = 0
        while not self._ended:
            job = self._queue.get()
            if served > 1:
                time.sleep(LINGER_SECONDS)
            batch = self._collect(job)
            served = len(batch)
            if batch:
                self._serve(batch)

    def _collect(self, job: Job | None) -> list[Job]:
        """What waits, from ``job`` on."""
        batch: list[Job] = []
        while job is not None:
            # A caller who has gone is not worked for; whoever leaves later must ask again to know.
            if not job.future.cancelled():
                batch.append(job)
            if len(batch) >= BATCH_LIMIT:
                return batch
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return batch
        self._ended = True
        return batch


def tell(batch: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Settle the futures, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Outcome]]] = {}
    for job, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(job.loop, []).append((job.future, outcome))
    for loop, settled in by_loop.items():
        # A closed loop has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[Any], Outcome]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if outcome.error is None:
            future.set_result(outcome.value)
        elif isinstance(outcome.error, StopIteration):  # a future refuses to carry it
            future.set_exception(RuntimeError("StopIteration from a unit of work"))
        else:
            future.set_exception(outcome.error)
