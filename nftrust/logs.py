"""Logs: one JSON object a line on standard error.

Fields: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``correlation_id`` where a call
is being served, and whatever the call site passes as ``extra``. Of an exception only its types and
the places it passed through are written, never its text: that may repeat what a caller sent, or a
secret (design, failure semantics).
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import msgspec

from nftrust.config import LogConfig

#: The id of the call being served; every log line and every error of that call carries it.
correlation_id: ContextVar[str] = ContextVar("correlation_id", default="")

MAX_FRAMES = 12

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identifier := correlation_id.get():
            line["correlation_id"] = identifier
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD and key not in line})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe_exception(record.exc_info[1])
        return msgspec.json.encode(line, enc_hook=str).decode("utf-8")


def describe_exception(error: BaseException) -> dict[str, Any]:
    """Types of the exception and its causes, and the last places it passed through; no texts."""
    types: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(types) < MAX_FRAMES:
        types.append(f"{type(cause).__module__}.{type(cause).__qualname__}")
        cause = cause.__cause__ or cause.__context__
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return {"types": types, "at": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]}


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send everything logged, warned or left uncaught in this process to ``stream`` as JSON lines.

    Called once, by the composition root; a second call replaces the first.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)  # tells at length what it found in order
    # A failed log write (full disk, closed pipe) must not print the record's values.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("nftrust").critical("uncaught exception", exc_info=(kind, error, where) if error else None)
