"""Group commit: one thread, one connection, many units of work per commit.

What queued up while the last commit ran forms the next batch. Each unit runs
behind its own savepoint, so that a bad one undoes only itself; if the batch as
a whole fails, its units are retried one by one. Nobody hears of a result
before the commit that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from nftrust.audit import ChainHead
from nftrust.clock import Clock, GuardedClock
from nftrust.errors import NftrustError, Reason
from nftrust.storage import audit_log
from nftrust.storage.engine import RETRY_AFTER_SECONDS, Database, Outage, discard, outage
from nftrust.storage.meta import high_water, set_high_water
from nftrust.storage.transaction import Executor, PendingEvent, Transaction

log = logging.getLogger(__name__)

BATCH_LIMIT = 64
#: Above this the database does not keep up and waiting longer helps nobody.
QUEUE_LIMIT = 8192
_MARK_EVERY_SECONDS = 1.0

Work = Callable[[Transaction], Any]


#: Units of work, why they failed if so, seconds, and how many wait.
CommitObserver = Callable[[int, Reason | None, float, int], None]


def unobserved(units: int, reason: Reason | None, seconds: float, queued: int) -> None:
    """Nobody listens."""


class Job:
    """One unit of work and the future of the event loop that waits for it."""

    def __init__(self, work: Work, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


@dataclass(frozen=True)
class Outcome:
    """What a unit of work returned or raised."""

    value: Any = None
    error: BaseException | None = None


class Stage(enum.Enum):
    """How far a batch came."""

    BEGIN = enum.auto()
    BODY = enum.auto()
    COMMIT = enum.auto()


@dataclass(frozen=True)
class BatchFailure:
    """Why a batch as a whole did not commit."""

    stage: Stage
    error: Exception
    #: The connection was lost, or was to another file than the one now at the path.
    disconnected: bool

    @property
    def may_retry(self) -> bool:
        """Not if the connection was lost while committing: the commit may have happened."""
        return not (self.stage is Stage.COMMIT and self.disconnected)


class GroupWriter:
    """The writing thread of a store."""

    def __init__(self, database: Database, engine: Engine, clock: Clock, observe: CommitObserver = unobserved) -> None:
        self._observe = observe
        self._database = database
        self._engine = engine
        self._clock = clock
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._marked_at = float("-inf")
        #: The last batch could not be written because of the database.
        self.out = False
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="nftrust-store", daemon=True)
        self._thread.start()

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
        ending = False
        while not ending:
            batch = []
            job = self._queue.get()
            while True:
                if job is None:
                    ending = True
                    break
                # A caller who has gone is not worked for; whoever leaves later must ask again to know.
                if not job.future.cancelled():
                    batch.append(job)
                if len(batch) >= BATCH_LIMIT:
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._settle_all(batch)

    def _settle_all(self, batch: Sequence[Job]) -> None:
        failure = self._attempt(batch)
        if failure is not None and failure.stage is Stage.BEGIN and failure.disconnected:
            failure = self._attempt(batch)  # on a fresh connection
        if failure is None:
            return
        if failure.stage is Stage.BEGIN or not failure.may_retry:
            self._fail(batch, failure)
            return
        # A single unit goes again only if the connection was lost under it.
        if len(batch) == 1 and not failure.disconnected:
            self._fail(batch, failure)
            return
        self._retry_singly(batch)

    def _retry_singly(self, batch: Sequence[Job]) -> None:
        for position, job in enumerate(batch):
            failure = self._attempt([job])
            if failure is None:
                continue
            if failure.stage is Stage.BEGIN:
                self._fail(batch[position:], failure)
                return
            self._fail([job], failure)

    def _attempt(self, batch: Sequence[Job]) -> BatchFailure | None:
        """Run and commit ``batch`` and tell its callers; or tell nobody and return why it failed."""
        started = time.monotonic()
        stage = Stage.BEGIN
        connection: Connection | None = None
        try:
            connection = self._engine.connect()
            self._database.check_file(connection)
            transaction = connection.begin()
            body = _Body(connection, audit_log.lock_head(connection), self._now(connection))
            stage = Stage.BODY
            outcomes = body.run(batch)
            stage = Stage.COMMIT
            if body.undone:
                transaction.rollback()
            else:
                transaction.commit()
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a database can raise
            lost = discard(connection, error)
            if stage is Stage.COMMIT and connection is not None and not connection.invalidated:
                # SQLite keeps the transaction of a refused COMMIT open, and SQLAlchemy takes it for ended.
                connection.invalidate()
            found = outage(error)
            reason = Reason.INTERNAL if found is None else found.reason
            self._observe(len(batch), reason, time.monotonic() - started, self._queue.qsize())
            return BatchFailure(stage, error, lost)
        finally:
            if connection is not None:
                connection.close()
        if self.out:
            self.out = False
            log.info("storage available again")
        _tell(batch, outcomes)
        self._observe(len(batch), None, time.monotonic() - started, self._queue.qsize())
        return None

    def _now(self, connection: Connection) -> datetime:
        """The time of the batch. Once a second the clock's high-water mark goes to and from the database."""
        if self._clock.monotonic() - self._marked_at < _MARK_EVERY_SECONDS:
            return self._clock.now()
        mark = adopt_high_water(connection, self._clock)
        now = self._clock.now()
        if mark is None or now > mark:
            set_high_water(Transaction(connection, now), now)
        self._marked_at = self._clock.monotonic()
        return now

    def _fail(self, batch: Sequence[Job], failure: BatchFailure) -> None:
        found = outage(failure.error)
        error: BaseException = failure.error
        if found is not None:
            error = found.error()
            if not self.out:
                self.out = True
                log.warning("storage unavailable", extra={"reason": found.reason.name, "cause": found.cause})
        _tell(batch, [Outcome(error=error)] * len(batch))


class _Body:
    """What happens between the begin and the commit of one batch."""

    def __init__(self, connection: Connection, head: ChainHead, now: datetime) -> None:
        self._connection = connection
        self._head = head
        self._now = now
        self._events: list[PendingEvent] = []
        #: The only unit failed: there is nothing to commit.
        self.undone = False

    def run(self, batch: Sequence[Job]) -> list[Outcome]:
        """Run each unit; raises what concerns the batch as a whole."""
        alone = len(batch) == 1
        outcomes = [self._run_one(job, alone) for job in batch]
        audit_log.append(self._connection, self._head, self._events)
        return outcomes

    def _run_one(self, job: Job, alone: bool) -> Outcome:
        tx = Transaction(self._connection, self._now)
        savepoint = None if alone else self._connection.begin_nested()
        try:
            value = job.work(tx)
            tx.check()
        except BaseException as error:  # noqa: BLE001 - it goes to the unit's caller
            cause = tx.doomed_by or error
            if outage(cause) is not None:
                raise cause from None
            if savepoint is None:
                self.undone = True
            else:
                savepoint.rollback()
            return Outcome(error=error)
        if savepoint is not None:
            savepoint.commit()
        self._events += tx.events
        return Outcome(value=value)


def adopt_high_water(executor: Executor, clock: Clock) -> datetime | None:
    """Read the persisted mark and raise a guarded clock to it (security rule 22)."""
    mark = high_water(executor)
    if mark is not None and isinstance(clock, GuardedClock):
        clock.raise_to(mark)
    return mark


def _tell(batch: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
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
