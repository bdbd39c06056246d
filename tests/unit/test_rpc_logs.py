"""Logs are JSON lines and hold no text of exceptions."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftrust import logs
from nftrust.config import LogConfig


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raising, hook = root.handlers[:], root.level, logging.raiseExceptions, threading.excepthook
    stream = io.StringIO()
    logs.configure(LogConfig(level="info"), stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], logging.raiseExceptions, threading.excepthook = handlers, raising, hook
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_carries_extra_fields_and_the_correlation_id(written: io.StringIO) -> None:
    token = logs.correlation_id.set("id-1")
    logging.getLogger("a.b").info("one %s", "two\nthree", extra={"count": 3, "path": Path("/x")})
    logs.correlation_id.reset(token)
    logging.getLogger("a.b").debug("not at this level")
    (line,) = lines(written)
    assert line["time"].endswith("+00:00")
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "a.b",
        "message": "one two\nthree",
        "correlation_id": "id-1",
        "count": 3,
        "path": "/x",
    }


def test_exceptions_leave_types_and_places_only(written: io.StringIO) -> None:
    try:
        try:
            raise KeyError("secret one")
        except KeyError as inner:
            raise ValueError("secret two") from inner
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(written)
    assert line["error"]["types"] == ["builtins.ValueError", "builtins.KeyError"]
    assert line["error"]["at"][0].startswith("test_rpc_logs.py:")
    assert "secret" not in written.getvalue()


def test_uncaught_exceptions_of_threads_are_logged(written: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError("secret")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines(written)
    assert (line["level"], line["message"]) == ("critical", "uncaught exception")
    assert "secret" not in written.getvalue()


def test_warnings_are_lines_too(written: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [line["logger"] for line in lines(written)] == ["py.warnings"]
