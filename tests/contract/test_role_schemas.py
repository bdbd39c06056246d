"""Each role's migrations make exactly the tables that its code uses."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.storage.migrate import drift, upgrade, verify

ROLES = ("ca_ra", "cmproxy", "verifier")


@pytest.mark.parametrize("role", ROLES)
def test_migrations_make_the_tables_in_code(role: str, tmp_path: Path) -> None:
    config = StoreConfig(url=f"sqlite:///{tmp_path / 'store.sqlite'}")
    with pytest.raises(NftrustError) as refused:
        verify(config, role)
    assert refused.value.reason is Reason.SCHEMA_OUTDATED
    upgrade(config, role)
    verify(config, role)
    assert drift(config, importlib.import_module(f"{role}.tables").METADATA) == []
