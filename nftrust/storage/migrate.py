"""Schema migrations: Alembic, started from code, safe for several processes at once.

Each role has ``<role>/migrations/versions/`` and an ``env.py`` of two lines::

    from nftrust.storage.migrate import run_environment
    run_environment()

Migration is a command; servers only verify. All revisions of one upgrade run
in one transaction behind one lock.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command, context
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DBAPIError

from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage.engine import Access, Database, outage

#: Any constant will do, as long as all migrators use it.
_LOCK_KEY = 0x6E667472757374


def upgrade(config: StoreConfig, package: str) -> None:
    """Bring the database to the newest revision of ``package``; creates an SQLite file that is not there.

    Raises NftrustError(CONFIG_INVALID, STORAGE_UNAVAILABLE, SCHEMA_OUTDATED); the last if the database holds
    a revision that ``package`` does not know.
    """
    database = Database.parse(config)
    database.create()
    with _connection(database, Access.MIGRATE) as connection:
        _lock(connection)
        alembic = _alembic(package)
        alembic.attributes["connection"] = connection
        try:
            command.upgrade(alembic, "head")
        except CommandError:
            raise _outdated() from None
        _check_foreign_keys(connection)


def verify(config: StoreConfig, package: str) -> None:
    """Refuse a database that is not at the newest revision of ``package``: NftrustError(SCHEMA_OUTDATED)."""
    database = Database.parse(config)
    if database.missing():
        raise _outdated()
    with _connection(database, Access.READ) as connection:
        current = set(MigrationContext.configure(connection).get_current_heads())
    if current != set(ScriptDirectory.from_config(_alembic(package)).get_heads()):
        raise _outdated()


def drift(config: StoreConfig, metadata: MetaData) -> list[str]:
    """What differs between the migrated database and the tables in code: for the roles' tests."""

    def ours(name: str | None, kind: str, parents: object) -> bool:
        return kind != "table" or name in metadata.tables

    with _connection(Database.parse(config), Access.READ) as connection:
        options = {"compare_type": True, "include_name": ours}
        migration = MigrationContext.configure(connection, opts=options)
        return [repr(difference) for difference in compare_metadata(migration, metadata)]


def run_environment() -> None:
    """The body of every role's ``env.py``: run the revisions on the connection that :func:`upgrade` holds."""
    context.configure(
        connection=context.config.attributes["connection"],
        render_as_batch=True,
        transactional_ddl=True,
    )
    context.run_migrations()


def _alembic(package: str) -> Config:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package} is not a package")
    config = Config()
    config.set_main_option(
        "script_location", str(Path(spec.submodule_search_locations[0]) / "migrations").replace("%", "%%")
    )
    return config


@contextmanager
def _connection(database: Database, access: Access) -> Iterator[Connection]:
    engine = database.engine(access)
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        found = outage(error)
        if found is None:
            raise
        raise found.error() from None
    finally:
        engine.dispose()


def _lock(connection: Connection) -> None:
    """One migrator at a time; on SQLite BEGIN IMMEDIATE has seen to it."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")


def _check_foreign_keys(connection: Connection) -> None:
    """SQLite migrates without foreign keys (table copies would cascade): see that all of them hold afterwards."""
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise NftrustError(Reason.STATE_CORRUPT, "the migrated database has rows that point nowhere")


def _outdated() -> NftrustError:
    return NftrustError(Reason.SCHEMA_OUTDATED)
