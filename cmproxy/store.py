"""The CM proxy's storage: each method one transaction or one read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import Row, func, select, update

from cmproxy import machine
from cmproxy.model import Enrolment, NetworkFunction, Problem, ServiceState, State, Step
from cmproxy.tables import enrolment, network_function, network_function_fqdn
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Executor, Store, Transaction
from nftrust.storage.idempotency import recall, remember

_NF_COLUMNS = [column.name for column in network_function.columns]


def network_function_of(row: Row[Any]) -> NetworkFunction:
    """A row of the network function table as the domain sees it."""
    values = row._asdict()
    values["fqdns"] = tuple(row.fqdns.split(" "))
    return NetworkFunction(**values)


def _nf_values(nf: NetworkFunction) -> dict[str, Any]:
    return {name: getattr(nf, name) for name in _NF_COLUMNS} | {"fqdns": " ".join(nf.fqdns)}


def _enrolment(row: Row[Any]) -> Enrolment:
    values = row._asdict()
    for name in ("sequence", "owner", "active"):
        del values[name]
    return Enrolment(
        **values
        | {
            "state": State(row.state),
            "working": State(row.working),
            "problem": None if row.problem is None else msgspec.json.decode(row.problem, type=Problem),
            "steps": msgspec.json.decode(row.steps, type=tuple[Step, ...]),
        }
    )


def _enrolment_values(value: Enrolment) -> dict[str, Any]:
    names = (column.name for column in enrolment.columns if column.name not in ("sequence", "owner", "active"))
    return {name: getattr(value, name) for name in names} | {
        "state": value.state.value,
        "working": value.working.value,
        "problem": None if value.problem is None else msgspec.json.encode(value.problem).decode(),
        "steps": msgspec.json.encode(value.steps).decode(),
        "active": None if value.state.ended else 1,
    }


def _find_nf(executor: Executor, nf_instance_id: str) -> NetworkFunction | None:
    row = executor.execute(
        select(network_function).where(network_function.c.nf_instance_id == nf_instance_id)
    ).one_or_none()
    return None if row is None else network_function_of(row)


def _find(executor: Executor, enrolment_id: str) -> Enrolment | None:
    row = executor.execute(select(enrolment).where(enrolment.c.id == enrolment_id)).one_or_none()
    return None if row is None else _enrolment(row)


class SqlProxyStore:
    """Implements ProvisioningStore and EnrolmentLease on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store, lease: timedelta) -> None:
        self._store = store
        self._lease = lease
        self._watched: dict[str, asyncio.Event] = {}

    def change_of(self, enrolment_id: str) -> asyncio.Event:
        """Set at the next change that this process makes to the enrolment."""
        return self._watched.setdefault(enrolment_id, asyncio.Event())

    def _tell(self, enrolment_id: str) -> None:
        event = self._watched.pop(enrolment_id, None)
        if event is not None:
            event.set()

    # Network functions

    async def create_network_function(
        self, nf: NetworkFunction, shared: bool, actor: str, request_id: str | None, request_sha256: bytes
    ) -> NetworkFunction:
        """Raises NftrustError(NF_ALREADY_EXISTS, FQDN_TAKEN, REQUEST_ID_REUSED)."""

        def work(tx: Transaction) -> NetworkFunction:
            scope = f"create:{actor}"
            known = _find_nf(tx, nf.nf_instance_id)
            if request_id is not None and recall(tx, scope, request_id, request_sha256) is not None and known:
                return known
            if known is not None:
                raise NftrustError(Reason.NF_ALREADY_EXISTS)
            tx.execute(network_function.insert().values(_nf_values(nf)))
            _take_fqdns(tx, nf, shared)
            if request_id is not None:
                remember(tx, scope, request_id, request_sha256, nf.name.encode())
            tx.audit(actor=actor, action="networkfunction.create", subject=nf.name, detail=_audit_detail(nf))
            return nf

        return await self._store.write(work)

    async def find_network_function(self, nf_instance_id: str) -> NetworkFunction | None:
        return await self._store.read(lambda c: _find_nf(c, nf_instance_id))

    async def network_function(self, nf_instance_id: str) -> NetworkFunction:
        found = await self.find_network_function(nf_instance_id)
        if found is None:
            raise NftrustError(Reason.NF_NOT_FOUND)
        return found

    async def list_network_functions(
        self, tenants: tuple[str, ...], limit: int, after: str | None
    ) -> list[NetworkFunction]:
        statement = select(network_function).order_by(network_function.c.nf_instance_id).limit(limit)
        if "*" not in tenants:
            statement = statement.where(network_function.c.tenant.in_(tenants))
        if after is not None:
            statement = statement.where(network_function.c.nf_instance_id > after)
        return await self._store.read(lambda c: [network_function_of(row) for row in c.execute(statement).all()])

    async def update_network_function(
        self, nf: NetworkFunction, shared: bool, version: int, actor: str
    ) -> NetworkFunction:
        """Raises NftrustError(NF_NOT_FOUND, STALE_ETAG, ENROLMENT_ACTIVE, NF_RETIRED, FQDN_TAKEN)."""

        def work(tx: Transaction) -> NetworkFunction:
            known = _require_idle(tx, nf.nf_instance_id, version)
            if known.service is not ServiceState.IN_SERVICE:
                raise NftrustError(Reason.NF_RETIRED)
            changed = replace(nf, version=version + 1, update_time=tx.now)
            tx.execute(
                update(network_function)
                .where(network_function.c.nf_instance_id == nf.nf_instance_id)
                .values(_nf_values(changed))
            )
            _take_fqdns(tx, changed, shared)
            tx.audit(actor=actor, action="networkfunction.update", subject=nf.name, detail=_audit_detail(changed))
            return changed

        return await self._store.write(work)

    async def delete_network_function(self, nf_instance_id: str, version: int, actor: str) -> None:
        """Raises NftrustError(NF_NOT_FOUND, STALE_ETAG, ENROLMENT_ACTIVE, RETIREMENT_UNDER_WAY)."""

        def work(tx: Transaction) -> None:
            known = _require_idle(tx, nf_instance_id, version)
            if known.service is ServiceState.RETIRING:
                raise NftrustError(Reason.RETIREMENT_UNDER_WAY)  # the intention must not be forgotten
            tx.execute(network_function.delete().where(network_function.c.nf_instance_id == nf_instance_id))
            tx.audit(actor=actor, action="networkfunction.delete", subject=known.name)

        await self._store.write(work)

    async def retire_network_function(self, nf_instance_id: str, actor: str) -> NetworkFunction:
        """Note the intention and cancel the active enrolment; or find it noted. Raises NftrustError(NF_NOT_FOUND)."""

        def work(tx: Transaction) -> tuple[NetworkFunction, str | None]:
            known = _find_nf(tx, nf_instance_id)
            if known is None:
                raise NftrustError(Reason.NF_NOT_FOUND)
            if known.service is not ServiceState.IN_SERVICE:
                return known, None
            retiring = replace(
                known,
                version=known.version + 1,
                update_time=tx.now,
                retire_request_time=tx.now,
                retire_next_time=tx.now,
            )
            tx.execute(
                update(network_function)
                .where(network_function.c.nf_instance_id == nf_instance_id)
                .values(_nf_values(retiring))
            )
            tx.audit(actor=actor, action="networkfunction.retire", subject=known.name)
            active = _active(tx, nf_instance_id)
            if active is not None:
                _cancel(tx, active, actor)
            return retiring, active

        retiring, cancelled = await self._store.write(work)
        if cancelled is not None:
            self._tell(cancelled)
        return retiring

    # Enrolments

    async def start_enrolment(
        self, new: Enrolment, actor: str, request_id: str | None, request_sha256: bytes
    ) -> Enrolment:
        """Raises NftrustError(NF_NOT_FOUND, NF_RETIRED, ENROLMENT_ACTIVE, REQUEST_ID_REUSED)."""

        def work(tx: Transaction) -> Enrolment:
            scope = f"start:{actor}"
            if request_id is not None:
                stored = recall(tx, scope, request_id, request_sha256)
                known = None if stored is None else _find(tx, stored.decode())
                if known is not None:
                    return known
            nf = _find_nf(tx, new.nf_instance_id)
            if nf is None:
                raise NftrustError(Reason.NF_NOT_FOUND)
            if nf.service is not ServiceState.IN_SERVICE:
                raise NftrustError(Reason.NF_RETIRED)
            if _active(tx, new.nf_instance_id) is not None:
                raise NftrustError(Reason.ENROLMENT_ACTIVE)
            sequence = tx.execute(select(func.coalesce(func.max(enrolment.c.sequence), 0) + 1)).scalar_one()
            tx.execute(enrolment.insert().values(_enrolment_values(new) | {"sequence": sequence, "owner": ""}))
            if request_id is not None:
                remember(tx, scope, request_id, request_sha256, new.id.encode())
            tx.audit(
                actor=actor,
                action="enrolment.start",
                subject=new.name,
                detail={"allow_re_enrolment": new.allow_re_enrolment},
            )
            return new

        return await self._store.write(work)

    async def find_enrolment(self, enrolment_id: str) -> Enrolment | None:
        return await self._store.read(lambda c: _find(c, enrolment_id))

    async def list_enrolments(
        self, nf_instance_id: str | None, tenants: tuple[str, ...], limit: int, before: int | None
    ) -> list[tuple[int, Enrolment]]:
        statement = select(enrolment).order_by(enrolment.c.sequence.desc()).limit(limit)
        if nf_instance_id is not None:
            statement = statement.where(enrolment.c.nf_instance_id == nf_instance_id)
        if "*" not in tenants:
            statement = statement.where(enrolment.c.tenant.in_(tenants))
        if before is not None:
            statement = statement.where(enrolment.c.sequence < before)
        return await self._store.read(lambda c: [(row.sequence, _enrolment(row)) for row in c.execute(statement).all()])

    async def count_by_state(self) -> dict[State, int]:
        """How many enrolments there are in each state that any is in."""
        statement = select(enrolment.c.state, func.count()).group_by(enrolment.c.state)
        return await self._store.read(lambda c: {State(state): count for state, count in c.execute(statement)})

    async def cancel_enrolment(self, enrolment_id: str, actor: str) -> Enrolment:
        """Raises NftrustError(ENROLMENT_NOT_FOUND, ENROLMENT_ENDED)."""

        cancelled = await self._store.write(lambda tx: _cancel(tx, enrolment_id, actor))
        self._tell(enrolment_id)
        return cancelled

    # The runner's lease

    async def claim(self, owner: str, limit: int) -> list[Enrolment]:
        def work(tx: Transaction) -> list[Enrolment]:
            due = (
                select(enrolment.c.id)
                .where(enrolment.c.next_time <= tx.now)
                .order_by(enrolment.c.next_time)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            claimed = [row.id for row in tx.execute(due)]
            if not claimed:
                return []
            tx.execute(
                update(enrolment)
                .where(enrolment.c.id.in_(claimed))
                .values(owner=owner, next_time=tx.now + self._lease, epoch=enrolment.c.epoch + 1)
            )
            rows = tx.execute(select(enrolment).where(enrolment.c.id.in_(claimed)))
            return [_enrolment(row) for row in rows]

        earliest = select(func.min(enrolment.c.next_time)).where(enrolment.c.next_time.is_not(None))
        if await self._store.read(lambda c: c.execute(earliest).scalar_one_or_none()) is None:
            return []  # an idle proxy writes nothing
        return await self._store.write(work)

    async def renew(self, held: Enrolment) -> bool:
        def work(tx: Transaction) -> bool:
            renewed = tx.execute(
                update(enrolment)
                .where(enrolment.c.id == held.id, enrolment.c.epoch == held.epoch)
                .values(next_time=tx.now + self._lease)
            )
            return renewed.rowcount == 1

        return await self._store.write(work)

    async def save(self, held: Enrolment, *, hold: bool, pin: bytes | None = None) -> Enrolment | None:
        def work(tx: Transaction) -> Enrolment | None:
            current = tx.execute(select(enrolment.c.epoch).where(enrolment.c.id == held.id)).scalar_one_or_none()
            if current != held.epoch:
                return None
            if pin is not None:
                _pin(tx, held, pin)
            saved = _write(tx, replace(held, next_time=tx.now + self._lease) if hold else held)
            if saved.state.ended and not hold and not saved.cleanup:
                _audit_end(tx, saved)
            return saved

        saved = await self._store.write(work)
        self._tell(held.id)
        return saved

    async def release_all(self, owner: str) -> None:
        def work(tx: Transaction) -> None:
            tx.execute(
                update(enrolment)
                .where(enrolment.c.owner == owner, enrolment.c.next_time.is_not(None))
                .values(next_time=tx.now, epoch=enrolment.c.epoch + 1)
            )

        await self._store.write(work)


def _write(tx: Transaction, value: Enrolment) -> Enrolment:
    written = replace(value, revision=value.revision + 1)
    tx.execute(update(enrolment).where(enrolment.c.id == value.id).values(_enrolment_values(written)))
    return written


def _cancel(tx: Transaction, enrolment_id: str, actor: str) -> Enrolment:
    known = _find(tx, enrolment_id)
    if known is None:
        raise NftrustError(Reason.ENROLMENT_NOT_FOUND)
    cancelled = _write(tx, machine.cancel(known, tx.now))
    tx.audit(actor=actor, action="enrolment.cancel", subject=known.name)
    return cancelled


def _pin(tx: Transaction, held: Enrolment, pin: bytes) -> None:
    """Record the transport key of the first verified contact (security rule 2)."""
    tx.execute(
        update(network_function)
        .where(network_function.c.nf_instance_id == held.nf_instance_id)
        .values(pinned_sha256=pin, version=network_function.c.version + 1, update_time=tx.now)
    )
    tx.audit(
        actor="urn:nftrust:cm-proxy",
        action="networkfunction.pin",
        subject=f"networkFunctions/{held.nf_instance_id}",
        detail={"transport_key_sha256": pin.hex(), "enrolment": held.name},
    )


def _audit_end(tx: Transaction, saved: Enrolment) -> None:
    reason = "" if saved.problem is None else saved.problem.reason
    tx.audit(
        actor="urn:nftrust:cm-proxy",
        action=f"enrolment.{saved.state.value}",
        subject=saved.name,
        detail={"reason": reason, "registration": saved.registration, "certificate": saved.certificate},
    )


def _active(executor: Executor, nf_instance_id: str) -> str | None:
    """The id of the enrolment that has not ended."""
    statement = select(enrolment.c.id).where(enrolment.c.nf_instance_id == nf_instance_id, enrolment.c.active == 1)
    active: str | None = executor.execute(statement).scalar_one_or_none()
    return active


def _require_idle(tx: Transaction, nf_instance_id: str, version: int) -> NetworkFunction:
    known = _find_nf(tx, nf_instance_id)
    if known is None:
        raise NftrustError(Reason.NF_NOT_FOUND)
    if known.version != version:
        raise NftrustError(Reason.STALE_ETAG)
    if _active(tx, nf_instance_id) is not None:
        raise NftrustError(Reason.ENROLMENT_ACTIVE)
    return known


def _take_fqdns(tx: Transaction, nf: NetworkFunction, shared: bool) -> None:
    """An FQDN belongs to one NF unless every holder's profile shares it (security rule 16)."""
    names = network_function_fqdn
    others = select(names.c.fqdn).where(names.c.fqdn.in_(nf.fqdns), names.c.nf_instance_id != nf.nf_instance_id)
    if shared:
        others = others.where(names.c.shared.is_(False))
    taken = tx.execute(others.limit(1)).scalar_one_or_none()
    if taken is not None:
        raise NftrustError(Reason.FQDN_TAKEN, metadata={"fqdn": taken})
    tx.execute(names.delete().where(names.c.nf_instance_id == nf.nf_instance_id))
    tx.execute(
        names.insert(),
        [{"fqdn": name, "nf_instance_id": nf.nf_instance_id, "shared": shared} for name in nf.fqdns],
    )


def _audit_detail(nf: NetworkFunction) -> dict[str, Any]:
    provisioned = nf.transport_key_sha256
    return {
        "nf_type": nf.nf_type,
        "fqdns": list(nf.fqdns),
        "tenant": nf.tenant,
        "day0_root": nf.day0_root,
        "agent_endpoint": nf.agent_endpoint,
        "transport_key_sha256": "" if provisioned is None else provisioned.hex(),
        "iak_delivery_mode": nf.delivery_mode,
        "attestation_required": nf.attestation_required,
    }
