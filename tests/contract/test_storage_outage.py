"""What goes wrong under a store: every outage is typed, tells nothing of its inside, and heals by itself."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from nftrust.clock import SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction, audit_log, engine
from nftrust.storage.migrate import upgrade
from tests.contract.storage_kit import ROLE, Cluster, numbers, put
from tests.contract.test_storage_store import opened, together

BIG = 200_000


def is_outage(error: object, reason: Reason = Reason.STORAGE_UNAVAILABLE) -> bool:
    assert isinstance(error, NftrustError)
    assert error.reason is reason
    assert error.retry_after
    assert str(error) == reason.meaning
    return True


async def refused(store: Store, number: int, size: int = 10, reason: Reason = Reason.STORAGE_UNAVAILABLE) -> bool:
    with pytest.raises(NftrustError) as caught:
        await store.write(put(number, size=size))
    return is_outage(caught.value, reason)


def limit_pages(more: int) -> object:
    def work(tx: Transaction) -> None:
        pages = tx.execute(text("PRAGMA page_count")).scalar_one()
        tx.execute(text(f"PRAGMA max_page_count={pages + more}"))

    return work


async def test_a_full_database_refuses_what_does_not_fit_and_heals(sqlite_database: StoreConfig) -> None:
    with opened(sqlite_database) as store:
        await store.write(put(1))
        await store.write(limit_pages(4))
        got = await together(store, put(2), put(3, size=BIG), put(4))
        assert [got[0], got[2]] == [2, 4]
        assert is_outage(got[1], Reason.STORAGE_FULL)
        assert await refused(store, 5, BIG, Reason.STORAGE_FULL)
        assert not store.writable
        assert await store.read(numbers) == [1, 2, 4]
        await store.write(limit_pages(1000))
        assert await store.write(put(5, size=BIG)) == 5
        assert await store.read(audit_log.verify) is None
        assert (await store.read(audit_log.head)).sequence == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_heals_without_restart(small_disk: Path, role: Path) -> None:
    config = StoreConfig(url=f"sqlite:///{small_disk}/role.db")
    upgrade(config, ROLE)
    with opened(config) as store:
        await store.write(put(1))
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="space"):
            filler.write_bytes(b"f" * (2 << 20))
        assert await refused(store, 2, BIG, Reason.STORAGE_FULL)
        assert not store.writable
        got = await together(store, put(2, size=BIG), put(3, size=BIG))
        assert all(is_outage(error, Reason.STORAGE_FULL) for error in got)
        assert await store.read(numbers) == [1]
        filler.unlink()
        assert await store.write(put(2, size=BIG)) == 2
        assert store.writable
        assert await store.read(audit_log.verify) is None


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


async def test_nothing_is_started_on_a_disk_that_is_read_only(small_disk: Path, role: Path) -> None:
    config = StoreConfig(url=f"sqlite:///{small_disk}/role.db")
    upgrade(config, ROLE)
    with opened(config) as store:
        await store.write(put(1))
    remount(small_disk, "ro")
    with pytest.raises(NftrustError) as caught, opened(config) as store:
        await store.write(put(2))
    assert is_outage(caught.value)  # SQLite cannot open what its journal cannot be written for
    remount(small_disk, "rw")
    with opened(config) as store:
        assert await store.write(put(2)) == 2
        assert await store.read(numbers) == [1, 2]


async def test_a_write_that_is_not_allowed_says_so(sqlite_database: StoreConfig) -> None:
    with opened(sqlite_database) as store:
        await store.write(put(1))
        store._write_engine.dispose()

        def forbid(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA query_only=ON")

        event.listen(store._write_engine, "connect", forbid)
        assert await refused(store, 2, reason=Reason.STORAGE_READ_ONLY)
        assert await store.usable() is False
        event.remove(store._write_engine, "connect", forbid)
        store._write_engine.dispose()
        assert await store.usable()
        assert await store.write(put(2)) == 2


async def test_a_damaged_file_says_so_and_is_replaced_without_restart(
    sqlite_database: StoreConfig, tmp_path: Path
) -> None:
    file = tmp_path / "role.db"
    with opened(sqlite_database) as store:
        await store.write(put(1, size=BIG))
    good = tmp_path / "good.db"
    good.write_bytes(file.read_bytes())
    with opened(sqlite_database) as store:
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xaa" * (len(content) - 4096)
        file.write_bytes(content)
        with pytest.raises(NftrustError) as caught:
            await store.read(numbers)
        assert is_outage(caught.value, Reason.STORAGE_CORRUPT)
        assert await store.usable() is False
        good.rename(file)
        assert await store.read(numbers) == [1]
        assert await store.write(put(2)) == 2


async def test_a_lock_held_elsewhere_is_waited_for_then_refused(
    sqlite_database: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_SECONDS", 0.1)
    other = sqlite3.connect(tmp_path / "role.db", isolation_level=None)
    with opened(sqlite_database) as store:
        other.execute("BEGIN IMMEDIATE")
        got = await together_unlocked(store)
        assert all(is_outage(error) for error in got)
        assert await store.read(numbers) == []  # readers go on
        other.execute("ROLLBACK")
        assert await store.write(put(1)) == 1
    other.close()


async def together_unlocked(store: Store) -> list[object]:
    return await asyncio.gather(*(store.write(put(n)) for n in range(3)), return_exceptions=True)


async def test_a_database_file_that_is_gone(sqlite_database: StoreConfig, tmp_path: Path) -> None:
    with opened(sqlite_database) as store:
        await store.write(put(1))
        assert await store.read(numbers) == [1]
        (tmp_path / "role.db").rename(tmp_path / "away.db")
        assert await refused(store, 2)  # not written to a file that nobody will find
        with pytest.raises(NftrustError) as caught:
            await store.read(numbers)
        assert is_outage(caught.value)
        assert not (tmp_path / "role.db").exists()  # no empty database is made in its place
        (tmp_path / "away.db").rename(tmp_path / "role.db")
        assert await store.write(put(2)) == 2
        assert await store.read(numbers) == [1, 2]


async def test_a_file_that_is_no_database(sqlite_database: StoreConfig, tmp_path: Path) -> None:
    good = tmp_path / "good.db"
    with opened(sqlite_database) as store:
        await store.write(put(1))
    file = tmp_path / "role.db"
    file.rename(good)
    file.write_bytes(b"garbage" * 1000)
    with pytest.raises(NftrustError) as caught:
        Store.open(sqlite_database, SystemClock())
    assert is_outage(caught.value, Reason.STORAGE_CORRUPT)
    good.rename(file)
    with opened(sqlite_database) as store:
        assert await store.read(numbers) == [1]


def test_the_file_is_its_owners_alone(sqlite_database: StoreConfig, tmp_path: Path) -> None:
    with opened(sqlite_database):
        for file in tmp_path.glob("role.db*"):
            assert file.stat().st_mode & 0o077 == 0, file


def test_every_write_reaches_the_disk(sqlite_database: StoreConfig) -> None:
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    async def ask(store: Store) -> dict[str, object]:
        return await store.write(lambda tx: {name: tx.execute(text(f"PRAGMA {name}")).scalar_one() for name in pragmas})

    with opened(sqlite_database) as store:
        assert asyncio.run(ask(store)) == pragmas


async def test_a_lost_connection_is_made_anew_without_the_caller_noticing(postgresql: Cluster, role: Path) -> None:
    config = postgresql.new_database()
    upgrade(config, ROLE)
    with opened(config) as store, opened(config) as other:
        await store.write(put(1))
        assert await store.read(numbers) == [1]
        kill = text(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert await other.write(lambda tx: tx.execute(kill).scalar_one()) >= 2
        assert await store.write(put(2)) == 2
        assert await store.read(numbers) == [1, 2]


async def test_a_connection_lost_inside_a_batch(postgresql: Cluster, role: Path) -> None:
    config = postgresql.new_database()
    upgrade(config, ROLE)
    runs = []

    def dies_once(tx: Transaction) -> int:
        runs.append(1)
        put(2)(tx)
        if len(runs) == 1:
            tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return 2

    with opened(config) as store:
        assert await together(store, put(1), dies_once, put(3)) == [1, 2, 3]
        assert await store.read(numbers) == [1, 2, 3]
        assert await store.read(audit_log.verify) is None


@pytest.mark.process
async def test_a_stopped_server_heals(postgresql: Cluster, role: Path) -> None:
    config = postgresql.new_database()
    upgrade(config, ROLE)
    with opened(config) as store:
        await store.write(put(1))
        postgresql.stop()
        try:
            assert await refused(store, 2)
            got = await asyncio.gather(*(store.write(put(n)) for n in range(2, 20)), return_exceptions=True)
            assert all(is_outage(error) for error in got)
            with pytest.raises(NftrustError) as caught:
                await store.read(numbers)
            assert is_outage(caught.value)
        finally:
            postgresql.start()
        assert await store.write(put(2)) == 2
        assert await store.read(numbers) == [1, 2]


async def test_a_password_file_is_used_and_must_be_private(postgresql: Cluster, role: Path, tmp_path: Path) -> None:
    config = postgresql.new_database()
    upgrade(config, ROLE)
    secret = tmp_path / "password"
    secret.write_text("unused by trust authentication\n")
    guarded = StoreConfig(url=config.url, password_file=secret)
    secret.chmod(0o644)
    with pytest.raises(NftrustError) as caught:
        Store.open(guarded, SystemClock())
    assert caught.value.reason is Reason.CONFIG_INVALID
    secret.chmod(0o600)
    with opened(guarded) as store:
        assert await store.write(put(1)) == 1
