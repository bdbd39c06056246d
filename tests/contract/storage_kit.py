"""What the storage tests share: a role with migrations, and real databases for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    insert,
    select,
)

from nftrust.config import StoreConfig
from nftrust.storage import Transaction, new_metadata

ROLE = "storage_demo_role"
METADATA = new_metadata()
parent = Table("parent", METADATA, Column("id", Text, primary_key=True))
item = Table(
    "item",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=True),
    Column("parent_id", Text, ForeignKey("parent.id"), nullable=True),
    UniqueConstraint("number"),
)

_ENV = "from nftrust.storage.migrate import run_environment\nrun_environment()\n"
_FIRST = """
    from alembic import op
    from nftrust.storage import create_shared_tables
    from tests.contract.storage_kit import METADATA
    revision, down_revision = "0001", None
    def upgrade():
        create_shared_tables(op)
        METADATA.create_all(op.get_bind())
"""
_SECOND = """
    import sqlalchemy as sa
    from alembic import op
    revision, down_revision = "0002", "0001"
    def upgrade():
        # A table copy on SQLite, of a table that others point to.
        recreate = "always" if op.get_bind().dialect.name == "sqlite" else "auto"
        with op.batch_alter_table("parent", recreate=recreate) as batch:
            batch.add_column(sa.Column("note", sa.Text(), nullable=True))
"""


def make_role(directory: Path, name: str = ROLE) -> Path:
    """A role package with one revision, in ``directory`` (to be put on the path); its folder of revisions."""
    role = directory / name
    versions = role / "migrations" / "versions"
    versions.mkdir(parents=True)
    (role / "__init__.py").write_text("")
    (role / "migrations" / "env.py").write_text(_ENV)
    (versions / "0001_first.py").write_text(textwrap.dedent(_FIRST))
    return versions


def add_second_revision(versions: Path) -> None:
    (versions / "0002_second.py").write_text(textwrap.dedent(_SECOND))


def run_python(script: str, *arguments: str, path: Path) -> subprocess.Popen[str]:
    """A Python process with the role and the tests on its path; its standard input and output are pipes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def postgresql_bin() -> Path | None:
    """Where this machine's PostgreSQL keeps its programs, newest version first."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -int(p.parent.name))
    return next((path for path in found if (path / "initdb").exists()), None)


class Cluster:
    """A private PostgreSQL on a unix socket, run by an unprivileged user."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self._programs = programs
        self._as_user: list[str] = []
        self._databases = 0
        if os.geteuid() == 0:
            self._as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(directory, "nobody", "nogroup")
        data = directory / "data"
        self._run("initdb", "-D", str(data), "-A", "trust", "-U", "nftrust", "-N", "--locale=C", "-E", "UTF8")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.directory}'"
        log = str(self.directory / "log")
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-w", "-m", "immediate", "stop")

    def new_database(self, name: str | None = None) -> StoreConfig:
        if name is None:
            self._databases += 1
            name = f"db{self._databases}"
        self._run("createdb", "-h", str(self.directory), "-U", "nftrust", name)
        return StoreConfig(url=f"postgresql+psycopg://nftrust@/{name}?host={self.directory}")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), *arguments]
        subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running cluster; skips the test where PostgreSQL is not installed."""
    programs = postgresql_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    # Not below pytest's own folder, which only its owner may enter, and short enough for a socket's path.
    with tempfile.TemporaryDirectory(prefix="nftrust-pg-", ignore_cleanup_errors=True) as directory:
        made = Cluster(Path(directory), programs)
        made.start()
        try:
            yield made
        finally:
            made.stop()


class FakeClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 11, 24, tzinfo=UTC)
        self.mono = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.mono += seconds


def put(number: int, *, size: int = 10, audit: bool = True) -> Callable[[Transaction], int]:
    """A unit of work: one item and its audit event."""

    def work(tx: Transaction) -> int:
        tx.execute(insert(item).values(id=f"item-{number}", number=number, payload=b"x" * size))
        if audit:
            tx.audit(actor="test", action="item.create", subject=f"items/{number}", detail={"size": size})
        return number

    return work


def numbers(connection: Connection) -> list[int]:
    """What is committed."""
    return list(connection.execute(select(item.c.number).order_by(item.c.number)).scalars())
