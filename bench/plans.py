"""Query plans of a whole enrolment: every statement that CA/RA and CM proxy send, as they send it.

Both roles serve in this process for one enrolment of a lab's NF, over
databases of the caller's choice, so that their statements can be heard. How
the database would run them is then asked of any database of the same schema.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import Parse
from sqlalchemy import Connection, Engine, event, func, select

import ca_ra.app
import cmproxy.app
from bench.figures import Plan
from ca_ra.config import CaRaConfig
from cmproxy.config import CmProxyConfig
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1.provisioning_service_pb2_grpc import ProvisioningServiceStub
from nftrust.config import StoreConfig, load
from nftrust.files import read_file
from nftrust.lab import control
from nftrust.lab.configuration import CONFIG_FILE
from nftrust.lab.layout import HOST, Lab
from nftrust.rpc.channel import FileIdentity, open_channel
from nftrust.storage.engine import Access, Database
from nftrust.storage.tables import SHARED

ENROLMENT_SECONDS = 60.0
#: A database by role.
Stores = Mapping[str, StoreConfig]
_SCAN = re.compile(r"(?:^SCAN|Seq Scan on) (\w+)")
#: The others have no plan: BEGIN, SAVEPOINT, COMMIT.
_PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True, slots=True)
class Configurations:
    """The roles whose statements are heard."""

    ca_ra: CaRaConfig
    cmproxy: CmProxyConfig

    @property
    def stores(self) -> Stores:
        return {"ca_ra": self.ca_ra.store, "cmproxy": self.cmproxy.store}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as the driver got it."""

    role: str
    sql: str
    parameters: Any


def configurations(lab: Lab) -> Configurations:
    """The two roles' configurations."""
    return Configurations(
        load(CaRaConfig, lab.role("ca_ra") / CONFIG_FILE), load(CmProxyConfig, lab.role("cmproxy") / CONFIG_FILE)
    )


def of_a_lab(lab: Lab) -> list[Statement]:
    """The statements of an enrolment of the first NF of a lab that does not run."""
    nf = lab.settings.nfs[0]
    body = Parse((lab.nf(nf) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())
    oam = FileIdentity(lab.pki / "oam.pem", lab.pki / "oam.key")
    agent = control.start_agent(lab, nf)
    try:
        while not (lab.nf(nf) / control.READY_FILE).exists() and control.alive(agent):
            time.sleep(0.05)
        return asyncio.run(of_one_enrolment(configurations(lab), body, oam))
    finally:
        control.end(agent)


async def of_one_enrolment(roles: Configurations, nf: pb.NetworkFunction, oam: FileIdentity) -> list[Statement]:
    """Serve both roles in this process and enrol an NF whose agent serves; each statement once."""
    heard: dict[tuple[str, str], Statement] = {}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ca_ra.app.serving(roles.ca_ra, reuse_port=False))
        await stack.enter_async_context(cmproxy.app.serving(roles.cmproxy, reuse_port=False))
        tls, port = roles.cmproxy.management.tls, roles.cmproxy.management.address.rpartition(":")[2]
        assert tls.client_ca is not None
        channel = open_channel(f"{HOST}:{port}", trust_roots=read_file(tls.client_ca), identity=oam)
        stack.push_async_callback(channel.close)
        stack.enter_context(_listening({_place(store): role for role, store in roles.stores.items()}, heard))
        await _enrol(nf, ProvisioningServiceStub(channel))
    return list(heard.values())


async def _enrol(nf: pb.NetworkFunction, stub: Any) -> None:
    """All ten steps; once more, where the NF is known already."""
    name = f"networkFunctions/{nf.nf_instance_id}"
    try:
        await stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=nf))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
    request = pb.StartEnrolmentRequest(parent=name, allow_re_enrolment=True, request_id=str(uuid.uuid4()))
    started = await stub.StartEnrolment(request)
    last = pb.Enrolment()
    async for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=started.name), timeout=ENROLMENT_SECONDS):
        last = update.enrolment
    if last.state != pb.Enrolment.SUCCEEDED:
        raise RuntimeError(f"{started.name}: {pb.Enrolment.State.Name(last.state)} {last.error.reason}")


@contextmanager
def _listening(roles: Mapping[str, str], heard: dict[tuple[str, str], Statement]) -> Iterator[None]:
    """Keep what any engine of this process executes during the block."""
    lock = threading.Lock()

    def listen(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        role = roles.get(_file(connection))
        if role is not None and statement.lstrip().upper().startswith(_PLANNED):
            with lock:
                heard.setdefault((role, statement), Statement(role, statement, parameters[0] if many else parameters))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


def _place(config: StoreConfig) -> str:
    """What tells one database of this process from another."""
    database = Database.parse(config)
    return str(database.url.database) if database.path is None else str(database.path.resolve())


def _file(connection: Connection) -> str:
    if connection.dialect.name != "sqlite":
        return str(connection.engine.url.database)
    raw: Any = connection.connection.dbapi_connection
    return str(raw.execute("PRAGMA database_list").fetchone()[2])


def explain(config: StoreConfig, statements: Sequence[Statement]) -> list[tuple[str, ...]]:
    """The plan of each, in the order given: SQLite's steps, or PostgreSQL's lines."""
    engine = Database.parse(config).engine(Access.WRITE)
    try:
        with closing(engine.raw_connection()) as raw:
            ask = _sqlite_plan if engine.dialect.name == "sqlite" else _postgresql_plan
            return [ask(raw.dbapi_connection, statement) for statement in statements]
    finally:
        engine.dispose()


def _sqlite_plan(raw: Any, statement: Statement) -> tuple[str, ...]:
    rows = raw.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters).fetchall()
    return tuple(row[3] for row in rows)


def _postgresql_plan(raw: Any, statement: Statement) -> tuple[str, ...]:
    from psycopg import ClientCursor  # only where there is such a database

    cursor = ClientCursor(raw)
    rows = cursor.execute(f"EXPLAIN (COSTS OFF) {statement.sql}", statement.parameters).fetchall()
    raw.rollback()
    return tuple(row[0].strip() for row in rows)


def compare(statements: Sequence[Statement], few: Stores, many: Stores) -> list[Plan]:
    """Each statement's plan in a small and a large database of its role."""
    found = []
    for role in few:
        own = [statement for statement in statements if statement.role == role]
        small, large = rows(few[role], role), rows(many[role], role)
        growing = {table for table, count in large.items() if count > small[table]}
        for statement, short, long in zip(own, explain(few[role], own), explain(many[role], own), strict=True):
            scans = reads_all(statement.sql, (*short, *long), growing)
            found.append(Plan(role=role, statement=statement.sql, few=short, many=long, scans=scans))
    return found


def rows(config: StoreConfig, role: str) -> dict[str, int]:
    """How many there are in each table."""
    engine = Database.parse(config).engine(Access.READ)
    tables = [*import_module(f"{role}.tables").METADATA.tables.values(), *SHARED.tables.values()]
    try:
        with engine.begin() as connection:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables
            }
    finally:
        engine.dispose()


def reads_all(statement: str, plan: Sequence[str], growing: Collection[str]) -> bool:
    """Whether one of the growing tables is read from end to end; the first rows by an index are not all.

    Each step is as SQLite or PostgreSQL words it.
    """
    for step in plan:
        found = _SCAN.search(step)
        if found is not None and found[1] in growing and not ("LIMIT" in statement and "INDEX" in step):
            return True
    return False
