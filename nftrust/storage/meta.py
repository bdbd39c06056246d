"""Small facts about the database itself; among them the clock's high-water mark (security rule 22)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from nftrust.storage.tables import from_micros, meta, to_micros
from nftrust.storage.transaction import Executor, Transaction

HIGH_WATER = "clock.high_water"


def get_meta(executor: Executor, key: str) -> str | None:
    """The value under ``key``, or None."""
    value: str | None = executor.execute(select(meta.c.value).where(meta.c.key == key)).scalar_one_or_none()
    return value


def set_meta(tx: Transaction, key: str, value: str) -> None:
    """Write or replace the value under ``key``."""
    statement = tx.insert(meta).values(key=key, value=value)
    tx.execute(statement.on_conflict_do_update(index_elements=[meta.c.key], set_={"value": value}))


def high_water(executor: Executor) -> datetime | None:
    """The latest time that any process of this database has committed, or None before the first."""
    value = get_meta(executor, HIGH_WATER)
    return None if value is None else from_micros(int(value))


def set_high_water(tx: Transaction, mark: datetime) -> None:
    """Write the mark. The store does so by itself; by hand it acknowledges a clock set right."""
    set_meta(tx, HIGH_WATER, str(to_micros(mark)))
