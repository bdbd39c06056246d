"""Many registered NFs in a role's database without as many enrolments: what a real one left there, copied.

Every row of every table is copied so often, with identities, key hashes and
sequence numbers of its own, times spread over the last month, and an audit
chain that holds. No table is named here but those of the chain: what an
enrolment leaves behind tomorrow is copied too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Row, Table, func, select

from nftrust.config import StoreConfig
from nftrust.storage import audit_log
from nftrust.storage.engine import Access, Database
from nftrust.storage.tables import SHARED, audit_event, audit_head
from nftrust.storage.transaction import PendingEvent

#: The audit chain is made anew, not copied.
_CHAIN = {audit_event.name, audit_head.name}
_CHUNK = 2500
_SPREAD = timedelta(days=30)
_HASH_BYTES = 32
#: Instance ids, request ids, serial numbers, references.
_IDENTITY = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{20,})")
#: Longer texts are messages, stored as they are.
_LONGEST_NAME = 512
#: Odd, so that the first 32 bits of an identity are different in each copy; large, so that their order is no order.
_STRIDE, _MASK = 2654435761, 0xFFFFFFFF

#: A value of the copy of each number.
Value = Callable[[int], Any]


def seed(config: StoreConfig, role: str, copies: int, fqdns: Sequence[str] = ()) -> None:
    """Copy all that is there ``copies`` times, while nobody else has the database; its NFs have these FQDNs."""
    engine = Database.parse(config).engine(Access.WRITE)
    tables = [*import_module(f"{role}.tables").METADATA.sorted_tables, *SHARED.sorted_tables]
    try:
        with _undisturbed(engine) as connection:
            inserts = [_Insert(connection, table, fqdns) for table in tables if table.name not in _CHAIN]
            events = [_event(row, fqdns) for row in connection.execute(select(audit_event)).all()]
            for first in range(1, copies + 1, _CHUNK):
                numbers = range(first, min(first + _CHUNK, copies + 1))
                for insert in inserts:
                    insert.copies(connection, numbers)
                pending = [PendingEvent(*(value(number) for value in event)) for number in numbers for event in events]
                audit_log.append(connection, audit_log.lock_head(connection), pending)
    finally:
        engine.dispose()


@contextmanager
def _undisturbed(engine: Engine) -> Iterator[Connection]:
    """One transaction; on SQLite a file without journal, in memory until it is written, for as long as it takes."""
    fast = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        if fast:
            for setting in ("journal_mode=DELETE", "journal_mode=OFF", "synchronous=OFF", "cache_size=-400000"):
                raw.execute(f"PRAGMA {setting}").fetchall()
        with connection.begin():
            yield connection
        if fast:
            raw.execute("PRAGMA journal_mode=WAL").fetchall()


class _Insert:
    """One table's rows, ready to be copied."""

    def __init__(self, connection: Connection, table: Table, fqdns: Sequence[str]) -> None:
        dialect = connection.dialect
        names = [column.name for column in table.columns]
        self._rows = [_values(table, row, dialect, fqdns) for row in connection.execute(select(table)).all()]
        self._last = 0
        if self._rows and "sequence" in names:
            self._last = connection.execute(select(func.max(table.c.sequence))).scalar_one()
            place = names.index("sequence")
            for row in self._rows:
                row[place] = self._next
        # What has no identity of its own belongs to the role and not to its NFs: a CRL, a CA.
        keys = [place for place, column in enumerate(table.columns) if column.primary_key]
        self._rows = [row for row in self._rows if any(row[place](1) != row[place](2) for place in keys)]
        quote = dialect.identifier_preparer.quote
        marks = ", ".join(["?" if dialect.paramstyle == "qmark" else "%s"] * len(names))
        self._statement = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, names))}) VALUES ({marks})"

    def copies(self, connection: Connection, numbers: range) -> None:
        if self._rows:
            made = [tuple(value(number) for value in row) for number in numbers for row in self._rows]
            connection.exec_driver_sql(self._statement, made)

    def _next(self, number: int) -> int:
        self._last += 1
        return self._last


def _values(table: Table, row: Row[Any], dialect: Dialect, fqdns: Sequence[str]) -> list[Value]:
    """The values of a row as the driver takes them."""
    found = []
    for column, value in zip(table.columns, row, strict=True):
        convert = column.type.dialect_impl(dialect).bind_processor(dialect)
        # Drivers take bytes as they are.
        raw = value if convert is None or value is None or isinstance(value, bytes) else convert(value)
        found.append(_micros(raw) if isinstance(value, datetime) else _value(raw, fqdns))
    return found


def _event(row: Row[Any], fqdns: Sequence[str]) -> list[Value]:
    values = row._asdict()
    return [
        _time(values[name]) if name == "time" else _value(values[name], fqdns)
        for name in PendingEvent.__struct_fields__
    ]


def _time(end: datetime) -> Value:
    return lambda number: end - _SPREAD * (_shifted(0, number) / _MASK)


def _micros(end: int) -> Value:
    spread = _SPREAD // timedelta(microseconds=1)
    return lambda number: end - _shifted(0, number) * spread // _MASK


def _value(value: Any, fqdns: Sequence[str]) -> Value:
    """An identity or a hash: its own in each copy, and the same in all tables; all else as it is."""
    if isinstance(value, bytes) and len(value) == _HASH_BYTES:
        start, rest = int.from_bytes(value[:4], "big"), value[4:]
        return lambda number: _shifted(start, number).to_bytes(4, "big") + rest
    if isinstance(value, str) and len(value) <= _LONGEST_NAME:
        for fqdn in fqdns:
            label, _, rest_of = fqdn.partition(".")
            value = value.replace(fqdn, f"{label}n\0.{rest_of}")
        first, *parts = _IDENTITY.split(value)
        starts = [(int(name[:8], 16), name[8:] + text) for name, text in zip(parts[::2], parts[1::2], strict=True)]
        if starts or "\0" in first:
            return lambda number: _named(first, starts, number)
    return lambda number: value


def _named(first: str, starts: list[tuple[int, str]], number: int) -> str:
    text = first + "".join([f"{_shifted(start, number):08x}{rest}" for start, rest in starts])
    return text.replace("\0", str(number)) if "\0" in text else text


def _shifted(start: int, number: int) -> int:
    return (start + number * _STRIDE) & _MASK
