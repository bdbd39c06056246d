"""Databases for the storage tests: a real SQLite file and a private PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nftrust.config import StoreConfig
from nftrust.storage.migrate import upgrade
from tests.contract.storage_kit import ROLE, Cluster, cluster, make_role


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="session")
def role_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo role's package is."""
    folder = tmp_path_factory.mktemp("role")
    make_role(folder)
    return folder


@pytest.fixture
def role(role_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, on the path of this process."""
    monkeypatch.syspath_prepend(str(role_folder))
    return role_folder


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    """A database before the first migration."""
    if request.param == "sqlite":
        return StoreConfig(url=f"sqlite:///{tmp_path}/role.db")
    running: Cluster = request.getfixturevalue("postgresql")
    return running.new_database()


@pytest.fixture
def database(empty: StoreConfig, role: Path) -> StoreConfig:
    """A migrated database of each kind."""
    upgrade(empty, ROLE)
    return empty


@pytest.fixture
def sqlite_database(tmp_path: Path, role: Path) -> StoreConfig:
    """A migrated SQLite file, ``tmp_path/role.db``."""
    config = StoreConfig(url=f"sqlite:///{tmp_path}/role.db")
    upgrade(config, ROLE)
    return config
