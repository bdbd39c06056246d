"""The table of reasons, and what an error carries."""

from __future__ import annotations

import copy
import re

import grpc
import pytest

from nftrust.errors import Code, NftrustError, Reason, invalid_field

TABLE = pytest.mark.parametrize("reason", list(Reason.__members__.values()), ids=list(Reason.__members__))


def test_no_reason_is_another_by_a_second_name() -> None:
    assert len(list(Reason)) == len(Reason.__members__)


def test_meanings_differ() -> None:
    meanings = [reason.meaning for reason in Reason]
    assert sorted(set(meanings)) == sorted(meanings)


@TABLE
def test_form_of_the_name(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason.name)
    assert len(reason.name) <= 63


@TABLE
def test_code_is_one_of_grpc(reason: Reason) -> None:
    assert isinstance(reason.code, Code)
    assert isinstance(grpc.StatusCode[reason.code.name], grpc.StatusCode)


@TABLE
def test_meaning_and_remedy_are_sentences(reason: Reason) -> None:
    for text in (reason.meaning, reason.remedy):
        assert text[0].isupper() or text[0] == "`"
        assert text.endswith(".")
        assert text == text.strip()


@TABLE
def test_error_says_at_least_what_the_reason_means(reason: Reason) -> None:
    error = NftrustError(reason)
    assert (error.message, str(error), error.metadata, error.retry_after) == (reason.meaning, reason.meaning, {}, None)


def test_what_an_error_carries() -> None:
    metadata = {"field": "x"}
    error = NftrustError(Reason.INVALID_FIELD, "why", metadata=metadata, retry_after=2.5)
    metadata["field"] = "changed later"
    assert (error.message, str(error), error.metadata, error.retry_after) == ("why", "why", {"field": "x"}, 2.5)


@pytest.mark.parametrize(
    ("reason", "transient"),
    [
        (Reason.NF_UNREACHABLE, True),
        (Reason.RATE_LIMITED, True),
        (Reason.DEADLINE, True),
        (Reason.INTERNAL, True),
        (Reason.PROOF_INVALID, False),
        (Reason.IAK_USED, False),
        (Reason.INVALID_FIELD, False),
        (Reason.STALE_ETAG, False),
    ],
)
def test_transient(reason: Reason, transient: bool) -> None:
    assert NftrustError(reason).transient is transient


def test_field_error_names_its_field() -> None:
    error = invalid_field("fqdns", "too many")
    assert (error.reason, error.message) == (Reason.INVALID_FIELD, "fqdns: too many")
    assert error.metadata == {"field": "fqdns"}


def test_reasons_survive_a_copy() -> None:
    assert copy.deepcopy(Reason.KEY_TAKEN) is Reason.KEY_TAKEN
