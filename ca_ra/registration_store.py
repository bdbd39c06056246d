"""Storage of end entities and registrations: each method one transaction or one read."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, union_all, update

from ca_ra.model import NewRegistration, Registered, Registration, RegistrationState
from ca_ra.rows import admit_key, find_registration, registration_of, void
from ca_ra.tables import certificate, end_entity, end_entity_fqdn, nf_statement, registration
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.idempotency import recall, remember
from nftrust.storage.tables import idempotency
from nftrust.storage.transaction import Executor
from nftrust.x509.names import NfIdentity

# Built once, as in issuance_store.
_NEXT_SEQUENCE = select(func.coalesce(func.max(registration.c.sequence), 0) + 1)
_NEW_REGISTRATION = insert(registration)
_FORGET = delete(idempotency).where(
    idempotency.c.scope == bindparam("scope"), idempotency.c.key == bindparam("request_id")
)
_END_ENTITY = select(end_entity).where(end_entity.c.nf_instance_id == bindparam("nf_instance_id"))
_NEW_END_ENTITY = insert(end_entity)
_STATEMENT_OWNER = select(nf_statement.c.request_key).where(nf_statement.c.nonce == bindparam("nonce"))
_NEW_STATEMENT = insert(nf_statement)
#: Whose these FQDNs are, and which others the NF has.
_FQDNS = union_all(
    select(end_entity_fqdn).where(end_entity_fqdn.c.fqdn.in_(bindparam("fqdns", expanding=True))),
    select(end_entity_fqdn).where(end_entity_fqdn.c.nf_instance_id == bindparam("nf_instance_id")),
)
_DROP_FQDNS = delete(end_entity_fqdn).where(end_entity_fqdn.c.nf_instance_id == bindparam("owner"))
_NEW_FQDN = insert(end_entity_fqdn)
_LIVE = select(registration).where(
    registration.c.nf_instance_id == bindparam("nf_instance_id"), registration.c.live == 1
)
_HELD = (
    select(certificate.c.serial)
    .where(
        certificate.c.nf_instance_id == bindparam("nf_instance_id"),
        certificate.c.confirm_time.is_not(None),
        certificate.c.not_after > bindparam("now"),
    )
    .limit(1)
)


class _StoredRegistration(msgspec.Struct, frozen=True):
    """What the idempotency row of a registration holds; never an IAK in clear."""

    registration_id: str
    enrolment_info: str


class SqlRegistrationStore:
    """Implements RegistrationStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def recall_registration(self, actor: str, request_id: str, request_sha256: bytes) -> Registered | None:
        return await self._store.read(lambda c: self._recall(c, actor, request_id, request_sha256))

    @staticmethod
    def _recall(executor: Executor, actor: str, request_id: str, request_sha256: bytes) -> Registered | None:
        stored = recall(executor, f"register:{actor}", request_id, request_sha256)
        if stored is None:
            return None
        answer = msgspec.msgpack.decode(stored, type=_StoredRegistration)
        known = find_registration(executor, answer.registration_id)
        assert known is not None
        return Registered(known, answer.enrolment_info)

    async def add_registration(self, new: NewRegistration) -> Registered | None:
        return await self._store.write(lambda tx: self._add(tx, new))

    def _add(self, tx: Transaction, new: NewRegistration) -> Registered | None:
        known = self._recall(tx, new.actor, new.request_id, new.request_sha256)
        if known is not None:
            unused = known.registration.state(tx.now) in (RegistrationState.OPEN, RegistrationState.EXPIRED)
            if new.registration.delivery_mode != "tls-only" or not unused:
                return known
            void(tx, known.registration, new.actor)  # a retry mints anew (security rule 8)
            tx.execute(_FORGET, {"scope": f"register:{new.actor}", "request_id": new.request_id})
        entity = new.registration.identity
        self._admit_end_entity(tx, new)
        self._admit_statement(tx, new)
        self._admit_fqdns(tx, entity, new.shared_fqdns)
        admit_key(tx, new.registration.transport_key_sha256, entity.nf_instance_id)
        self._supersede(tx, new)
        self._insert(tx, new)
        return None

    def _insert(self, tx: Transaction, new: NewRegistration) -> None:
        row = new.registration
        values = {
            "id": row.id,
            "sequence": tx.execute(_NEXT_SEQUENCE).scalar_one(),
            "reference": row.reference,
            "nf_instance_id": row.identity.nf_instance_id,
            "nf_type": row.identity.nf_type,
            "fqdns": " ".join(row.identity.fqdns),
            "tenant": row.tenant,
            "profile": row.profile,
            "delivery_mode": row.delivery_mode,
            "mac_algorithm": row.mac_algorithm,
            "transport_key_sha256": row.transport_key_sha256,
            "create_time": row.create_time,
            "expire_time": row.expire_time,
            "iak_blob": row.iak_blob,
            "row_mac": row.row_mac,
            "replaces_instance": row.replaces_instance,
            "live": 1,
        }
        tx.execute(_NEW_REGISTRATION, values)
        answer = msgspec.msgpack.encode(_StoredRegistration(row.id, new.enrolment_info))
        remember(tx, f"register:{new.actor}", new.request_id, new.request_sha256, answer)
        tx.audit(
            actor=new.actor,
            action="endentity.register",
            subject=row.name,
            detail={
                "nf_instance_id": row.identity.nf_instance_id,
                "nf_type": row.identity.nf_type,
                "fqdns": list(row.identity.fqdns),
                "tenant": row.tenant,
                "iak_delivery_mode": row.delivery_mode,
                "transport_key_sha256": row.transport_key_sha256.hex(),
            },
        )

    @staticmethod
    def _admit_end_entity(tx: Transaction, new: NewRegistration) -> None:
        identity = new.registration.identity
        row = tx.execute(_END_ENTITY, {"nf_instance_id": identity.nf_instance_id}).one_or_none()
        if row is None:
            values = {
                "nf_instance_id": identity.nf_instance_id,
                "tenant": new.registration.tenant,
                "nf_type": identity.nf_type,
                "create_time": tx.now,
            }
            tx.execute(_NEW_END_ENTITY, values)
            return
        if row.tenant != new.registration.tenant:
            raise NftrustError(Reason.OUT_OF_SCOPE, metadata={"field": "tenant"})
        if row.retire_time is not None:
            raise NftrustError(Reason.NF_RETIRED)
        if row.suspend_time is not None:
            raise NftrustError(Reason.END_ENTITY_SUSPENDED)
        if row.nf_type != identity.nf_type:
            tx.execute(
                update(end_entity)
                .where(end_entity.c.nf_instance_id == identity.nf_instance_id)
                .values(nf_type=identity.nf_type)
            )

    @staticmethod
    def _admit_statement(tx: Transaction, new: NewRegistration) -> None:
        key = f"{new.actor} {new.request_id}"
        owner = tx.execute(_STATEMENT_OWNER, {"nonce": new.statement_nonce}).scalar_one_or_none()
        if owner is None:
            tx.execute(_NEW_STATEMENT, {"nonce": new.statement_nonce, "request_key": key})
        elif owner != key:
            raise NftrustError(Reason.NF_STATEMENT_INVALID, "the statement has been used")

    @staticmethod
    def _admit_fqdns(tx: Transaction, identity: NfIdentity, shared: bool) -> None:
        """An FQDN belongs to one NF unless every holder's profile shares it (security rule 16)."""
        nf_instance_id, wanted = identity.nf_instance_id, {(name, shared) for name in identity.fqdns}
        present: set[tuple[str, bool]] = set()
        for row in tx.execute(_FQDNS, {"fqdns": list(identity.fqdns), "nf_instance_id": nf_instance_id}):
            if row.nf_instance_id == nf_instance_id:
                present.add((row.fqdn, row.shared))
            elif not (shared and row.shared):
                raise NftrustError(Reason.FQDN_TAKEN, metadata={"fqdn": row.fqdn})
        if present == wanted:
            return
        if present:
            tx.execute(_DROP_FQDNS, {"owner": nf_instance_id})
        values = [{"fqdn": name, "nf_instance_id": nf_instance_id, "shared": shared} for name in identity.fqdns]
        tx.execute(_NEW_FQDN, values)

    def _supersede(self, tx: Transaction, new: NewRegistration) -> None:
        """One live registration per NF; a further certificate only where OAM allows it."""
        nf_instance_id = new.registration.identity.nf_instance_id
        row = tx.execute(_LIVE, {"nf_instance_id": nf_instance_id}).one_or_none()
        if row is not None:
            live = registration_of(row)
            state = live.state(tx.now)
            if state is RegistrationState.OPEN or (state is RegistrationState.ISSUED and not new.allow_re_enrolment):
                raise NftrustError(Reason.REGISTRATION_OPEN)
            void(tx, live, new.actor)
        if new.allow_re_enrolment:
            return
        held = tx.execute(_HELD, {"nf_instance_id": nf_instance_id, "now": tx.now}).scalar_one_or_none()
        if held is not None:
            raise NftrustError(Reason.ALREADY_ENROLLED)

    async def get_registration(self, registration_id: str) -> Registration | None:
        return await self._store.read(lambda c: find_registration(c, registration_id))

    async def list_registrations(
        self, nf_instance_id: str | None, tenants: tuple[str, ...], limit: int, before: int | None
    ) -> list[tuple[int, Registration]]:
        statement = select(registration).order_by(registration.c.sequence.desc()).limit(limit)
        if nf_instance_id is not None:
            statement = statement.where(registration.c.nf_instance_id == nf_instance_id)
        if "*" not in tenants:
            statement = statement.where(registration.c.tenant.in_(tenants))
        if before is not None:
            statement = statement.where(registration.c.sequence < before)
        return await self._store.read(
            lambda c: [(row.sequence, registration_of(row)) for row in c.execute(statement).all()]
        )

    async def revoke_registration(self, registration_id: str, actor: str) -> Registration:
        """Void it and destroy its IAK; revoked ones stay as they are.

        Raises NftrustError(REGISTRATION_NOT_FOUND, REGISTRATION_ENDED).
        """

        def work(tx: Transaction) -> Registration:
            known = find_registration(tx, registration_id)
            if known is None:
                raise NftrustError(Reason.REGISTRATION_NOT_FOUND)
            if known.confirm_time is not None:
                raise NftrustError(Reason.REGISTRATION_ENDED)
            if known.revoke_time is None:
                void(tx, known, actor)
            voided = find_registration(tx, registration_id)
            assert voided is not None
            return voided

        return await self._store.write(work)

    async def reinstate(self, nf_instance_id: str, tenants: tuple[str, ...], actor: str) -> None:
        """Lift a suspension. Raises NftrustError(END_ENTITY_NOT_FOUND)."""

        def work(tx: Transaction) -> None:
            row = tx.execute(select(end_entity).where(end_entity.c.nf_instance_id == nf_instance_id)).one_or_none()
            if row is None or ("*" not in tenants and row.tenant not in tenants):
                raise NftrustError(Reason.END_ENTITY_NOT_FOUND)
            if row.suspend_time is not None:
                tx.execute(
                    update(end_entity).where(end_entity.c.nf_instance_id == nf_instance_id).values(suspend_time=None)
                )
                tx.audit(actor=actor, action="endentity.reinstate", subject=f"endEntities/{nf_instance_id}")

        await self._store.write(work)
