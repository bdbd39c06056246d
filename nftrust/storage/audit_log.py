"""The audit chain in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, bindparam, insert, select, type_coerce, update

from nftrust.audit import AuditEvent, ChainedEvent, ChainHead, chain_hash, verify_chain
from nftrust.storage.tables import AUDIT_HEAD_ID, audit_event, audit_head, from_micros
from nftrust.storage.transaction import Executor, PendingEvent

_PAGE = 1000
_BEFORE_ALL = -(2**63)
_COLUMNS = (
    audit_event.c.sequence,
    # Undecoded, so that a row that somebody put nonsense into can be told from a database error.
    type_coerce(audit_event.c.time, BigInteger).label("time"),
    audit_event.c.actor,
    audit_event.c.action,
    audit_event.c.subject,
    audit_event.c.detail,
    audit_event.c.hash,
)
_HEAD = select(audit_head.c.sequence, audit_head.c.hash).where(audit_head.c.id == AUDIT_HEAD_ID)
_LOCK_HEAD = _HEAD.with_for_update()
_APPEND = insert(audit_event)
_MOVE_HEAD = (
    update(audit_head)
    .where(audit_head.c.id == AUDIT_HEAD_ID)
    .values(sequence=bindparam("sequence"), hash=bindparam("hash"))
)


def head(executor: Executor) -> ChainHead:
    """Where the chain stands."""
    row = executor.execute(_HEAD).one()
    return ChainHead(sequence=row.sequence, hash=bytes(row.hash))


def lock_head(connection: Connection) -> ChainHead:
    """Where the chain stands, held until the transaction ends (on SQLite BEGIN IMMEDIATE has done that)."""
    row = connection.execute(_LOCK_HEAD).one()
    return ChainHead(sequence=row.sequence, hash=bytes(row.hash))


def append(connection: Connection, start: ChainHead, events: Sequence[PendingEvent]) -> None:
    """Chain ``events`` behind ``start``, which must have been locked in this transaction."""
    if not events:
        return
    rows: list[dict[str, Any]] = []
    sequence, last = start.sequence, start.hash
    for pending in events:
        sequence += 1
        event = AuditEvent(
            sequence=sequence,
            time=pending.time,
            actor=pending.actor,
            action=pending.action,
            subject=pending.subject,
            detail=pending.detail,
        )
        last = chain_hash(last, event)
        rows.append({name: getattr(event, name) for name in AuditEvent.__struct_fields__} | {"hash": last})
    connection.execute(_APPEND, rows)
    connection.execute(_MOVE_HEAD, {"sequence": sequence, "hash": last})


def list_events(executor: Executor, after: int = 0, limit: int = 100) -> list[ChainedEvent]:
    """Events in order of sequence, those with a sequence above ``after``. Raises ValueError on a mangled row."""
    return [_event(row) for row in _page(executor, after, limit)]


def verify(executor: Executor) -> int | None:
    """The first broken sequence of the stored chain, its head row included, or None if all of it holds."""
    end, last, after = head(executor), ChainHead(), _BEFORE_ALL
    while page := _page(executor, after, _PAGE):
        for row in page:
            try:
                chained = _event(row)
            except ValueError:
                return last.sequence + 1
            if (broken := verify_chain([chained], last)) is not None:
                return broken
            last = ChainHead(sequence=chained.event.sequence, hash=chained.hash)
        after = last.sequence
    return None if last == end else min(last.sequence, end.sequence) + 1


def _page(executor: Executor, after: int, limit: int) -> Sequence[Row[Any]]:
    statement = select(*_COLUMNS).where(audit_event.c.sequence > after).order_by(audit_event.c.sequence).limit(limit)
    return executor.execute(statement).all()


def _event(row: Row[Any]) -> ChainedEvent:
    texts = (row.actor, row.action, row.subject, row.detail)
    if not (isinstance(row.time, int) and isinstance(row.hash, bytes) and all(isinstance(t, str) for t in texts)):
        raise ValueError("mangled audit row")
    try:
        time = from_micros(row.time)
    except OverflowError:
        raise ValueError("mangled audit row") from None
    event = AuditEvent(
        sequence=row.sequence,
        time=time,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        detail=row.detail,
    )
    return ChainedEvent(event=event, hash=row.hash)
