"""The audit chain by itself."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftrust.audit import (
    GENESIS_HASH,
    AuditEvent,
    ChainedEvent,
    ChainHead,
    canonical_bytes,
    chain_hash,
    clean_text,
    detail_json,
    verify_chain,
)

TIME = datetime(2026, 11, 24, 1, 2, 3, 456789, tzinfo=UTC)


def event(sequence: int, **changes: object) -> AuditEvent:
    fields = {"time": TIME, "actor": "urn:nftrust:oam:o", "action": "a.b", "subject": "é", "detail": "{}"} | changes
    return AuditEvent(sequence=sequence, **fields)


def chain(length: int) -> list[ChainedEvent]:
    events, last = [], GENESIS_HASH
    for sequence in range(1, length + 1):
        made = event(sequence)
        last = chain_hash(last, made)
        events.append(ChainedEvent(event=made, hash=last))
    return events


def test_the_hash_is_what_the_documentation_says() -> None:
    raw = struct.pack(">qq", 1, 1795482123456789)
    for text in ("urn:nftrust:oam:o", "a.b", "é", "{}"):
        raw += struct.pack(">I", len(text.encode())) + text.encode()
    assert canonical_bytes(event(1)) == raw
    assert chain_hash(GENESIS_HASH, event(1)) == hashlib.sha256(b"nftrust-audit-v1\0" + bytes(32) + raw).digest()


def test_a_whole_chain_holds_also_from_a_known_head() -> None:
    events = chain(5)
    assert verify_chain(events) is None
    assert verify_chain([]) is None
    assert verify_chain(events[2:], ChainHead(sequence=2, hash=events[1].hash)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 9},
        {"time": TIME + timedelta(microseconds=1)},
        {"actor": "x"},
        {"action": "x"},
        {"subject": "e"},
        {"detail": "{} "},
    ],
)
def test_every_field_is_bound(change: dict[str, object]) -> None:
    events = chain(4)
    events[2] = msgspec.structs.replace(events[2], event=msgspec.structs.replace(events[2].event, **change))
    assert verify_chain(events) == 3


def test_missing_swapped_doubled_and_rehashed_events_are_found() -> None:
    events = chain(5)
    assert verify_chain(events[1:]) == 1
    assert verify_chain([*events[:2], *events[3:]]) == 3
    assert verify_chain([events[0], events[2], events[1], *events[3:]]) == 2
    assert verify_chain([*events[:2], events[1], *events[2:]]) == 3
    assert verify_chain([*events[:2], msgspec.structs.replace(events[2], hash=bytes(32)), *events[3:]]) == 3
    forged = event(3, actor="other")
    events[2] = ChainedEvent(event=forged, hash=chain_hash(events[1].hash, forged))
    assert verify_chain(events) == 4


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=4, max_size=4), st.lists(st.text(), min_size=4, max_size=4))
def test_no_two_events_share_bytes(one: list[str], other: list[str]) -> None:
    names = ("actor", "action", "subject", "detail")
    first, second = (
        canonical_bytes(event(1, **dict(zip(names, map(clean_text, t), strict=True)))) for t in (one, other)
    )
    assert (first == second) == (list(map(clean_text, one)) == list(map(clean_text, other)))


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_clean_text_can_be_stored_anywhere(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode("utf-8")
    assert cleaned.isprintable()
    if text.isprintable():
        assert cleaned == text


def test_equal_details_have_equal_bytes() -> None:
    assert detail_json({"b": 1, "a": "é\0"}) == detail_json({"a": "é\0", "b": 1})
    assert detail_json({"a": "é\0"}).isascii()
    assert json.loads(detail_json({"a": "é\0"})) == {"a": "é\0"}
