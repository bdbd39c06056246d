"""Group commit: one thread, one connection, many units of work per commit.

What queued up while the last commit ran forms the next batch. Most units that
fail do so before they wrote anything, and have nothing to undo; where one had,
the batch is run again with a savepoint for each unit, so that a bad one undoes
only itself. If the batch as a whole fails, its units are retried one by one.
Nobody hears of a result before the commit that holds it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine

from nftrust.audit import ChainHead
from nftrust.clock import Clock, GuardedClock
from nftrust.errors import Reason
from nftrust.storage import audit_log
from nftrust.storage.engine import Database, discard, outage
from nftrust.storage.group import GroupThread, Job, Outcome, tell
from nftrust.storage.meta import high_water, set_high_water
from nftrust.storage.transaction import Executor, PendingEvent, Transaction

log = logging.getLogger(__name__)

_MARK_EVERY_SECONDS = 1.0

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)

#: Units of work, why they failed if so, seconds, and how many wait.
CommitObserver = Callable[[int, Reason | None, float, int], None]


def unobserved(units: int, reason: Reason | None, seconds: float, queued: int) -> None:
    """Nobody listens."""


class Stage(enum.Enum):
    """How far a batch came."""

    BEGIN = enum.auto()
    BODY = enum.auto()
    COMMIT = enum.auto()


class Kind(Protocol[Item, Result]):
    """What does units of one kind: a result for each item."""

    def __call__(self, tx: Transaction, items: Sequence[Item]) -> Sequence[Result]: ...


@dataclass(frozen=True, slots=True)
class Alike(Generic[Item, Result]):
    """A unit of work that can be done in one with others of its kind: ``work`` returns a result for each item."""

    work: Kind[Item, Result]
    item: Item

    def __call__(self, tx: Transaction) -> Result:
        return self.work(tx, [self.item])[0]


class SpoiledError(Exception):
    """A unit of an unguarded batch failed after it had written."""


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
        self._marked_at = float("-inf")
        #: The last batch could not be written because of the database.
        self.out = False
        self._group = GroupThread("nftrust-store", self._settle_all)

    def submit(self, work: Callable[[Transaction], Any]) -> asyncio.Future[Any]:
        """Queue ``work`` for the running event loop. Raises NftrustError(STORAGE_UNAVAILABLE, SHUTTING_DOWN)."""
        return self._group.submit(work)

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._group.close()

    def _settle_all(self, batch: Sequence[Job]) -> None:
        failure = self._attempt(batch)
        if failure is not None and failure.stage is Stage.BEGIN and failure.disconnected:
            failure = self._attempt(batch)  # on a fresh connection
        if failure is not None and isinstance(failure.error, SpoiledError):
            failure = self._attempt(batch, guarded=True)
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

    def _attempt(self, batch: Sequence[Job], *, guarded: bool = False) -> BatchFailure | None:
        """Run and commit ``batch`` and tell its callers; or tell nobody and return why it failed.

        ``guarded``: each unit behind a savepoint.
        """
        started = time.monotonic()
        stage = Stage.BEGIN
        connection: Connection | None = None
        try:
            connection = self._engine.connect()
            self._database.check_file(connection)
            transaction = connection.begin()
            body = _Body(connection, audit_log.lock_head(connection), self._now(connection))
            stage = Stage.BODY
            outcomes = body.run(batch, guarded)
            stage = Stage.COMMIT
            if body.undone:
                transaction.rollback()
            else:
                transaction.commit()
        except SpoiledError as error:
            return BatchFailure(stage, error, disconnected=False)
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a database can raise
            lost = discard(connection, error)
            if stage is Stage.COMMIT and connection is not None and not connection.invalidated:
                # SQLite keeps the transaction of a refused COMMIT open, and SQLAlchemy takes it for ended.
                connection.invalidate()
            found = outage(error)
            reason = Reason.INTERNAL if found is None else found.reason
            self._observe(len(batch), reason, time.monotonic() - started, self._group.queued)
            return BatchFailure(stage, error, lost)
        finally:
            if connection is not None:
                connection.close()
        if self.out:
            self.out = False
            log.info("storage available again")
        tell(batch, outcomes)
        self._observe(len(batch), None, time.monotonic() - started, self._group.queued)
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
        tell(batch, [Outcome(error=error)] * len(batch))


class _Body:
    """What happens between the begin and the commit of one batch."""

    def __init__(self, connection: Connection, head: ChainHead, now: datetime) -> None:
        self._connection = connection
        self._head = head
        self._now = now
        self._events: list[PendingEvent] = []
        self._alone = False
        #: The only unit failed after it had written: there is something to undo and nothing to commit.
        self.undone = False

    def run(self, batch: Sequence[Job], guarded: bool) -> list[Outcome]:
        """Run each unit; raises what concerns the batch as a whole."""
        self._alone = len(batch) == 1
        if guarded:
            outcomes = [self._run_behind_savepoint(job) for job in batch]
        else:
            done = self._run_alike(batch)
            outcomes = [done.get(job) or self._run_one(job) for job in batch]
        audit_log.append(self._connection, self._head, self._events)
        return outcomes

    def _run_alike(self, batch: Sequence[Job]) -> dict[Job, Outcome]:
        """The outcomes of those units of which the batch has more than one of a kind."""
        kinds: dict[Any, dict[Job, Any]] = {}
        for job in batch:
            if isinstance(job.work, Alike):
                kinds.setdefault(job.work.work, {})[job] = job.work.item
        done: dict[Job, Outcome] = {}
        for work, items in kinds.items():
            if len(items) > 1:
                together = partial(work, items=list(items.values()))
                outcome = self._outcome(together, Transaction(self._connection, self._now))
                if outcome.error is not None:
                    raise SpoiledError
                done |= {job: Outcome(value) for job, value in zip(items, outcome.value, strict=True)}
        return done

    def _run_one(self, job: Job) -> Outcome:
        tx = Transaction(self._connection, self._now)
        outcome = self._outcome(job.work, tx)
        if outcome.error is not None and tx.touched:
            if not self._alone:
                raise SpoiledError
            self.undone = True
        return outcome

    def _run_behind_savepoint(self, job: Job) -> Outcome:
        savepoint = self._connection.begin_nested()
        outcome = self._outcome(job.work, Transaction(self._connection, self._now))
        if outcome.error is None:
            savepoint.commit()
        else:
            savepoint.rollback()
        return outcome

    def _outcome(self, work: Callable[[Transaction], Any], tx: Transaction) -> Outcome:
        try:
            value = work(tx)
            tx.check()
        except BaseException as error:  # noqa: BLE001 - it goes to the unit's caller
            cause = tx.doomed_by or error
            if outage(cause) is not None:
                raise cause from None
            return Outcome(error=error)
        self._events += tx.events
        return Outcome(value=value)


def adopt_high_water(executor: Executor, clock: Clock) -> datetime | None:
    """Read the persisted mark and raise a guarded clock to it (security rule 22)."""
    mark = high_water(executor)
    if mark is not None and isinstance(clock, GuardedClock):
        clock.raise_to(mark)
    return mark
