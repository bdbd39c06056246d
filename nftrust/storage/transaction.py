"""What a unit of work sees of the database while it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, CursorResult, Executable, Insert, SelectBase, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from nftrust.audit import clean_text, detail_json

#: ``rowcount`` of an INSERT, which SQLAlchemy otherwise leaves at -1 on PostgreSQL.
_OPTIONS: dict[str, Any] = {"preserve_rowcount": True}

Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class Executor(Protocol):
    """What reads need: met by :class:`Transaction` and by SQLAlchemy's ``Connection``."""

    def execute(self, statement: Executable, parameters: Parameters = None, /) -> CursorResult[Any]: ...


class PendingEvent(msgspec.Struct, frozen=True):
    """An audit event that gets its sequence and hash at the end of the batch."""

    time: datetime
    actor: str
    action: str
    subject: str
    detail: str


class Transaction:
    """One unit of work inside a batch: all of its statements take effect, or none.

    A database error dooms the unit: it cannot be caught and passed over
    (SQLite may have undone more than the statement). Where a conflict is
    expected, use :meth:`insert` with ``on_conflict_do_nothing`` and look at
    ``rowcount``.
    """

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now
        #: The database error that undoes the unit.
        self.doomed_by: DBAPIError | None = None
        #: Whether there may be something to undo.
        self.touched = False
        self.events: list[PendingEvent] = []

    @property
    def now(self) -> datetime:
        """The time of the batch, UTC; the same for every statement of the unit."""
        return self._now

    def execute(self, statement: Executable, parameters: Parameters = None, /) -> CursorResult[Any]:
        """Run a statement. Rows must be fetched before the unit of work returns."""
        self.check()
        self.touched = self.touched or not isinstance(statement, SelectBase)
        try:
            return self._connection.execute(statement, parameters, execution_options=_OPTIONS)
        except DBAPIError as error:
            self.doomed_by = error
            self.touched = True  # PostgreSQL wants the transaction undone even where nothing was written
            raise

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        return insert_for(self._connection, table)

    def audit(self, *, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Record an event in the hash chain, in the same database transaction. No secret goes into ``detail``."""
        self.events.append(
            PendingEvent(
                self._now, clean_text(actor), clean_text(action), clean_text(subject), detail_json(detail or {})
            )
        )

    def check(self) -> None:
        """Raise the error that doomed the unit, if there was one."""
        if self.doomed_by is not None:
            raise self.doomed_by


def insert_for(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The INSERT of the connection's database: both have the same ``on_conflict_…`` methods."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


__all__ = ["Executor", "Insert", "Parameters", "PendingEvent", "Transaction", "insert_for"]
