"""Answers to requests that may come again (design 6; AIP-155).

``scope`` names the authenticated credential, so that a stranger cannot squat
keys (security rule 6). Call :func:`recall`, do the work and :func:`remember`
in one ``Store.write``: batches are serial, so that no second request slips in.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import bindparam, delete, insert, select

from nftrust.errors import NftrustError, Reason
from nftrust.storage.tables import idempotency
from nftrust.storage.transaction import Executor, Transaction

# Built once: SQLAlchemy keeps a statement's cache key with the statement, and making it costs more than SQLite's work.
_RECALL = select(idempotency.c.request_sha256, idempotency.c.response).where(
    idempotency.c.scope == bindparam("scope"), idempotency.c.key == bindparam("key")
)
_REMEMBER = insert(idempotency)


def recall(executor: Executor, scope: str, key: str, request_sha256: bytes) -> bytes | None:
    """The stored response to this very request, or None if the key is new.

    Raises NftrustError(REQUEST_ID_REUSED) if the key was used for another request.
    """
    row = executor.execute(_RECALL, {"scope": scope, "key": key}).one_or_none()
    if row is None:
        return None
    if not hmac.compare_digest(bytes(row.request_sha256), request_sha256):
        raise NftrustError(Reason.REQUEST_ID_REUSED)
    return bytes(row.response)


class Answer(msgspec.Struct, frozen=True):
    """A response to keep, in ``scope`` under ``key``, for the request with this hash."""

    scope: str
    key: str
    request_sha256: bytes
    response: bytes


def remember_all(tx: Transaction, answers: Sequence[Answer]) -> None:
    """Keep responses for the same requests to come, in the effects' own transaction."""
    tx.execute(_REMEMBER, [msgspec.structs.asdict(answer) | {"create_time": tx.now} for answer in answers])


def remember(tx: Transaction, scope: str, key: str, request_sha256: bytes, response: bytes) -> None:
    """Keep one response."""
    remember_all(tx, [Answer(scope, key, request_sha256, response)])


def forget(tx: Transaction, before: datetime, limit: int = 1000) -> int:
    """Drop at most ``limit`` answers older than ``before``; the number dropped."""
    old = (
        select(idempotency.c.scope, idempotency.c.key)
        .where(idempotency.c.create_time < before)
        .order_by(idempotency.c.create_time)
        .limit(limit)
    )
    rows = tx.execute(old).all()
    for row in rows:
        tx.execute(delete(idempotency).where(idempotency.c.scope == row.scope, idempotency.c.key == row.key))
    return len(rows)
