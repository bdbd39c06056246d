"""Several processes on one database: kill -9, two writers, three migrators."""

from __future__ import annotations

from pathlib import Path

import pytest

from nftrust.config import StoreConfig
from nftrust.storage import audit_log
from nftrust.storage.migrate import upgrade, verify
from tests.contract.storage_kit import ROLE, numbers, run_python
from tests.contract.test_storage_store import opened

pytestmark = pytest.mark.process

#: Writes numbers from argv[2] on, argv[3] at a time, until it is killed, and says which are acknowledged.
WRITER = """
    import asyncio, itertools, sys
    from nftrust.clock import GuardedClock, SystemClock
    from nftrust.config import StoreConfig
    from nftrust.storage import Store
    from tests.contract.storage_kit import put

    async def main(url, first, width):
        store = Store.open(StoreConfig(url=url), GuardedClock(SystemClock()))
        async def worker(offset):
            for number in itertools.count(first + offset, width):
                print(await store.write(put(number, size=1200)), flush=True)
        await asyncio.gather(*(worker(offset) for offset in range(width)))

    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""
MIGRATOR = """
    import sys
    from nftrust.config import StoreConfig
    from nftrust.storage.migrate import upgrade
    sys.stdin.readline()
    upgrade(StoreConfig(url=sys.argv[1]), sys.argv[2])
"""


async def test_kill_9_loses_nothing_acknowledged(database: StoreConfig, role: Path) -> None:
    """Two processes write at once into one chain, both are killed, and it all goes on behind the kill."""
    acknowledged: set[int] = set()
    for first in (0, 10_000_000):
        starts = (first, first + 5_000_000)
        processes = [run_python(WRITER, database.url, str(start), "16", path=role) for start in starts]
        # Each is still writing when the other's lines are read.
        for process in processes:
            assert process.stdout is not None
            acknowledged |= {int(process.stdout.readline()) for _ in range(100)}
        for process in processes:
            process.kill()
        for process in processes:
            rest, _ = process.communicate(timeout=60)
            acknowledged |= {int(line) for line in rest.split("\n")[:-1]}
        with opened(database) as store:
            committed = await store.read(numbers)
            assert acknowledged <= set(committed)
            # Effect and audit are one: every row has its event.
            events = await store.read(lambda c: audit_log.list_events(c, limit=10**6))
            assert sorted(int(e.event.subject.removeprefix("items/")) for e in events) == committed
            assert [e.event.sequence for e in events] == list(range(1, len(events) + 1))
            assert await store.read(audit_log.verify) is None


async def test_three_migrators_at_once(empty: StoreConfig, role: Path) -> None:
    processes = [run_python(MIGRATOR, empty.url, ROLE, path=role) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0, 0, 0]
    verify(empty, ROLE)
    upgrade(empty, ROLE)
    with opened(empty) as store:
        assert await store.read(audit_log.verify) is None
