"""Certificates that nobody confirms are revoked (security rule 13), whatever else is in the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from ca_ra.revocation_store import SqlRevocationStore
from ca_ra.tables import certificate, revocation
from nftrust.clock import SystemClock
from nftrust.config import StoreConfig
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

NOW = datetime.now(UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Issued how long ago, ends in how long, confirmed. The expired ones, of a time when the CA was down, come first.
ROWS = {
    "a1": (9 * DAY, -DAY, False),
    "a2": (9 * DAY, -DAY, False),
    "b1": (2 * DAY, DAY, False),
    "c1": (2 * DAY, DAY, True),
    "d1": (HOUR, DAY, False),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config = StoreConfig(url=f"sqlite:///{tmp_path / 'store.sqlite'}")
    upgrade(config, "ca_ra")
    engine = create_engine(config.url)
    with engine.begin() as connection:  # looks at no foreign keys
        for number, (serial, (age, left, confirmed)) in enumerate(ROWS.items()):
            connection.execute(
                certificate.insert().values(
                    serial=serial,
                    sequence=number,
                    registration_id=serial,
                    nf_instance_id=serial,
                    tenant="t",
                    der=b"",
                    sha256=serial.encode(),
                    spki_sha256=b"",
                    not_before=NOW - age,
                    not_after=NOW + left,
                    create_time=NOW - age,
                    confirm_time=NOW if confirmed else None,
                )
            )
    engine.dispose()
    opened = Store.open(config, SystemClock())
    yield opened
    opened.close()


async def test_expired_ones_do_not_keep_the_others_from_their_turn(store: Store) -> None:
    revocations = SqlRevocationStore(store)
    assert await revocations.revoke_unconfirmed(NOW, DAY, limit=2) == 1
    assert await revocations.revoke_unconfirmed(NOW, DAY, limit=2) == 0
    found = await store.read(lambda connection: connection.execute(select(revocation.c.serial)).scalars().all())
    assert found == ["b1"]
