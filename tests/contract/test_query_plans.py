"""What an enrolment asks of the databases costs the same with many NFs as with few: every statement uses an index.

CA/RA and CM proxy serve in this process, so that each statement is known as
the driver gets it; the NF agent is a process.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from bench import plans, seeds
from bench.plans import Configurations, Statement, Stores
from nftrust.config import StoreConfig
from nftrust.lab.layout import ADDRESS, HOME_DOMAIN, HOST
from nftrust.rpc.channel import FileIdentity
from nftrust.storage import audit_log
from nftrust.storage.engine import Access, Database
from nftrust.storage.migrate import upgrade
from tests.contract.storage_kit import Cluster
from tests.lab_kit import RunningLab, SpareAgent, free_port

pytestmark = pytest.mark.process

ROLES = ("ca_ra", "cmproxy")
FQDN = f"plans.amf.{HOME_DOMAIN}"
FEW, MANY = 10, 1000
#: From about a hundred rows on PostgreSQL prefers an index.
MANY_ON_POSTGRESQL = 400


def statements_over(
    databases: Stores, running_lab: RunningLab, spare_agent: SpareAgent, directory: Path
) -> list[Statement]:
    """Of one enrolment of a new NF over these databases, which are made; the lab's tokens serve."""
    for role, store in databases.items():
        upgrade(store, role)
    configured = plans.configurations(running_lab.lab)
    ports = {name: f"{ADDRESS}:{free_port()}" for name in ("management", "enrolment", "http", "cmproxy")}
    target = f"{HOST}:{ports['management'].rpartition(':')[2]}"
    endpoint = f"{HOST}:{ports['enrolment'].rpartition(':')[2]}"
    ca_ra, cmproxy = configured.ca_ra, configured.cmproxy
    roles = Configurations(
        replace(
            ca_ra,
            store=databases["ca_ra"],
            management=replace(ca_ra.management, address=ports["management"]),
            enrolment=replace(ca_ra.enrolment, address=ports["enrolment"]),
            http=replace(ca_ra.http, address=ports["http"]),
            registration=replace(ca_ra.registration, endpoints=(endpoint,)),
        ),
        replace(
            cmproxy,
            store=databases["cmproxy"],
            management=replace(cmproxy.management, address=ports["cmproxy"]),
            ca_ra=replace(cmproxy.ca_ra, target=target),
        ),
    )
    oam = FileIdentity(running_lab.lab.pki / "oam.pem", running_lab.lab.pki / "oam.key")
    with spare_agent.serving(directory, spare_agent.leaf()) as agent:
        nf = running_lab.unborn(
            nf_instance_id=spare_agent.nf_instance_id,
            transport_key_sha256=spare_agent.transport_key_sha256,
            agent_endpoint=agent,
            fqdns=[FQDN],
        )
        return asyncio.run(plans.of_one_enrolment(roles, nf, oam))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("small")
    return {role: StoreConfig(url=f"sqlite:///{folder / role}.sqlite") for role in ROLES}


@pytest.fixture(scope="module")
def heard(
    small: Stores, running_lab: RunningLab, spare_agent: SpareAgent, tmp_path_factory: pytest.TempPathFactory
) -> list[Statement]:
    """The statements of an enrolment, which has left its rows in the small databases."""
    return statements_over(small, running_lab, spare_agent, tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def large(small: Stores, heard: list[Statement], tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """The same with many NFs; the small ones with a few."""
    folder = tmp_path_factory.mktemp("large")
    made = {role: StoreConfig(url=f"sqlite:///{folder / role}.sqlite") for role in ROLES}
    for role in ROLES:
        source, copy = (Database.parse(stores[role]).path for stores in (small, made))
        assert source is not None
        assert copy is not None
        with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(copy)) as target:
            original.backup(target)
        seeds.seed(small[role], role, FEW, [FQDN])
        seeds.seed(made[role], role, MANY, [FQDN])
    return made


@contextmanager
def reading(store: StoreConfig) -> Iterator[Any]:
    engine = Database.parse(store).engine(Access.READ)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def count(store: StoreConfig, table: str) -> int:
    with reading(store) as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_an_enrolment_is_heard_from_its_start_to_its_end(heard: list[Statement]) -> None:
    for role, table in (("cmproxy", "enrolment"), ("ca_ra", "registration"), ("ca_ra", "certificate")):
        assert any(each.role == role and each.sql.startswith(f"INSERT INTO {table} ") for each in heard)


def test_the_copies_are_rows_of_their_own_behind_an_unbroken_audit_chain(small: Stores, large: Stores) -> None:
    for stores, copies in ((small, FEW), (large, MANY)):
        assert count(stores["ca_ra"], "certificate") == count(stores["cmproxy"], "network_function") == copies + 1
        for store in stores.values():
            with reading(store) as connection:
                assert audit_log.verify(connection) is None
                assert audit_log.head(connection).sequence > copies


def test_plans_are_the_same_with_many_rows_and_read_no_table_to_its_end(
    heard: list[Statement], small: Stores, large: Stores
) -> None:
    found = plans.compare(heard, small, large)
    assert len(found) == len(heard)
    assert [plan for plan in found if plan.scans or not plan.same] == []


def test_a_statement_without_an_index_is_found(small: Stores, large: Stores) -> None:
    statement = Statement("ca_ra", "SELECT serial FROM certificate WHERE der = ?", (b"",))
    [plan] = plans.compare([statement], {"ca_ra": small["ca_ra"]}, {"ca_ra": large["ca_ra"]})
    assert plan.scans


def test_postgresql_has_an_index_for_each_of_its_statements(
    postgresql: Cluster, running_lab: RunningLab, spare_agent: SpareAgent, tmp_path: Path
) -> None:
    databases = {role: postgresql.new_database() for role in ROLES}
    heard = statements_over(databases, running_lab, spare_agent, tmp_path)
    for role, store in databases.items():
        seeds.seed(store, role, MANY_ON_POSTGRESQL, [FQDN])
        engine = Database.parse(store).engine(Access.WRITE)
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))
        engine.dispose()
        own = [statement for statement in heard if statement.role == role]
        growing = {table for table, rows in plans.rows(store, role).items() if rows > MANY_ON_POSTGRESQL}
        assert growing
        for statement, plan in zip(own, plans.explain(store, own), strict=True):
            assert not plans.reads_all(statement.sql, plan, growing), (statement.sql, plan)
