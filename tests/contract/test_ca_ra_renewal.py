"""One successor per certificate, on both databases and however many ask at once."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, insert, select

from ca_ra.model import Issuance, IssuedCertificate
from ca_ra.renewal_store import SqlRenewalStore
from ca_ra.revocation_store import SqlRevocationStore
from ca_ra.rows import find_certificate
from ca_ra.tables import certificate, end_entity, registration
from nftrust.clock import SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.jose import sha256
from nftrust.storage import Store
from nftrust.storage.migrate import upgrade

NF = "11111111-1111-4111-8111-111111111111"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def first_row(serial: str) -> dict[str, object]:
    return {
        "serial": serial,
        "registration_id": "r1",
        "nf_instance_id": NF,
        "tenant": "t",
        "der": b"",
        "sha256": sha256(serial.encode()),
        "spki_sha256": sha256(b"key of " + serial.encode()),
        "not_before": NOW - DAY,
        "not_after": NOW + 9 * DAY,
        "create_time": NOW - DAY,
        "confirm_time": NOW - DAY,
    }


@pytest.fixture
def database(empty: StoreConfig) -> StoreConfig:
    """One NF with a confirmed certificate, ``a1``."""
    upgrade(empty, "ca_ra")
    engine = create_engine(empty.url)
    with engine.begin() as connection:
        entity = {"nf_instance_id": NF, "tenant": "t", "nf_type": "AMF", "create_time": NOW}
        connection.execute(insert(end_entity).values(entity))
        row = {
            "id": "r1",
            "sequence": 1,
            "reference": "ref",
            "nf_instance_id": NF,
            "nf_type": "AMF",
            "fqdns": "a.example",
            "tenant": "t",
            "profile": "nf",
            "delivery_mode": "wrapped",
            "mac_algorithm": "HS256",
            "transport_key_sha256": b"",
            "create_time": NOW,
            "expire_time": NOW,
            "row_mac": b"",
            "certificate_serial": "a1",
            "confirm_time": NOW,
        }
        connection.execute(insert(registration).values(row))
        connection.execute(insert(certificate).values(first_row("a1") | {"sequence": 1}))
    engine.dispose()
    return empty


@contextlib.asynccontextmanager
async def fronts(config: StoreConfig, number: int = 2) -> AsyncIterator[list[Store]]:
    stores = [Store.open(config, SystemClock()) for _ in range(number)]
    try:
        yield stores
    finally:
        for store in stores:
            await asyncio.to_thread(store.close)


def successor(serial: str, key: bytes, predecessor: str = "a1") -> Issuance:
    """A signed successor of ``predecessor`` for a key, about to be stored."""
    return Issuance(
        certificate=IssuedCertificate(
            serial=serial,
            registration_id="r1",
            nf_instance_id=NF,
            tenant="t",
            der=b"",
            sha256=sha256(serial.encode()),
            spki_sha256=sha256(key),
            not_before=NOW,
            not_after=NOW + 9 * DAY,
            create_time=NOW,
            predecessor=predecessor,
        ),
        request_id=str(uuid.uuid4()),
        request_sha256=sha256(b"request " + serial.encode()),
        response=f"response {serial}".encode(),
    )


async def renew(store: Store, issuance: Issuance) -> bytes | IssuedCertificate | Reason:
    try:
        return await SqlRenewalStore(store).record_renewal(issuance)
    except NftrustError as error:
        return error.reason


async def successors(store: Store) -> list[str]:
    found = select(certificate.c.serial).where(certificate.c.predecessor == "a1")
    return list(await store.read(lambda executor: executor.execute(found).scalars().all()))


async def test_many_keys_at_once_get_one_successor_and_the_nf_is_frozen(database: StoreConfig) -> None:
    async with fronts(database) as stores:
        asked = [renew(stores[number % 2], successor(f"b{number}", b"key %d" % number)) for number in range(20)]
        outcomes = await asyncio.gather(*asked)
        assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 1
        refusals = {outcome for outcome in outcomes if not isinstance(outcome, bytes)}
        assert refusals <= {Reason.CERTIFICATE_SUPERSEDED, Reason.END_ENTITY_SUSPENDED}
        assert outcomes.count(Reason.CERTIFICATE_SUPERSEDED) == 1
        [only] = await successors(stores[0])
        revoked = await SqlRevocationStore(stores[0]).revocations(["a1", only])
        assert set(revoked) == {"a1", only}


async def test_one_key_at_once_gets_the_same_successor_each_time(database: StoreConfig) -> None:
    async with fronts(database) as stores:
        asked = [renew(stores[number % 2], successor(f"b{number}", b"one key")) for number in range(20)]
        outcomes = await asyncio.gather(*asked)
        [only] = await successors(stores[0])
        assert outcomes.count(f"response {only}".encode()) == 1
        others = {outcome.serial for outcome in outcomes if isinstance(outcome, IssuedCertificate)}
        assert others == {only}
        assert len([outcome for outcome in outcomes if isinstance(outcome, IssuedCertificate)]) == 19
        assert await SqlRevocationStore(stores[0]).revocations(["a1", only]) == {}


async def test_a_repeated_request_gets_the_stored_response(database: StoreConfig) -> None:
    async with fronts(database, 1) as [store]:
        first = successor("b1", b"a key")
        assert await renew(store, first) == b"response b1"
        assert await renew(store, first) == b"response b1"
        renewals = SqlRenewalStore(store)
        found = await renewals.find_renewable(sha256(b"a1"), first.request_sha256)
        assert found is not None
        assert found.response == b"response b1"
        other = await renewals.find_renewable(sha256(b"a1"), bytes(32))
        assert other is not None
        assert other.response is None
        assert await renewals.find_renewable(bytes(32), first.request_sha256) is None


async def test_the_sweep_of_the_unconfirmed_makes_room_for_another_successor(database: StoreConfig) -> None:
    async with fronts(database, 1) as [store]:
        assert await renew(store, successor("b1", b"a key")) == b"response b1"
        assert await SqlRevocationStore(store).revoke_unconfirmed(NOW + DAY, timedelta(hours=1), 10) == 1
        assert await renew(store, successor("b2", b"another key")) == b"response b2"
        assert await renew(store, successor("b3", b"a third key")) is Reason.CERTIFICATE_SUPERSEDED


async def test_a_certificate_that_has_ended_since_is_not_succeeded(database: StoreConfig) -> None:
    engine = create_engine(database.url)
    with engine.begin() as connection:
        connection.execute(certificate.update().values(not_after=NOW - DAY / 2))
    engine.dispose()
    async with fronts(database, 1) as [store]:
        assert await renew(store, successor("b1", b"a key")) is Reason.CERTIFICATE_EXPIRED
        assert await successors(store) == []


async def test_certificates_of_before_are_kept_by_the_migration(tmp_path: Path) -> None:
    """The table is copied on SQLite; revocations point to it."""
    from nftrust.storage.engine import Access, Database
    from nftrust.storage.migrate import _alembic, _connection

    config = StoreConfig(url=f"sqlite:///{tmp_path}/before.db")
    database = Database.parse(config)
    database.create()
    with _connection(database, Access.MIGRATE) as connection:
        alembic = _alembic("ca_ra")
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "0003")
        rows = {"nf_instance_id": NF, "tenant": "t", "nf_type": "AMF", "create_time": NOW}
        connection.execute(insert(end_entity).values(rows))
        columns = "serial, sequence, registration_id, nf_instance_id, tenant, der, sha256, spki_sha256"
        connection.exec_driver_sql(
            "INSERT INTO registration (id, sequence, reference, nf_instance_id, nf_type, fqdns, tenant, profile,"
            " delivery_mode, mac_algorithm, transport_key_sha256, create_time, expire_time, row_mac)"
            f" VALUES ('r1', 1, 'x', '{NF}', 'AMF', 'a', 't', 'nf', 'wrapped', 'HS256', x'', 0, 0, x'')"
        )
        connection.exec_driver_sql(
            f"INSERT INTO certificate ({columns}, not_before, not_after, create_time)"
            f" VALUES ('a1', 1, 'r1', '{NF}', 't', x'30', x'01', x'02', 0, 0, 0)"
        )
        connection.exec_driver_sql("INSERT INTO revocation VALUES ('a1', 1, 4, 0, 0)")
    upgrade(config, "ca_ra")
    async with fronts(config, 1) as [store]:
        kept = await store.read(lambda executor: find_certificate(executor, "a1"))
        assert kept is not None
        assert kept.predecessor is None
        assert set(await SqlRevocationStore(store).revocations(["a1"])) == {"a1"}
