"""Rows of the CM proxy's tables as the domain sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Row, bindparam, select, update

from cmproxy.model import Enrolment, NetworkFunction, Problem, State, Step
from cmproxy.tables import enrolment, network_function
from nftrust.storage import Executor, Transaction

#: The CM proxy itself in its audit log.
ACTOR = "urn:nftrust:cm-proxy"
_NF_COLUMNS = tuple(column.name for column in network_function.columns)
#: What the domain knows of an enrolment; the rest is storage's.
_ENROLMENT_COLUMNS = tuple(
    column.name for column in enrolment.columns if column.name not in ("sequence", "owner", "active")
)

# Built once: SQLAlchemy keeps a statement's cache key with the statement, and making it costs more than SQLite's work.
_NETWORK_FUNCTION = select(network_function).where(network_function.c.nf_instance_id == bindparam("id"))
_ENROLMENT = select(enrolment).where(enrolment.c.id == bindparam("id"))
#: What is set are the columns among the parameters.
_WRITE = update(enrolment).where(enrolment.c.id == bindparam("held_id"), enrolment.c.epoch == bindparam("held_epoch"))


def network_function_of(row: Row[Any]) -> NetworkFunction:
    """A row of the network function table as the domain sees it."""
    values = {name: getattr(row, name) for name in _NF_COLUMNS}
    return NetworkFunction(**values | {"fqdns": tuple(row.fqdns.split(" "))})


def network_function_values(nf: NetworkFunction) -> dict[str, Any]:
    return {name: getattr(nf, name) for name in _NF_COLUMNS} | {"fqdns": " ".join(nf.fqdns)}


def enrolment_of(row: Row[Any]) -> Enrolment:
    """A row of the enrolment table as the domain sees it."""
    values = {name: getattr(row, name) for name in _ENROLMENT_COLUMNS}
    return Enrolment(
        **values
        | {
            "state": State(row.state),
            "working": State(row.working),
            "problem": None if row.problem is None else msgspec.json.decode(row.problem, type=Problem),
            "steps": msgspec.json.decode(row.steps, type=tuple[Step, ...]),
        }
    )


def enrolment_values(value: Enrolment) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _ENROLMENT_COLUMNS} | {
        "state": value.state.value,
        "working": value.working.value,
        "problem": None if value.problem is None else msgspec.json.encode(value.problem).decode(),
        "steps": msgspec.json.encode(value.steps).decode(),
        "active": None if value.state.ended else 1,
    }


def find_network_function(executor: Executor, nf_instance_id: str) -> NetworkFunction | None:
    row = executor.execute(_NETWORK_FUNCTION, {"id": nf_instance_id}).one_or_none()
    return None if row is None else network_function_of(row)


def find_enrolment(executor: Executor, enrolment_id: str) -> Enrolment | None:
    row = executor.execute(_ENROLMENT, {"id": enrolment_id}).one_or_none()
    return None if row is None else enrolment_of(row)


def write_enrolment(tx: Transaction, value: Enrolment, epoch: int) -> Enrolment | None:
    """As written, under the next revision; None if the row's epoch is not ``epoch``: the lease is lost."""
    written = replace(value, revision=value.revision + 1)
    parameters = enrolment_values(written) | {"held_id": value.id, "held_epoch": epoch}
    return written if tx.execute(_WRITE, parameters).rowcount == 1 else None
