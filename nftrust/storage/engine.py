"""Connections to the two databases that nftrust serves: SQLite and PostgreSQL.

SQLite: WAL, ``synchronous=FULL`` (NORMAL may forget an issued certificate at
power loss), foreign keys, a file that only its owner reads and that only
:meth:`Database.create` makes. PostgreSQL: psycopg 3, with time limits so that
a stopped process cannot hold the write lock for ever.
"""

from __future__ import annotations

import enum
import os
import sqlite3
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason

BUSY_TIMEOUT_SECONDS = 5.0
MIGRATE_TIMEOUT_SECONDS = 60.0
CONNECT_TIMEOUT_SECONDS = 5
WAL_LIMIT_BYTES = 64 << 20
_MAX_PASSWORD_BYTES = 4096


class Access(enum.Enum):
    """What a connection is for."""

    READ = "BEGIN"
    WRITE = "BEGIN IMMEDIATE"
    #: As WRITE, without foreign-key enforcement: Alembic's table copies would cascade.
    MIGRATE = "BEGIN IMMEDIATE "


class ReplacedError(Exception):
    """The database file was moved, deleted or replaced under an open connection."""


@dataclass(frozen=True)
class Database:
    """Where the database is and how to connect to it."""

    url: URL
    path: Path | None
    password_file: Path | None

    @classmethod
    def parse(cls, config: StoreConfig) -> Database:
        """Raises NftrustError(CONFIG_INVALID); the URL, which may hold a password, is not repeated."""
        try:
            url = make_url(config.url)
        except (ArgumentError, ValueError):
            raise NftrustError(Reason.CONFIG_INVALID, "store.url: not a database URL") from None
        if url.drivername == "sqlite" and url.database and url.database != ":memory:" and not url.query:
            return cls(url, Path(url.database), None)
        if url.drivername == "postgresql+psycopg":
            return cls(url, None, config.password_file)
        raise NftrustError(
            Reason.CONFIG_INVALID, "store.url: expected sqlite:////absolute/file or postgresql+psycopg://host/database"
        )

    def engine(self, access: Access, pool_size: int = 1) -> Engine:
        """An engine with at most ``pool_size`` connections; it opens none yet."""
        return self._sqlite(self.path, access, pool_size) if self.path else self._postgresql(access, pool_size)

    def create(self) -> None:
        """Make an SQLite file, readable by its owner alone, in WAL mode; on PostgreSQL nothing."""
        if self.path is None:
            return
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise NftrustError(Reason.CONFIG_INVALID, f"store.url: {os.strerror(error.errno or 0)}") from None
        _switch_to_wal(self.path)

    def missing(self) -> bool:
        """Whether there is no database file yet."""
        return self.path is not None and not (self.path.exists() and self.path.stat().st_size)

    def check_file(self, connection: Connection) -> None:
        """Raises ReplacedError if the open SQLite file is not the one at its path: writes would be lost."""
        if self.path is not None and connection.info.get("file") != _identity(self.path):
            raise ReplacedError

    def _sqlite(self, path: Path, access: Access, pool_size: int) -> Engine:
        timeout = MIGRATE_TIMEOUT_SECONDS if access is Access.MIGRATE else BUSY_TIMEOUT_SECONDS
        engine = create_engine(
            "sqlite+pysqlite://",
            creator=lambda: _connect_sqlite(path, timeout),
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_SECONDS,
        )

        def prepare(connection: sqlite3.Connection, record: Any) -> None:
            record.info["file"] = _identity(path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
            connection.execute(f"PRAGMA foreign_keys={'OFF' if access is Access.MIGRATE else 'ON'}")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute(f"PRAGMA query_only={'ON' if access is Access.READ else 'OFF'}")

        def begin(connection: Connection) -> None:
            connection.exec_driver_sql(access.value)

        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", begin)
        return engine

    def _postgresql(self, access: Access, pool_size: int) -> Engine:
        engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT_SECONDS,
            # One snapshot per read; writers are serial by the head lock and must see what the last one committed.
            isolation_level="REPEATABLE READ" if access is Access.READ else "READ COMMITTED",
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "nftrust"},
        )

        def authenticate(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
            if self.password_file is not None:
                parameters["password"] = _read_password(self.password_file)

        def prepare(connection: Any, record: Any) -> None:
            connection.autocommit = True
            if access is Access.READ:
                connection.execute("SET default_transaction_read_only = on")
            if access is not Access.MIGRATE:
                connection.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_SECONDS:g}s'")
                connection.execute("SET statement_timeout = '15s'")
                connection.execute("SET idle_in_transaction_session_timeout = '10s'")
            connection.autocommit = False

        event.listen(engine, "do_connect", authenticate)
        event.listen(engine, "connect", prepare)
        return engine


#: SQLite's primary result codes that say "not now" rather than "your statement is wrong".
_SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
#: After these the SQLite connection is still good: the next batch tries it again.
_SQLITE_CONNECTION_GOOD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})
_POSTGRESQL_READ_ONLY = "25006"
#: Connection exceptions, shutdowns, and a server that became a standby.
_POSTGRESQL_CONNECTION_BAD = ("08", "57P", "25P", _POSTGRESQL_READ_ONLY)


#: Outages that an operator has to end, by what the database says.
_REASONS: dict[int | str, Reason] = {
    sqlite3.SQLITE_FULL: Reason.STORAGE_FULL,
    "53100": Reason.STORAGE_FULL,
    sqlite3.SQLITE_READONLY: Reason.STORAGE_READ_ONLY,
    _POSTGRESQL_READ_ONLY: Reason.STORAGE_READ_ONLY,
    sqlite3.SQLITE_CORRUPT: Reason.STORAGE_CORRUPT,
    sqlite3.SQLITE_NOTADB: Reason.STORAGE_CORRUPT,
    "XX001": Reason.STORAGE_CORRUPT,
    "XX002": Reason.STORAGE_CORRUPT,
}
RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outage:
    """The database cannot be used now. ``cause`` is a short name for the log, without inner text."""

    cause: str
    reason: Reason = Reason.STORAGE_UNAVAILABLE

    def error(self) -> NftrustError:
        """What it becomes for a caller."""
        return NftrustError(self.reason, retry_after=RETRY_AFTER_SECONDS)


def outage(error: BaseException) -> Outage | None:
    """What ``error`` means, if it means that the database cannot be used now."""
    if isinstance(error, ReplacedError):
        return Outage("file replaced")
    if isinstance(error, PoolTimeoutError):
        return Outage("too many readers")
    origin = getattr(error, "orig", error)
    if isinstance(origin, sqlite3.Error):
        code = _sqlite_code(origin)
        known = code in _SQLITE_UNAVAILABLE
        return Outage(str(origin.sqlite_errorname), _reason(code)) if known else None
    if not isinstance(error, DBAPIError):
        return None
    state = getattr(origin, "sqlstate", None)
    if isinstance(error, OperationalError) or error.connection_invalidated or state in _REASONS:
        return Outage(f"SQLSTATE {state}", _reason(state)) if state else Outage("connection lost")
    return None


def _reason(code: int | str) -> Reason:
    return _REASONS.get(code, Reason.STORAGE_UNAVAILABLE)


def must_reconnect(error: BaseException) -> bool:
    """Whether the connection that gave ``error`` is of no more use."""
    if isinstance(error, ReplacedError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error.orig) in _SQLITE_UNAVAILABLE - _SQLITE_CONNECTION_GOOD
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError)
    return error.connection_invalidated or str(state).startswith(_POSTGRESQL_CONNECTION_BAD)


def discard(connection: Connection | None, error: Exception) -> bool:
    """Throw the connection away if it is of no more use; whether that was so."""
    lost = must_reconnect(error)
    if lost and connection is not None and not connection.invalidated:
        connection.invalidate()
    return lost


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for errors of the Python module itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _connect_sqlite(path: Path, timeout: float) -> sqlite3.Connection:
    # mode=rw: a missing file is an error, not a new empty database. Transactions are ours (isolation_level None).
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


def _switch_to_wal(path: Path) -> None:
    """SQLite does not wait for its lock when the journal mode changes, so several starters must take turns."""
    deadline = time.monotonic() + MIGRATE_TIMEOUT_SECONDS
    while True:
        connection = _connect_sqlite(path, BUSY_TIMEOUT_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            found = outage(error) or Outage(type(error).__name__)
            if found.cause != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise found.error() from None
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _read_password(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            if stat.S_IMODE(os.fstat(handle.fileno()).st_mode) & 0o077:
                raise NftrustError(Reason.CONFIG_INVALID, "store.password_file: readable by others; want mode 0600")
            return handle.read(_MAX_PASSWORD_BYTES).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise NftrustError(Reason.CONFIG_INVALID, "store.password_file: cannot be read") from None
