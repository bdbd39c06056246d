"""What the CA/RA counts for its gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine

from ca_ra.issuance_store import SqlIssuanceStore
from ca_ra.tables import certificate, end_entity, revocation
from nftrust.clock import SystemClock
from nftrust.config import StoreConfig
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

NOW = datetime(2030, 1, 1, tzinfo=UTC)
#: Days left of the certificates issued; of these, those of the revoked ones.
ISSUED, REVOKED = (-3, 0, 1, 6, 8, 29, 31, 100, 101), (-3, 6, 101)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlIssuanceStore]:
    config = StoreConfig(url=f"sqlite:///{tmp_path_factory.mktemp('counts') / 'store.sqlite'}")
    upgrade(config, "ca_ra")
    engine = create_engine(config.url)
    with engine.begin() as connection:  # looks at no foreign keys
        for number, days in enumerate(ISSUED):
            ends, name = NOW + timedelta(days=days), str(number)
            row = {"serial": name, "sequence": number, "registration_id": name, "nf_instance_id": name, "tenant": "t"}
            row |= {"der": b"", "sha256": name.encode(), "spki_sha256": b""}
            connection.execute(certificate.insert().values(**row, not_before=NOW, not_after=ends, create_time=NOW))
            suspended = NOW if days in REVOKED else None
            entity = {"nf_instance_id": name, "tenant": "t", "nf_type": "AMF"}
            connection.execute(end_entity.insert().values(**entity, create_time=NOW, suspend_time=suspended))
            if days in REVOKED:
                gone = {"serial": name, "sequence": number, "reason": 1, "revoke_time": NOW, "not_after": ends}
                connection.execute(revocation.insert().values(gone))
    engine.dispose()
    opened = Store.open(config, SystemClock())
    yield SqlIssuanceStore(opened)
    opened.close()


def test_certificates_are_in_one_band_each_and_revoked_ones_in_none(store: SqlIssuanceStore) -> None:
    counts = asyncio.run(store.count_by_time_left(NOW))
    assert counts == {"expired": 1, "7d": 1, "30d": 2, "90d": 1, "more": 1}


def test_suspended_nfs_are_counted(store: SqlIssuanceStore) -> None:
    assert asyncio.run(store.count_suspended()) == len(REVOKED)
