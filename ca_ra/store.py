"""The CA/RA's storage: each method one transaction or one read (ports in ``ca_ra.model``).

Units of work return an outcome and the refusal is raised after the commit, so
that what a refusal has to leave behind (a suspension) is not rolled back.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, NoReturn

import msgspec
from sqlalchemy import Row, func, select, update

from ca_ra.model import (
    Issuance,
    IssuedCertificate,
    NewRegistration,
    Registered,
    Registration,
    RegistrationState,
)
from ca_ra.tables import certificate, crl, end_entity, end_entity_fqdn, end_entity_key, nf_statement, registration
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.idempotency import recall, remember
from nftrust.storage.tables import idempotency
from nftrust.storage.transaction import Executor
from nftrust.x509.names import NfIdentity

log = logging.getLogger("ca_ra.store")

ACTOR = "urn:nftrust:ca-ra"


def _registration(row: Row[Any]) -> Registration:
    return Registration(
        id=row.id,
        reference=row.reference,
        identity=NfIdentity(row.nf_instance_id, row.nf_type, tuple(row.fqdns.split(" "))),
        tenant=row.tenant,
        profile=row.profile,
        delivery_mode=row.delivery_mode,
        mac_algorithm=row.mac_algorithm,
        transport_key_sha256=bytes(row.transport_key_sha256),
        create_time=row.create_time,
        expire_time=row.expire_time,
        iak_blob=None if row.iak_blob is None else bytes(row.iak_blob),
        row_mac=bytes(row.row_mac),
        certificate_serial=row.certificate_serial,
        issue_time=row.issue_time,
        confirm_time=row.confirm_time,
        revoke_time=row.revoke_time,
    )


def _certificate(row: Row[Any]) -> IssuedCertificate:
    return IssuedCertificate(
        serial=row.serial,
        registration_id=row.registration_id,
        nf_instance_id=row.nf_instance_id,
        tenant=row.tenant,
        der=bytes(row.der),
        sha256=bytes(row.sha256),
        spki_sha256=bytes(row.spki_sha256),
        not_before=row.not_before,
        not_after=row.not_after,
        create_time=row.create_time,
        confirm_time=row.confirm_time,
    )


def _by_id(executor: Executor, registration_id: str) -> Registration | None:
    row = executor.execute(select(registration).where(registration.c.id == registration_id)).one_or_none()
    return None if row is None else _registration(row)


def _suspended(executor: Executor, nf_instance_id: str) -> bool:
    statement = select(end_entity.c.suspend_time).where(end_entity.c.nf_instance_id == nf_instance_id)
    return executor.execute(statement).scalar_one_or_none() is not None


class _StoredRegistration(msgspec.Struct, frozen=True):
    """What the idempotency row of a registration holds; never an IAK in clear."""

    registration_id: str
    enrolment_info: str


class SqlCaStore:
    """Implements RegistrationStore and EnrolmentStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Registration

    async def recall_registration(self, actor: str, request_id: str, request_sha256: bytes) -> Registered | None:
        return await self._store.read(lambda c: self._recall(c, actor, request_id, request_sha256))

    @staticmethod
    def _recall(executor: Executor, actor: str, request_id: str, request_sha256: bytes) -> Registered | None:
        stored = recall(executor, f"register:{actor}", request_id, request_sha256)
        if stored is None:
            return None
        answer = msgspec.msgpack.decode(stored, type=_StoredRegistration)
        known = _by_id(executor, answer.registration_id)
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
            self._void(tx, known.registration, new.actor)  # a retry mints anew (security rule 8)
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
        sequence = tx.execute(select(func.coalesce(func.max(registration.c.sequence), 0) + 1)).scalar_one()
        tx.execute(
            registration.insert().values(
                id=row.id,
                sequence=sequence,
                reference=row.reference,
                nf_instance_id=row.identity.nf_instance_id,
                nf_type=row.identity.nf_type,
                fqdns=" ".join(row.identity.fqdns),
                tenant=row.tenant,
                profile=row.profile,
                delivery_mode=row.delivery_mode,
                mac_algorithm=row.mac_algorithm,
                transport_key_sha256=row.transport_key_sha256,
                create_time=row.create_time,
                expire_time=row.expire_time,
                iak_blob=row.iak_blob,
                row_mac=row.row_mac,
                live=1,
            )
        )
        answer = msgspec.msgpack.encode(_StoredRegistration(row.id, new.enrolment_info))
        tx.execute(
            idempotency.delete().where(
                idempotency.c.scope == f"register:{new.actor}", idempotency.c.key == new.request_id
            )
        )
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
        row = tx.execute(select(end_entity).where(end_entity.c.nf_instance_id == identity.nf_instance_id)).one_or_none()
        if row is None:
            tx.execute(
                end_entity.insert().values(
                    nf_instance_id=identity.nf_instance_id,
                    tenant=new.registration.tenant,
                    nf_type=identity.nf_type,
                    create_time=tx.now,
                )
            )
            return
        if row.tenant != new.registration.tenant:
            raise NftrustError(Reason.OUT_OF_SCOPE, metadata={"field": "tenant"})
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
        tx.execute(
            tx.insert(nf_statement)
            .values(nonce=new.statement_nonce, request_key=key)
            .on_conflict_do_nothing(index_elements=[nf_statement.c.nonce])
        )
        owner = tx.execute(select(nf_statement.c.request_key).where(nf_statement.c.nonce == new.statement_nonce))
        if owner.scalar_one() != key:
            raise NftrustError(Reason.NF_STATEMENT_INVALID, "the statement has been used")

    @staticmethod
    def _admit_fqdns(tx: Transaction, identity: NfIdentity, shared: bool) -> None:
        """An FQDN belongs to one NF unless every holder's profile shares it (security rule 16)."""
        others = select(end_entity_fqdn.c.fqdn).where(
            end_entity_fqdn.c.fqdn.in_(identity.fqdns), end_entity_fqdn.c.nf_instance_id != identity.nf_instance_id
        )
        if shared:
            others = others.where(end_entity_fqdn.c.shared.is_(False))
        taken = tx.execute(others.limit(1)).scalar_one_or_none()
        if taken is not None:
            raise NftrustError(Reason.FQDN_TAKEN, metadata={"fqdn": taken})
        tx.execute(end_entity_fqdn.delete().where(end_entity_fqdn.c.nf_instance_id == identity.nf_instance_id))
        tx.execute(
            end_entity_fqdn.insert(),
            [{"fqdn": name, "nf_instance_id": identity.nf_instance_id, "shared": shared} for name in identity.fqdns],
        )

    def _supersede(self, tx: Transaction, new: NewRegistration) -> None:
        """One live registration per NF; a further certificate only where OAM allows it."""
        nf_instance_id = new.registration.identity.nf_instance_id
        row = tx.execute(
            select(registration).where(registration.c.nf_instance_id == nf_instance_id, registration.c.live == 1)
        ).one_or_none()
        if row is not None:
            live = _registration(row)
            state = live.state(tx.now)
            if state is RegistrationState.OPEN or (state is RegistrationState.ISSUED and not new.allow_re_enrolment):
                raise NftrustError(Reason.REGISTRATION_OPEN)
            self._void(tx, live, new.actor)
        if new.allow_re_enrolment:
            return
        held = select(certificate.c.serial).where(
            certificate.c.nf_instance_id == nf_instance_id,
            certificate.c.confirm_time.is_not(None),
            certificate.c.not_after > tx.now,
        )
        if tx.execute(held.limit(1)).scalar_one_or_none() is not None:
            raise NftrustError(Reason.ALREADY_ENROLLED)

    @staticmethod
    def _void(tx: Transaction, old: Registration, actor: str) -> None:
        tx.execute(
            update(registration).where(registration.c.id == old.id).values(live=None, iak_blob=None, revoke_time=tx.now)
        )
        tx.audit(actor=actor, action="registration.revoke", subject=old.name)

    async def get_registration(self, registration_id: str) -> Registration | None:
        return await self._store.read(lambda c: _by_id(c, registration_id))

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
            lambda c: [(row.sequence, _registration(row)) for row in c.execute(statement).all()]
        )

    async def revoke_registration(self, registration_id: str, actor: str) -> Registration:
        """Void it and destroy its IAK; revoked ones stay as they are.

        Raises NftrustError(REGISTRATION_NOT_FOUND, REGISTRATION_ENDED).
        """

        def work(tx: Transaction) -> Registration:
            known = _by_id(tx, registration_id)
            if known is None:
                raise NftrustError(Reason.REGISTRATION_NOT_FOUND)
            if known.confirm_time is not None:
                raise NftrustError(Reason.REGISTRATION_ENDED)
            if known.revoke_time is None:
                self._void(tx, known, actor)
            voided = _by_id(tx, registration_id)
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

    # Enrolment

    async def find_by_reference(self, reference: str) -> Registration | None:
        statement = select(registration).where(registration.c.reference == reference)

        def work(executor: Executor) -> Registration | None:
            row = executor.execute(statement).one_or_none()
            return None if row is None else _registration(row)

        return await self._store.read(work)

    async def recall_response(self, scope: str, request_sha256: bytes) -> bytes | None:
        statement = select(idempotency.c.response).where(
            idempotency.c.scope == scope, idempotency.c.request_sha256 == request_sha256
        )

        def work(executor: Executor) -> bytes | None:
            response = executor.execute(statement).scalar_one_or_none()
            return None if response is None else bytes(response)

        return await self._store.read(work)

    async def record_issuance(self, issuance: Issuance) -> bytes:
        outcome = await self._store.write(lambda tx: self._issue(tx, issuance))
        if isinstance(outcome, NftrustError):
            raise outcome
        return outcome

    def _issue(self, tx: Transaction, issuance: Issuance) -> bytes | NftrustError:
        new = issuance.certificate
        known = _by_id(tx, new.registration_id)
        assert known is not None
        if known.certificate_serial is not None:
            scope = f"enrol:{known.id}"
            stored = tx.execute(
                select(idempotency.c.response).where(
                    idempotency.c.scope == scope, idempotency.c.request_sha256 == issuance.request_sha256
                )
            ).scalar_one_or_none()
            return bytes(stored) if stored is not None else self._spent(tx, known, issuance.request_id, new.spki_sha256)
        refusal = {
            RegistrationState.REVOKED: Reason.IAK_REVOKED,
            RegistrationState.EXPIRED: Reason.IAK_EXPIRED,
        }.get(known.state(tx.now))
        if refusal is not None:
            return NftrustError(refusal)
        if _suspended(tx, new.nf_instance_id):
            return NftrustError(Reason.END_ENTITY_SUSPENDED)
        admit_key(tx, new.spki_sha256, new.nf_instance_id)
        self._insert_certificate(tx, new)
        remember(tx, f"enrol:{known.id}", issuance.request_id, issuance.request_sha256, issuance.response)
        tx.audit(
            actor=f"urn:uuid:{new.nf_instance_id}",
            action="certificate.issue",
            subject=new.name,
            detail={
                "registration": known.name,
                "sha256": new.sha256.hex(),
                "spki_sha256": new.spki_sha256.hex(),
                "not_after": new.not_after.isoformat(),
            },
        )
        return issuance.response

    @staticmethod
    def _insert_certificate(tx: Transaction, new: IssuedCertificate) -> None:
        sequence = tx.execute(select(func.coalesce(func.max(certificate.c.sequence), 0) + 1)).scalar_one()
        tx.execute(
            certificate.insert().values(
                serial=new.serial,
                sequence=sequence,
                registration_id=new.registration_id,
                nf_instance_id=new.nf_instance_id,
                tenant=new.tenant,
                der=new.der,
                sha256=new.sha256,
                spki_sha256=new.spki_sha256,
                not_before=new.not_before,
                not_after=new.not_after,
                create_time=new.create_time,
            )
        )
        tx.execute(
            update(registration)
            .where(registration.c.id == new.registration_id)
            .values(certificate_serial=new.serial, issue_time=tx.now)
        )

    async def refuse_spent(self, registration_id: str, request_id: str, spki_sha256: bytes) -> NoReturn:
        def work(tx: Transaction) -> NftrustError:
            known = _by_id(tx, registration_id)
            assert known is not None
            return self._spent(tx, known, request_id, spki_sha256)

        raise await self._store.write(work)

    @staticmethod
    def _spent(tx: Transaction, known: Registration, request_id: str, spki_sha256: bytes) -> NftrustError:
        """Another key with a valid proof on a spent IAK is a theft signal (security rule 13)."""
        issued = tx.execute(
            select(certificate.c.spki_sha256).where(certificate.c.registration_id == known.id)
        ).scalar_one()
        nf_instance_id = known.identity.nf_instance_id
        if bytes(issued) != spki_sha256 and not _suspended(tx, nf_instance_id):
            tx.execute(
                update(end_entity).where(end_entity.c.nf_instance_id == nf_instance_id).values(suspend_time=tx.now)
            )
            log.error("theft signal: NF suspended", extra={"nf_instance_id": nf_instance_id})
            tx.audit(
                actor=ACTOR,
                action="endentity.suspend",
                subject=f"endEntities/{nf_instance_id}",
                detail={"cause": "another key on a spent IAK", "registration": known.name},
            )
        same_id = tx.execute(
            select(idempotency.c.key).where(idempotency.c.scope == f"enrol:{known.id}", idempotency.c.key == request_id)
        ).scalar_one_or_none()
        return NftrustError(Reason.REQUEST_ID_REUSED if same_id is not None else Reason.IAK_USED)

    async def find_certificate(self, sha256: bytes) -> tuple[IssuedCertificate, Registration] | None:
        statement = select(certificate).where(certificate.c.sha256 == sha256)

        def work(executor: Executor) -> tuple[IssuedCertificate, Registration] | None:
            row = executor.execute(statement).one_or_none()
            if row is None:
                return None
            known = _by_id(executor, row.registration_id)
            assert known is not None
            return _certificate(row), known

        return await self._store.read(work)

    async def record_confirmation(self, confirmed: IssuedCertificate, request_sha256: bytes, response: bytes) -> bytes:
        def work(tx: Transaction) -> bytes:
            known = _by_id(tx, confirmed.registration_id)
            assert known is not None
            scope = f"confirm:{known.id}"
            stored = recall(tx, scope, request_sha256.hex(), request_sha256)
            if stored is not None:
                return stored
            if known.revoke_time is not None:
                raise NftrustError(Reason.IAK_REVOKED)
            if _suspended(tx, confirmed.nf_instance_id):
                raise NftrustError(Reason.END_ENTITY_SUSPENDED)
            remember(tx, scope, request_sha256.hex(), request_sha256, response)
            if known.confirm_time is not None:
                return response
            tx.execute(
                update(registration)
                .where(registration.c.id == known.id)
                .values(confirm_time=tx.now, iak_blob=None, live=None)
            )
            tx.execute(update(certificate).where(certificate.c.serial == confirmed.serial).values(confirm_time=tx.now))
            tx.audit(actor=f"urn:uuid:{confirmed.nf_instance_id}", action="certificate.confirm", subject=confirmed.name)
            return response

        return await self._store.write(work)

    # Certificates and CRLs

    async def get_certificate(self, serial: str) -> IssuedCertificate | None:
        statement = select(certificate).where(certificate.c.serial == serial)

        def work(executor: Executor) -> IssuedCertificate | None:
            row = executor.execute(statement).one_or_none()
            return None if row is None else _certificate(row)

        return await self._store.read(work)

    async def list_certificates(
        self, nf_instance_id: str | None, tenants: tuple[str, ...], limit: int, before: int | None
    ) -> list[tuple[int, IssuedCertificate]]:
        statement = select(certificate).order_by(certificate.c.sequence.desc()).limit(limit)
        if nf_instance_id is not None:
            statement = statement.where(certificate.c.nf_instance_id == nf_instance_id)
        if "*" not in tenants:
            statement = statement.where(certificate.c.tenant.in_(tenants))
        if before is not None:
            statement = statement.where(certificate.c.sequence < before)
        return await self._store.read(
            lambda c: [(row.sequence, _certificate(row)) for row in c.execute(statement).all()]
        )

    async def count_certificates(self) -> int:
        return await self._store.read(
            lambda c: int(c.execute(select(func.coalesce(func.max(certificate.c.sequence), 0))).scalar_one())
        )

    async def latest_crl(self) -> tuple[int, bytes, datetime] | None:
        """Number, DER, next update."""
        statement = select(crl).order_by(crl.c.number.desc()).limit(1)

        def work(executor: Executor) -> tuple[int, bytes, datetime] | None:
            row = executor.execute(statement).one_or_none()
            return None if row is None else (row.number, bytes(row.der), row.next_update)

        return await self._store.read(work)

    async def add_crl(self, number: int, der: bytes, this_update: datetime, next_update: datetime) -> bool:
        """Publish; False where another front was first with this number."""

        def work(tx: Transaction) -> bool:
            added = tx.execute(
                tx.insert(crl)
                .values(number=number, der=der, this_update=this_update, next_update=next_update)
                .on_conflict_do_nothing(index_elements=[crl.c.number])
            )
            if added.rowcount != 1:
                return False
            tx.audit(actor=ACTOR, action="crl.publish", subject=f"crls/{number}")
            return True

        return await self._store.write(work)


def admit_key(tx: Transaction, spki_sha256: bytes, nf_instance_id: str) -> None:
    """A public key belongs to one NF only (security rule 3). Raises NftrustError(KEY_TAKEN)."""
    tx.execute(
        tx.insert(end_entity_key)
        .values(spki_sha256=spki_sha256, nf_instance_id=nf_instance_id)
        .on_conflict_do_nothing(index_elements=[end_entity_key.c.spki_sha256])
    )
    owner = tx.execute(select(end_entity_key.c.nf_instance_id).where(end_entity_key.c.spki_sha256 == spki_sha256))
    if owner.scalar_one() != nf_instance_id:
        raise NftrustError(Reason.KEY_TAKEN)
