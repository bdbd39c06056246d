"""Migrations on real databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage.migrate import drift, upgrade, verify
from tests.contract.storage_kit import METADATA, ROLE, add_second_revision, item, make_role, parent
from tests.contract.test_storage_store import opened


def outdated(config: StoreConfig, package: str) -> bool:
    with pytest.raises(NftrustError) as refused:
        verify(config, package)
    return refused.value.reason is Reason.SCHEMA_OUTDATED


def test_the_schema_is_the_tables_in_code(database: StoreConfig) -> None:
    assert drift(database, METADATA) == []
    verify(database, ROLE)
    upgrade(database, ROLE)


def test_an_empty_database_is_outdated(empty: StoreConfig, role: Path, tmp_path: Path) -> None:
    assert outdated(empty, ROLE)
    assert not (tmp_path / "role.db").exists()


async def test_a_second_revision_keeps_the_rows(
    empty: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = make_role(tmp_path, "storage_growing_role")
    monkeypatch.syspath_prepend(str(tmp_path))
    upgrade(empty, "storage_growing_role")
    with opened(empty) as store:
        await store.write(lambda tx: tx.execute(insert(parent).values(id="p")).rowcount)
        await store.write(lambda tx: tx.execute(insert(item).values(id="i", number=1, parent_id="p")).rowcount)
    add_second_revision(versions)
    assert outdated(empty, "storage_growing_role")
    upgrade(empty, "storage_growing_role")
    verify(empty, "storage_growing_role")
    assert any("note" in difference for difference in drift(empty, METADATA))
    with opened(empty) as store:
        assert await store.read(lambda c: c.execute(select(item.c.parent_id)).scalars().all()) == ["p"]
        assert await store.read(lambda c: c.execute(text("SELECT note FROM parent")).scalars().all()) == [None]


def test_another_roles_database_is_refused(
    database: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = make_role(tmp_path / "other", "storage_other_role")
    revision = versions / "0001_first.py"
    revision.write_text(revision.read_text().replace('"0001"', '"other"'))
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert outdated(database, "storage_other_role")
    with pytest.raises(NftrustError) as refused:
        upgrade(database, "storage_other_role")
    assert refused.value.reason is Reason.SCHEMA_OUTDATED
    verify(database, ROLE)


def test_a_failed_revision_leaves_nothing(empty: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = make_role(tmp_path, "storage_failing_role")
    monkeypatch.syspath_prepend(str(tmp_path))
    revision = versions / "0001_first.py"
    good = revision.read_text()
    revision.write_text(good + "    raise RuntimeError('half way')\n")
    with pytest.raises(RuntimeError, match="half way"):
        upgrade(empty, "storage_failing_role")
    assert outdated(empty, "storage_failing_role")
    revision.write_text(good)
    upgrade(empty, "storage_failing_role")
    verify(empty, "storage_failing_role")
