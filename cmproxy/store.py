"""The CM proxy's storage of what OAM asks for: each method one transaction or one read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, func, select, update

from cmproxy import machine
from cmproxy.changes import Changes
from cmproxy.model import Claimed, Enrolment, NetworkFunction, ServiceState, Started, State
from cmproxy.rows import (
    enrolment_of,
    enrolment_values,
    find_enrolment,
    find_network_function,
    network_function_of,
    network_function_values,
    write_enrolment,
)
from cmproxy.tables import enrolment, network_function, network_function_fqdn
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Executor, Store, Transaction
from nftrust.storage.idempotency import recall, remember

_ACTIVE = select(enrolment.c.id).where(enrolment.c.nf_instance_id == bindparam("id"), enrolment.c.active == 1)
_NEXT_SEQUENCE = select(func.coalesce(func.max(enrolment.c.sequence), 0) + 1)
_INSERT = enrolment.insert()
_REVISIONS = select(enrolment.c.id, enrolment.c.revision).where(enrolment.c.id.in_(bindparam("ids", expanding=True)))


class SqlProxyStore:
    """Implements ProvisioningStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store, lease: timedelta, changes: Changes) -> None:
        self._store = store
        self._lease = lease
        self._changes = changes

    # Network functions

    async def create_network_function(
        self, nf: NetworkFunction, shared: bool, actor: str, request_id: str | None, request_sha256: bytes
    ) -> NetworkFunction:
        """Raises NftrustError(NF_ALREADY_EXISTS, FQDN_TAKEN, REQUEST_ID_REUSED)."""

        def work(tx: Transaction) -> NetworkFunction:
            scope = f"create:{actor}"
            known = find_network_function(tx, nf.nf_instance_id)
            if request_id is not None and recall(tx, scope, request_id, request_sha256) is not None and known:
                return known
            if known is not None:
                raise NftrustError(Reason.NF_ALREADY_EXISTS)
            tx.execute(network_function.insert().values(network_function_values(nf)))
            _take_fqdns(tx, nf, shared)
            if request_id is not None:
                remember(tx, scope, request_id, request_sha256, nf.name.encode())
            tx.audit(actor=actor, action="networkfunction.create", subject=nf.name, detail=_audit_detail(nf))
            return nf

        return await self._store.write(work)

    async def find_network_function(self, nf_instance_id: str) -> NetworkFunction | None:
        return await self._store.read(lambda c: find_network_function(c, nf_instance_id))

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
                .values(network_function_values(changed))
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

        def work(tx: Transaction) -> tuple[NetworkFunction, Enrolment | None]:
            known = find_network_function(tx, nf_instance_id)
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
                .values(network_function_values(retiring))
            )
            tx.audit(actor=actor, action="networkfunction.retire", subject=known.name)
            active = _active(tx, nf_instance_id)
            return retiring, None if active is None else _cancel(tx, active, actor)

        retiring, cancelled = await self._store.write(work)
        if cancelled is not None:
            self._changes.publish(cancelled)
        return retiring

    # Enrolments

    async def start_enrolment(
        self,
        nf_instance_id: str,
        begin: Callable[[NetworkFunction | None], Enrolment],
        actor: str,
        request_id: str | None,
        request_sha256: bytes,
        owner: str,
    ) -> Started:
        """Raises NftrustError(NF_RETIRED, ENROLMENT_ACTIVE, REQUEST_ID_REUSED) and what ``begin`` raises."""

        def work(tx: Transaction) -> Started:
            nf = find_network_function(tx, nf_instance_id)
            new = begin(nf)
            assert nf is not None  # else ``begin`` has raised
            scope = f"start:{actor}"
            if request_id is not None:
                stored = recall(tx, scope, request_id, request_sha256)
                known = None if stored is None else find_enrolment(tx, stored.decode())
                if known is not None:
                    return Started(known, None)
            if nf.service is not ServiceState.IN_SERVICE:
                raise NftrustError(Reason.NF_RETIRED)
            if _active(tx, nf_instance_id) is not None:
                raise NftrustError(Reason.ENROLMENT_ACTIVE)
            if owner:
                new = replace(new, epoch=1, next_time=tx.now + self._lease)
            _start(tx, new, owner, actor)
            if request_id is not None:
                remember(tx, scope, request_id, request_sha256, new.id.encode())
            return Started(new, Claimed(new, nf) if owner else None)

        return await self._store.write(work)

    async def reinstantiate(
        self,
        new: Enrolment,
        transport_key_sha256: bytes | None,
        actor: str,
        request_id: str | None,
        request_sha256: bytes,
    ) -> Enrolment:
        """Expect another transport key, or pin the next, and start; in place of an enrolment that is under way.

        Raises NftrustError(NF_NOT_FOUND, NF_RETIRED, REQUEST_ID_REUSED).
        """

        def work(tx: Transaction) -> tuple[Enrolment, Enrolment | None]:
            scope = f"reinstantiate:{actor}"
            if request_id is not None:
                stored = recall(tx, scope, request_id, request_sha256)
                known = None if stored is None else find_enrolment(tx, stored.decode())
                if known is not None:
                    return known, None
            nf = find_network_function(tx, new.nf_instance_id)
            if nf is None:
                raise NftrustError(Reason.NF_NOT_FOUND)
            if nf.service is not ServiceState.IN_SERVICE:
                raise NftrustError(Reason.NF_RETIRED)
            active = _active(tx, nf.nf_instance_id)
            cancelled = None if active is None else _cancel(tx, active, actor)
            _expect_key(tx, nf, transport_key_sha256, actor)
            _start(tx, new, "", actor)
            if request_id is not None:
                remember(tx, scope, request_id, request_sha256, new.id.encode())
            return new, cancelled

        started, cancelled = await self._store.write(work)
        if cancelled is not None:
            self._changes.publish(cancelled)
        return started

    async def find_enrolment(self, enrolment_id: str) -> Enrolment | None:
        return await self._store.read(lambda c: find_enrolment(c, enrolment_id))

    async def newer(self, known: Mapping[str, int]) -> list[Enrolment]:
        """Those of the enrolments that have gone beyond the revision given."""

        def work(executor: Executor) -> list[Enrolment]:
            rows = executor.execute(_REVISIONS, {"ids": list(known)}).all()
            found = [find_enrolment(executor, row.id) for row in rows if row.revision > known[row.id]]
            return [each for each in found if each is not None]

        return await self._store.read(work)

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
        return await self._store.read(
            lambda c: [(row.sequence, enrolment_of(row)) for row in c.execute(statement).all()]
        )

    async def count_by_state(self) -> dict[State, int]:
        """How many enrolments there are in each state that any is in."""
        statement = select(enrolment.c.state, func.count()).group_by(enrolment.c.state)
        return await self._store.read(lambda c: {State(state): count for state, count in c.execute(statement)})

    async def cancel_enrolment(self, enrolment_id: str, actor: str) -> Enrolment:
        """Raises NftrustError(ENROLMENT_NOT_FOUND, ENROLMENT_ENDED)."""

        cancelled = await self._store.write(lambda tx: _cancel(tx, enrolment_id, actor))
        self._changes.publish(cancelled)
        return cancelled


def _start(tx: Transaction, new: Enrolment, owner: str, actor: str) -> None:
    sequence = tx.execute(_NEXT_SEQUENCE).scalar_one()
    tx.execute(_INSERT, enrolment_values(new) | {"sequence": sequence, "owner": owner})
    detail = {"allow_re_enrolment": new.allow_re_enrolment, "replaces_instance": new.replaces_instance}
    tx.audit(actor=actor, action="enrolment.start", subject=new.name, detail=detail)


def _expect_key(tx: Transaction, nf: NetworkFunction, transport_key_sha256: bytes | None, actor: str) -> None:
    """OAM has spoken: this key, or the one that is seen first, in place of the one of before (security rule 2)."""
    changed = replace(
        nf,
        transport_key_sha256=transport_key_sha256,
        pinned_sha256=None,
        pin_on_first_contact=nf.pin_on_first_contact or transport_key_sha256 is None,
        version=nf.version + 1,
        update_time=tx.now,
    )
    tx.execute(
        update(network_function)
        .where(network_function.c.nf_instance_id == nf.nf_instance_id)
        .values(network_function_values(changed))
    )
    before = nf.expected_transport_key
    detail = {
        "before": "" if before is None else before.hex(),
        "transport_key_sha256": "" if transport_key_sha256 is None else transport_key_sha256.hex(),
    }
    tx.audit(actor=actor, action="networkfunction.reinstantiate", subject=nf.name, detail=detail)


def _cancel(tx: Transaction, enrolment_id: str, actor: str) -> Enrolment:
    known = find_enrolment(tx, enrolment_id)
    if known is None:
        raise NftrustError(Reason.ENROLMENT_NOT_FOUND)
    cancelled = write_enrolment(tx, machine.cancel(known, tx.now), known.epoch)
    assert cancelled is not None  # read in this transaction
    tx.audit(actor=actor, action="enrolment.cancel", subject=known.name)
    return cancelled


def _active(executor: Executor, nf_instance_id: str) -> str | None:
    """The id of the enrolment that has not ended."""
    active: str | None = executor.execute(_ACTIVE, {"id": nf_instance_id}).scalar_one_or_none()
    return active


def _require_idle(tx: Transaction, nf_instance_id: str, version: int) -> NetworkFunction:
    known = find_network_function(tx, nf_instance_id)
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
