"""The store on real SQLite files and a real PostgreSQL: group commit, isolation, audit, idempotency."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from nftrust.clock import GuardedClock, SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction, audit_log
from nftrust.storage.idempotency import forget, recall, remember
from nftrust.storage.meta import get_meta, high_water, set_high_water, set_meta
from nftrust.storage.tables import audit_event
from tests.contract.storage_kit import FakeClock, item, numbers, parent, put


@contextmanager
def opened(config: StoreConfig, clock: Any = None) -> Iterator[Store]:
    store = Store.open(config, clock or SystemClock())
    try:
        yield store
    finally:
        store.close()


@asynccontextmanager
async def busy(store: Store) -> AsyncIterator[None]:
    """The writing thread stands inside a batch of one, so that what the block queues forms the next one."""
    entered, release = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        entered.set()
        release.wait(30)

    holding = asyncio.ensure_future(store.write(hold))
    await asyncio.to_thread(entered.wait, 30)
    try:
        yield
    finally:
        release.set()
        await holding


async def together(store: Store, *works: Callable[[Transaction], Any]) -> list[Any]:
    """The results, or errors, of ``works``, which stand in one batch (64 at most)."""
    async with busy(store):
        queued = [asyncio.ensure_future(store.write(work)) for work in works]
        await asyncio.sleep(0)
    return await asyncio.gather(*queued, return_exceptions=True)


async def test_what_queues_up_shares_a_commit(database: StoreConfig) -> None:
    with opened(database) as store:
        times = await together(store, *[lambda tx: tx.now] * 20)
        assert len(set(times)) == 1
        assert times[0].tzinfo is UTC
        assert await together(store, *[put(n) for n in range(200)]) == list(range(200))
        assert await store.read(numbers) == list(range(200))


async def test_a_bad_unit_undoes_only_itself(database: StoreConfig) -> None:
    def refuses(tx: Transaction) -> None:
        put(50)(tx)
        raise NftrustError(Reason.IAK_USED)

    def breaks(tx: Transaction) -> None:
        put(51)(tx)
        raise ValueError("broken")

    def stops(tx: Transaction) -> None:
        raise StopIteration

    with opened(database) as store:
        got = await together(store, put(1), refuses, put(2), put(1), breaks, put(3), stops, put(50))
        assert [got[0], got[2], got[5], got[7]] == [1, 2, 3, 50]
        assert isinstance(got[1], NftrustError)
        assert got[1].reason is Reason.IAK_USED
        assert isinstance(got[3], IntegrityError)
        assert isinstance(got[4], ValueError)
        assert isinstance(got[6], RuntimeError)
        assert await store.read(numbers) == [1, 2, 3, 50]
        events = await store.read(audit_log.list_events)
        assert [e.event.subject for e in events] == [f"items/{n}" for n in (1, 2, 3, 50)]
        with pytest.raises(ValueError, match="broken"):  # alone in its batch, too
            await store.write(breaks)
        assert await store.read(numbers) == [1, 2, 3, 50]
        assert await store.read(audit_log.verify) is None


async def test_a_refusal_before_any_write_costs_its_batch_nothing(database: StoreConfig) -> None:
    """Who only reads and refuses must not make the others run twice: a flood of refusals would double the work."""
    runs: list[int] = []

    def refuses(tx: Transaction) -> None:
        numbers(tx)
        raise NftrustError(Reason.IAK_USED)

    def counts(tx: Transaction) -> int:
        runs.append(1)
        return put(1)(tx)

    with opened(database) as store:
        refused, number = await together(store, refuses, counts)
        assert (refused.reason, number, len(runs)) == (Reason.IAK_USED, 1, 1)
        assert await store.read(numbers) == [1]


async def test_units_of_a_kind_that_wait_are_done_in_one(database: StoreConfig) -> None:
    calls: list[list[int]] = []

    def put_all(tx: Transaction, items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        results = [put(number)(tx) for number in items]
        if 13 in items:
            raise NftrustError(Reason.IAK_USED)
        return results

    with opened(database) as store:
        async with busy(store):
            queued = [asyncio.ensure_future(store.write_alike(put_all, number)) for number in range(3)]
            other = asyncio.ensure_future(store.write(put(50)))
            await asyncio.sleep(0)
        assert await asyncio.gather(*queued, other) == [0, 1, 2, 50]
        assert calls == [[0, 1, 2]]
        async with busy(store):
            queued = [asyncio.ensure_future(store.write_alike(put_all, number)) for number in (12, 13, 14)]
            await asyncio.sleep(0)
        good, bad, fine = await asyncio.gather(*queued, return_exceptions=True)
        assert (good, fine) == (12, 14)
        assert isinstance(bad, NftrustError)
        assert await store.read(numbers) == [0, 1, 2, 12, 14, 50]
        assert await store.write_alike(put_all, 15) == 15


async def test_look_ups_that_wait_share_a_snapshot_and_fail_alone(database: StoreConfig) -> None:
    entered, release = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        entered.set()
        release.wait(30)

    def refuses(connection: Connection) -> None:
        raise NftrustError(Reason.IAK_USED)

    def breaks(connection: Connection) -> None:
        connection.execute(text("SELECT * FROM nowhere"))

    with opened(database) as store:
        holding = asyncio.ensure_future(store.look_up(hold))
        await asyncio.to_thread(entered.wait, 30)
        await store.write(put(1))
        works: list[Any] = [numbers, refuses, lambda connection: id(connection), lambda connection: id(connection)]
        queued = [asyncio.ensure_future(store.look_up(work)) for work in works]
        await asyncio.sleep(0)
        release.set()
        await holding
        found, refused, first, second = await asyncio.gather(*queued, return_exceptions=True)
        assert found == [1]
        assert isinstance(refused, NftrustError)
        assert first == second
        broken, good = await asyncio.gather(store.look_up(breaks), store.look_up(numbers), return_exceptions=True)
        assert isinstance(broken, DBAPIError)
        assert good == [1]
    with pytest.raises(NftrustError) as caught:
        await store.look_up(numbers)
    assert caught.value.reason is Reason.SHUTTING_DOWN


async def test_what_only_the_commit_refuses_hits_only_its_unit(database: StoreConfig) -> None:
    def orphan(tx: Transaction) -> None:
        if tx.execute(text("SELECT 1")).scalar() and is_sqlite:
            tx.execute(text("PRAGMA defer_foreign_keys=ON"))
        tx.execute(insert(item).values(id="o", number=99, parent_id="nobody"))

    is_sqlite = database.url.startswith("sqlite")
    with opened(database) as store:
        got = await together(store, put(1), orphan, put(2))
        assert [got[0], got[2]] == [1, 2]
        assert isinstance(got[1], IntegrityError)
        assert await store.read(numbers) == [1, 2]


async def test_a_swallowed_database_error_still_undoes_the_unit(database: StoreConfig) -> None:
    def swallows(tx: Transaction) -> str:
        put(5)(tx)
        try:
            put(5)(tx)
        except IntegrityError:
            return "all is well"
        raise AssertionError

    with opened(database) as store:
        with pytest.raises(IntegrityError):
            await store.write(swallows)
        got = await together(store, swallows, put(6))
        assert isinstance(got[0], IntegrityError)
        assert await store.read(numbers) == [6]


async def test_conflicts_can_be_expected(database: StoreConfig) -> None:
    def claim(tx: Transaction) -> int:
        statement = tx.insert(parent).values(id="p").on_conflict_do_nothing()
        return tx.execute(statement).rowcount

    with opened(database) as store:
        assert await together(store, claim, claim) == [1, 0]


async def test_work_of_a_caller_who_has_gone_is_not_begun(database: StoreConfig) -> None:
    with opened(database) as store:
        async with busy(store):
            gone = asyncio.ensure_future(store.write(put(1)))
            await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        assert await store.write(put(2)) == 2
        assert await store.read(numbers) == [2]


async def test_close_finishes_what_is_queued_and_refuses_what_comes(database: StoreConfig) -> None:
    store = Store.open(database, SystemClock())
    queued = [asyncio.ensure_future(store.write(put(n))) for n in range(10)]
    await asyncio.sleep(0)
    await asyncio.to_thread(store.close)
    assert await asyncio.gather(*queued) == list(range(10))
    store.close()
    for attempt in (store.write(put(11)), store.read(numbers)):
        with pytest.raises(NftrustError) as refused:
            await attempt
        assert refused.value.reason is Reason.SHUTTING_DOWN
    with opened(database) as again:
        assert await again.read(numbers) == list(range(10))


async def test_reads_cannot_write_and_see_one_snapshot(database: StoreConfig) -> None:
    with opened(database) as store:
        await store.write(put(1))
        with pytest.raises((DBAPIError, NftrustError)):
            await store.read(lambda c: c.execute(insert(item).values(id="r", number=7)))
        loop = asyncio.get_running_loop()

        def twice(connection: Connection) -> tuple[list[int], list[int]]:
            before = numbers(connection)
            asyncio.run_coroutine_threadsafe(store.write(put(2)), loop).result(30)
            return before, numbers(connection)

        assert await store.read(twice) == ([1], [1])
        assert await store.read(numbers) == [1, 2]


async def test_times_are_exact_and_utc(database: StoreConfig) -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 123457, tzinfo=UTC)
    clock = FakeClock()
    clock.wall = moment.astimezone(tz=None)
    with opened(database, clock) as store:
        await store.write(lambda tx: tx.audit(actor="a", action="b", subject="c\0\n", detail={"k": "\0"}))
        (chained,) = await store.read(audit_log.list_events)
        assert chained.event.time == moment
        assert chained.event.time.tzinfo is UTC
        assert chained.event.subject == "c\\x00\\n"


async def test_the_clocks_high_water_mark_survives(database: StoreConfig) -> None:
    clock = FakeClock()
    start = clock.now()
    with opened(database, GuardedClock(clock)) as store:
        await store.write(put(1))
        clock.advance(0.5)
        await store.write(put(2))
        assert await store.read(high_water) == start  # at most once a second
        clock.advance(3600)
        await store.write(put(3))
        assert await store.read(high_water) == start + timedelta(seconds=3600.5)
    clock = FakeClock()
    guarded = GuardedClock(clock)
    with opened(database, guarded) as store:
        with pytest.raises(NftrustError) as refused:
            await store.write(put(4))
        assert refused.value.reason is Reason.CLOCK_UNTRUSTED
        with pytest.raises(NftrustError):
            guarded.now()
        clock.advance(3600)
    with opened(database, FakeClock()) as store:  # acknowledged by hand, with an unguarded clock
        await store.write(lambda tx: set_high_water(tx, start))
    with opened(database, GuardedClock(FakeClock())) as store:
        assert await store.write(put(4)) == 4


async def test_a_mark_set_by_another_process_is_taken_over(database: StoreConfig) -> None:
    clock = FakeClock()
    with opened(database, GuardedClock(clock)) as store, opened(database, FakeClock()) as other:
        await store.write(put(1))
        ahead = clock.now() + timedelta(minutes=2)
        await other.write(lambda tx: set_high_water(tx, ahead))
        clock.advance(2)
        assert await store.write(lambda tx: tx.now) == ahead


async def test_meta(database: StoreConfig) -> None:
    with opened(database) as store:
        assert await store.read(lambda c: get_meta(c, "k")) is None
        await store.write(lambda tx: set_meta(tx, "k", "1"))
        await store.write(lambda tx: set_meta(tx, "k", "2"))
        assert await store.read(lambda c: get_meta(c, "k")) == "2"


async def test_idempotency(database: StoreConfig) -> None:
    one, other = b"1" * 32, b"2" * 32
    clock = FakeClock()

    def answer(key: str, request: bytes) -> Callable[[Transaction], bytes]:
        def work(tx: Transaction) -> bytes:
            stored = recall(tx, "credential", key, request)
            if stored is None:
                stored = f"answer {len(tx.execute(select(item.c.id)).all())}".encode()
                put(len(tx.execute(select(item.c.id)).all()))(tx)
                remember(tx, "credential", key, request, stored)
            return stored

        return work

    with opened(database, clock) as store:
        got = await together(store, answer("a", one), answer("a", one), answer("a", other), answer("b", other))
        assert got[:2] == [b"answer 0"] * 2
        assert isinstance(got[2], NftrustError)
        assert got[2].reason is Reason.REQUEST_ID_REUSED
        assert got[3] == b"answer 1"
        assert await store.read(lambda c: recall(c, "credential", "a", one)) == b"answer 0"
        assert await store.read(lambda c: recall(c, "stranger", "a", other)) is None
        clock.advance(60)
        await store.write(answer("c", one))
        assert await store.write(lambda tx: forget(tx, tx.now - timedelta(seconds=30))) == 2
        assert await store.read(lambda c: recall(c, "credential", "a", one)) is None
        assert await store.read(lambda c: recall(c, "credential", "c", one)) == b"answer 2"


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit_event SET time = time + 1 WHERE sequence = 3", 3),
        ("UPDATE audit_event SET actor = 'x' WHERE sequence = 3", 3),
        ("UPDATE audit_event SET action = 'x' WHERE sequence = 3", 3),
        ("UPDATE audit_event SET subject = 'x' WHERE sequence = 3", 3),
        ("UPDATE audit_event SET detail = '{}' WHERE sequence = 3", 3),
        ("UPDATE audit_event SET time = 9000000000000000000 WHERE sequence = 3", 3),
        ("UPDATE audit_event SET sequence = 9 WHERE sequence = 3", 3),
        ("UPDATE audit_event SET sequence = -1 WHERE sequence = 1", 1),
        ("DELETE FROM audit_event WHERE sequence = 3", 3),
        ("DELETE FROM audit_event WHERE sequence = 5", 5),
        ("DELETE FROM audit_event", 1),
        ("UPDATE audit_head SET sequence = 4", 5),
        ("UPDATE audit_head SET sequence = 6", 6),
    ],
)
async def test_tampering_with_the_log_is_found(database: StoreConfig, statement: str, broken: int) -> None:
    with opened(database) as store:
        await together(store, *[put(n) for n in range(5)])
        assert await store.read(audit_log.verify) is None
        await store.write(lambda tx: tx.execute(text(statement)).rowcount)
        assert await store.read(audit_log.verify) == broken


async def test_tampering_with_hashes_is_found(database: StoreConfig) -> None:
    with opened(database) as store:
        await together(store, *[put(n) for n in range(5)])
        change = update(audit_event).where(audit_event.c.sequence == 3).values(hash=bytes(32))
        await store.write(lambda tx: tx.execute(change).rowcount)
        assert await store.read(audit_log.verify) == 3


@pytest.mark.parametrize("column", ["time", "actor", "hash", "detail"])
async def test_values_of_another_type_are_found(sqlite_database: StoreConfig, column: str) -> None:
    wrong = "'text'" if column in ("time", "hash") else "x'00'"
    with opened(sqlite_database) as store:
        await together(store, *[put(n) for n in range(5)])
        statement = text(f"UPDATE audit_event SET {column} = {wrong} WHERE sequence = 2")
        await store.write(lambda tx: tx.execute(statement).rowcount)
        assert await store.read(audit_log.verify) == 2


async def test_pages_of_the_log(database: StoreConfig) -> None:
    with opened(database) as store:
        await together(store, *[put(n) for n in range(5)])
        page = await store.read(lambda c: audit_log.list_events(c, after=2, limit=2))
        assert [e.event.sequence for e in page] == [3, 4]


@pytest.mark.parametrize(
    "url",
    ["", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d", "postgresql://u:secret@h/d", "::secret::"],
)
def test_a_url_that_cannot_be_used_is_not_repeated(url: str) -> None:
    with pytest.raises(NftrustError) as refused:
        Store.open(StoreConfig(url=url), SystemClock())
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert "secret" not in str(refused.value)
