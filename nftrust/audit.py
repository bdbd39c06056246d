"""The hash-chained audit log: pure functions over events, no database.

Each event's hash is SHA-256 over a domain tag, the hash before it and the
event's canonical bytes, so that a changed, missing, added or reordered event
breaks the chain. Truncation at the end is seen only by who keeps a copy of the
head elsewhere (security rule 24).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

HASH_BYTES = 32
#: The hash before the first event.
GENESIS_HASH = bytes(HASH_BYTES)

_DOMAIN = b"nftrust-audit-v1\0"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it is hashed and stored; ``sequence`` counts from 1 without gaps."""

    sequence: int
    #: Aware, UTC, microseconds.
    time: datetime
    actor: str
    action: str
    subject: str
    #: A JSON object; see :func:`detail_json`.
    detail: str


class ChainedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event with its place in the chain."""

    event: AuditEvent
    hash: bytes


class ChainHead(msgspec.Struct, frozen=True, kw_only=True):
    """Where a chain stands: the last sequence and its hash. The default is the empty chain."""

    sequence: int = 0
    hash: bytes = GENESIS_HASH


def detail_json(detail: Mapping[str, Any]) -> str:
    """``detail`` as one ASCII line of JSON with sorted keys, so that equal details have equal bytes."""
    return json.dumps(detail, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def clean_text(text: str) -> str:
    """``text`` with what no database or terminal takes (controls, lone surrogates) written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def canonical_bytes(event: AuditEvent) -> bytes:
    """The event for hashing: sequence and microseconds since 1970 as 64-bit big-endian integers, then each
    text as UTF-8 behind its 32-bit length, so that no two events share bytes."""
    texts = (event.actor, event.action, event.subject, event.detail)
    parts = [struct.pack(">qq", event.sequence, (event.time - _EPOCH) // _MICROSECOND)]
    for text in texts:
        raw = text.encode("utf-8")
        parts += (struct.pack(">I", len(raw)), raw)
    return b"".join(parts)


def chain_hash(previous: bytes, event: AuditEvent) -> bytes:
    """The 32-byte hash of ``event`` behind ``previous``."""
    return hashlib.sha256(_DOMAIN + previous + canonical_bytes(event)).digest()


def verify_chain(events: Iterable[ChainedEvent], start: ChainHead | None = None) -> int | None:
    """The first sequence at which the chain that follows ``start`` is broken, or None if all of it holds."""
    head = start or ChainHead()
    for chained in events:
        expected = head.sequence + 1
        if chained.event.sequence != expected:
            return expected
        if not hmac.compare_digest(chain_hash(head.hash, chained.event), chained.hash):
            return expected
        head = ChainHead(sequence=expected, hash=chained.hash)
    return None
