"""Tables that every role's database has, and column types that roles share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, SmallInteger, String, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from nftrust.audit import GENESIS_HASH

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

#: So that migrations can name every constraint on both databases.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def to_micros(value: datetime) -> int:
    """Microseconds since 1970; ``value`` must be aware."""
    return (value - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """The inverse of :func:`to_micros`, in UTC."""
    return _EPOCH + value * _MICROSECOND


class UtcMicros(TypeDecorator[datetime]):
    """An aware datetime, stored as integer microseconds since 1970: exact and ordered on every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


def new_metadata() -> MetaData:
    """A MetaData for a role's own tables, with our constraint names."""
    return MetaData(naming_convention=NAMING)


SHARED = new_metadata()

audit_event = Table(
    "audit_event",
    SHARED,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcMicros, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

#: One row: the end of the chain. It is also the lock that orders writing batches on PostgreSQL.
audit_head = Table(
    "audit_head",
    SHARED,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
AUDIT_HEAD_ID = 1

idempotency = Table(
    "idempotency",
    SHARED,
    Column("scope", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("create_time", UtcMicros, nullable=False, index=True),
)

meta = Table(
    "meta",
    SHARED,
    Column("key", String(255), primary_key=True),
    Column("value", Text, nullable=False),
)


def create_shared_tables(operations: Any) -> None:
    """For a role's first revision: the shared tables and the head of an empty audit chain.

    >>> from alembic import op
    >>> def upgrade(): create_shared_tables(op)
    """
    connection = operations.get_bind()
    SHARED.create_all(connection, checkfirst=False)
    connection.execute(audit_head.insert().values(id=AUDIT_HEAD_ID, sequence=0, hash=GENESIS_HASH))
