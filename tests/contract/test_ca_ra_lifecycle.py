"""The ends of NFs and of CAs in the CA/RA's database, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from sqlalchemy import insert, select, text

from ca_ra.authority import CaState, standing
from ca_ra.authority_store import SqlAuthorityStore
from ca_ra.retirement_store import EndEntity, SqlRetirementStore
from ca_ra.revocation_store import SqlRevocationStore
from ca_ra.rows import closed
from ca_ra.tables import certificate, crl, end_entity, end_entity_fqdn, registration
from nftrust.clock import GuardedClock, SystemClock
from nftrust.config import StoreConfig
from nftrust.errors import NftrustError, Reason
from nftrust.identity import Scope
from nftrust.storage import Store, Transaction
from nftrust.storage.engine import Access, Database
from nftrust.storage.migrate import _alembic, _connection, upgrade
from nftrust.x509.crl import RevocationReason

NOW = datetime.now(UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OAM, EVERYTHING = "urn:nftrust:oam:test", Scope(("*",), ("*",), ("*",))


@pytest.fixture
async def store(empty: StoreConfig) -> AsyncIterator[Store]:
    await asyncio.to_thread(upgrade, empty, "ca_ra")
    opened = Store.open(empty, GuardedClock(SystemClock()))
    yield opened
    await asyncio.to_thread(opened.close)


async def issue(store: Store, serial: str, *, generation: int = 1, left: timedelta = DAY, nf: str = "nf") -> None:
    """A certificate of an NF, with what it hangs on."""

    def work(tx: Transaction) -> None:
        if tx.execute(select(end_entity.c.tenant).where(end_entity.c.nf_instance_id == nf)).one_or_none() is None:
            tx.execute(insert(end_entity).values(nf_instance_id=nf, tenant="t", nf_type="AMF", create_time=NOW))
            tx.execute(insert(end_entity_fqdn).values(fqdn=f"{nf}.example", nf_instance_id=nf, shared=False))
        number = int(serial, 16)
        tx.execute(
            insert(registration).values(
                id=serial,
                sequence=number,
                reference=serial,
                nf_instance_id=nf,
                nf_type="AMF",
                fqdns=f"{nf}.example",
                tenant="t",
                profile="nf",
                delivery_mode="wrapped",
                mac_algorithm="HS256",
                transport_key_sha256=b"",
                create_time=NOW,
                expire_time=NOW + HOUR,
                row_mac=b"",
                certificate_serial=serial,
                confirm_time=NOW,
            )
        )
        tx.execute(
            insert(certificate).values(
                serial=serial,
                sequence=number,
                registration_id=serial,
                nf_instance_id=nf,
                tenant="t",
                der=b"",
                sha256=serial.encode(),
                spki_sha256=b"",
                not_before=NOW - DAY,
                not_after=NOW + left,
                create_time=NOW,
                confirm_time=NOW,
                generation=generation,
            )
        )

    await store.write(work)


# NFs


async def test_a_retired_nf_loses_what_is_good_and_is_closed(store: Store) -> None:
    for serial, left in (("a1", DAY), ("a2", -HOUR), ("a3", DAY)):
        await issue(store, serial, left=left)
    await issue(store, "b1", nf="other")
    revocations = SqlRevocationStore(store)
    await revocations.revoke("a3", RevocationReason.KEY_COMPROMISE, OAM, ("*",))
    retirements = SqlRetirementStore(store)
    first = await retirements.retire(EndEntity("nf", "t", "AMF"), OAM, EVERYTHING)
    assert await retirements.retire(EndEntity("nf", "t", "AMF"), OAM, EVERYTHING) == first
    revoked = await revocations.revocations(["a1", "a2", "a3", "b1"])
    assert {serial: each.reason for serial, each in revoked.items()} == {
        "a1": RevocationReason.CESSATION_OF_OPERATION,
        "a3": RevocationReason.KEY_COMPROMISE,
    }
    assert await store.read(lambda c: closed(c, "nf")) is Reason.NF_RETIRED
    assert await store.read(lambda c: closed(c, "other")) is None
    names = select(end_entity_fqdn.c.fqdn)
    assert await store.read(lambda c: c.execute(names).scalars().all()) == ["other.example"]


async def test_two_who_retire_at_once_do_it_once(store: Store) -> None:
    await issue(store, "a1")
    retirements = SqlRetirementStore(store)
    entity = EndEntity("nf", "t", "AMF")
    times = await asyncio.gather(*(retirements.retire(entity, OAM, EVERYTHING) for _ in range(8)))
    assert len(set(times)) == 1


# CAs


async def states(authorities: SqlAuthorityStore) -> list[CaState]:
    return [state for _, state, _ in standing(await authorities.generations())]


async def refused(reason: Reason, call: object) -> None:
    with pytest.raises(NftrustError) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.reason is reason


async def test_a_rollover_in_the_database(store: Store) -> None:
    authorities = SqlAuthorityStore(store)
    assert await states(authorities) == [CaState.ACTIVE]
    await refused(Reason.ROLLOVER_OUT_OF_ORDER, authorities.activate(force=True))
    await authorities.announce(2, "chain", "response", HOUR)
    await refused(Reason.ROLLOVER_OUT_OF_ORDER, authorities.announce(3, "chain", "response", HOUR))
    await refused(Reason.ROLLOVER_TOO_EARLY, authorities.activate(force=False))
    assert await states(authorities) == [CaState.ACTIVE, CaState.ANNOUNCED]
    assert await authorities.activate(force=True) == 2
    assert await states(authorities) == [CaState.SUPERSEDED, CaState.ACTIVE]
    await issue(store, "a1")
    await issue(store, "a2", left=-HOUR)
    await issue(store, "a3", generation=2)
    await refused(Reason.ROLLOVER_OUT_OF_ORDER, authorities.retire(1))
    await SqlRevocationStore(store).revoke("a1", RevocationReason.SUPERSEDED, OAM, ("*",))
    for _ in range(2):
        await authorities.retire(1)
    assert await states(authorities) == [CaState.RETIRED, CaState.ACTIVE]
    for generation in (2, 3):
        await refused(Reason.ROLLOVER_OUT_OF_ORDER, authorities.retire(generation))


async def test_two_announcements_at_once_are_one(store: Store) -> None:
    authorities = SqlAuthorityStore(store)
    calls = (authorities.announce(2, f"chain {number}", "response", HOUR) for number in range(4))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(each, BaseException) for each in outcomes) == 1
    assert await states(authorities) == [CaState.ACTIVE, CaState.ANNOUNCED]


async def test_each_ca_lists_and_answers_for_its_own(store: Store) -> None:
    revocations = SqlRevocationStore(store)
    await issue(store, "a1")
    await issue(store, "a2", generation=2)
    for serial in ("a1", "a2"):
        await revocations.revoke(serial, RevocationReason.SUPERSEDED, OAM, ("*",))

    async def listed(generation: int) -> list[int]:
        _, entries = await revocations.entries(generation, NOW)
        return [entry.serial for entry in entries]

    assert [await listed(1), await listed(2)] == [[0xA1], [0xA2]]
    assert await revocations.last_revocation(1) < await revocations.last_revocation(2)
    assert (await revocations.status(1, "a1"))[0]
    assert await revocations.status(2, "a1") == (False, None)


def crls(config: StoreConfig) -> Sequence[tuple[int, int, bytes]]:
    with _connection(Database.parse(config), Access.READ) as connection:
        found = connection.execute(select(crl.c.generation, crl.c.number, crl.c.der)).all()
    return [(row.generation, row.number, bytes(row.der)) for row in found]


def test_a_database_of_before_keeps_its_crl(empty: StoreConfig) -> None:
    """Its number goes on: relying parties take no CRL with a lower one."""
    database = Database.parse(empty)
    database.create()
    alembic = _alembic("ca_ra")
    with _connection(database, Access.MIGRATE) as connection:
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "0004")
        row = {"number": 7, "der": b"crl", "at": 1}
        connection.execute(
            text("INSERT INTO crl (number, der, this_update, next_update) VALUES (:number, :der, :at, :at)"),
            row,
        )
    upgrade(empty, "ca_ra")
    assert crls(empty) == [(1, 7, b"crl")]
