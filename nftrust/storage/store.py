"""The store: what roles see of their database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from nftrust.clock import Clock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import audit_log
from nftrust.storage.engine import RETRY_AFTER_SECONDS, Access, Database, ReplacedError, discard, must_reconnect, outage
from nftrust.storage.group import GroupThread, Job, Outcome, tell
from nftrust.storage.meta import set_high_water
from nftrust.storage.transaction import Transaction
from nftrust.storage.writer import Alike, CommitObserver, GroupWriter, Item, Kind, adopt_high_water, unobserved

T = TypeVar("T")

READERS = 4


class Store:
    """A role's database: serial group-committed writes, and reads on a few threads.

    Writing batches are serial over all processes of a database (BEGIN
    IMMEDIATE on SQLite, the locked audit head on PostgreSQL), so that a unit of
    work may read, decide and write without a race. Every outage becomes
    NftrustError(STORAGE_UNAVAILABLE) and heals by itself.
    """

    def __init__(self, database: Database, clock: Clock, readers: int, observe: CommitObserver = unobserved) -> None:
        self._database = database
        self._write_engine = database.engine(Access.WRITE)
        self._read_engine = database.engine(Access.READ, pool_size=readers + 1)
        self._writer = GroupWriter(database, self._write_engine, clock, observe)
        self._look_ups = GroupThread("nftrust-look-up", self._look_up_all)
        self._readers = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="nftrust-read")
        self._closed = False

    @classmethod
    def open(
        cls, config: StoreConfig, clock: Clock, *, readers: int = READERS, observe: CommitObserver = unobserved
    ) -> Store:
        """Open a migrated database and raise a GuardedClock to its high-water mark.

        Raises NftrustError(CONFIG_INVALID, STORAGE_UNAVAILABLE).
        """
        store = cls(Database.parse(config), clock, readers, observe)
        try:
            store._read(lambda connection: adopt_high_water(connection, clock))
        except BaseException:
            store.close()
            raise
        return store

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in a transaction; its result comes after the commit, what it raises undoes it.

        ``work`` runs on the writing thread, possibly more than once: it must be
        quick, call nobody, and have no effect but through its transaction. A
        caller who is cancelled does not know whether the work was done.

        Raises NftrustError(STORAGE_UNAVAILABLE, CLOCK_UNTRUSTED, SHUTTING_DOWN), what ``work`` raises, and
        sqlalchemy.exc.IntegrityError where a constraint refuses the work.
        """
        result: T = await self._writer.submit(work)
        return result

    async def write_alike(self, work: Kind[Item, T], item: Item) -> T:
        """As :meth:`write`, for what comes often: the items that wait together are handed to ``work`` in one.

        ``work`` returns a result for each item, in order, refusals among them:
        what it raises makes the items go one by one.
        """
        result: T = await self._writer.submit(Alike(work, item))
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a read-only snapshot of what is committed. It fetches all that it needs.

        Raises NftrustError(STORAGE_UNAVAILABLE, SHUTTING_DOWN) and what ``work`` raises.
        """
        if self._closed:
            raise NftrustError(Reason.SHUTTING_DOWN, retry_after=RETRY_AFTER_SECONDS)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """As :meth:`read`, for the few rows of a request: those that wait together share a thread and a snapshot."""
        result: T = await self._look_ups.submit(work)
        return result

    @property
    def writable(self) -> bool:
        """Whether the last attempt to write was not refused by the database."""
        return not self._writer.out

    async def check(self) -> None:
        """Ask the database: by a read, and by a write where the last one failed.

        Raises NftrustError(STORAGE_UNAVAILABLE, CLOCK_UNTRUSTED, SHUTTING_DOWN).
        """
        await self.read(audit_log.head)
        if not self.writable:
            await self.write(lambda tx: set_high_water(tx, tx.now))

    async def usable(self) -> bool:
        """Whether :meth:`check` has nothing to say."""
        try:
            await self.check()
        except NftrustError:
            return False
        return True

    def close(self) -> None:
        """Finish what is queued and let go of the database. Blocks; may be called twice."""
        self._closed = True
        self._writer.close()
        self._look_ups.close()
        self._readers.shutdown(wait=True)
        self._write_engine.dispose()
        self._read_engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            try:
                return self._read_once(work)
            except (DBAPIError, ReplacedError) as error:
                if not must_reconnect(error):
                    raise
            # The connection had gone stale: reading again does no harm.
            return self._read_once(work)
        except (PoolTimeoutError, ReplacedError, DBAPIError) as error:
            found = outage(error)
            if found is None:
                raise
            raise found.error() from None

    def _look_up_all(self, batch: Sequence[Job]) -> None:
        def work(connection: Connection) -> list[Outcome]:
            return [_found(job, connection) for job in batch]

        try:
            outcomes = self._read(work)
        except NftrustError as error:  # of the database, which all of them share
            outcomes = [Outcome(error=error)] * len(batch)
        except Exception as error:  # noqa: BLE001 - one of them asked what the database refuses
            if len(batch) > 1:
                for job in batch:
                    self._look_up_all([job])
                return
            outcomes = [Outcome(error=error)]
        tell(batch, outcomes)

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        with self._read_engine.connect() as connection:
            try:
                self._database.check_file(connection)
                with connection.begin():
                    return work(connection)
            except (DBAPIError, ReplacedError) as error:
                discard(connection, error)
                raise


def _found(job: Job, connection: Connection) -> Outcome:
    try:
        return Outcome(job.work(connection))
    except (DBAPIError, ReplacedError):
        raise
    except BaseException as error:  # noqa: BLE001 - it goes to the caller
        return Outcome(error=error)
