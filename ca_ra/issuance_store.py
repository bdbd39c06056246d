"""Storage of certificates: each method one transaction or one read.

A unit of work returns its outcome and the refusal is raised after the commit,
so that what a refusal has to leave behind (a suspension) is not rolled back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NoReturn

from sqlalchemy import Table, bindparam, func, literal, select, update

from ca_ra.model import Issuance, IssuedCertificate, Registration, RegistrationState
from ca_ra.renewal_rows import complete_renewal
from ca_ra.rows import (
    ACTOR,
    admit_key,
    certificate_of,
    closed,
    find_certificate,
    find_registration,
    insert_certificate,
    is_revoked,
    registration_of,
    revoke,
    suspend,
    why_closed,
)
from ca_ra.tables import certificate, end_entity, end_entity_key, registration, revocation
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.idempotency import recall, remember
from nftrust.storage.tables import idempotency
from nftrust.storage.transaction import Executor
from nftrust.x509.crl import RevocationReason

# Built once: SQLAlchemy keeps a statement's cache key with the statement, and making it costs more than SQLite's work.
_BY_REFERENCE = (
    select(registration, idempotency.c.response)
    .outerjoin(
        idempotency,
        (idempotency.c.scope == literal("enrol:").concat(registration.c.id))
        & (idempotency.c.request_sha256 == bindparam("request_sha256")),
    )
    .where(registration.c.reference == bindparam("reference"))
)
_RESPONSE = select(idempotency.c.response).where(
    idempotency.c.scope == bindparam("scope"), idempotency.c.request_sha256 == bindparam("request_sha256")
)
#: All that decides whether a registration may lead to a certificate with this key.
_CLAIM = (
    select(
        registration,
        certificate.c.serial.label("spent_on"),
        end_entity.c.suspend_time,
        end_entity.c.retire_time,
        end_entity_key.c.nf_instance_id.label("key_owner"),
    )
    .join(end_entity, end_entity.c.nf_instance_id == registration.c.nf_instance_id)
    .outerjoin(certificate, (certificate.c.registration_id == registration.c.id) & certificate.c.predecessor.is_(None))
    .outerjoin(end_entity_key, end_entity_key.c.spki_sha256 == bindparam("spki_sha256"))
    .where(registration.c.id == bindparam("registration_id"))
)
_SPEND = (
    update(registration)
    .where(registration.c.id == bindparam("registration_id"))
    .values(certificate_serial=bindparam("serial"), issue_time=bindparam("now"))
)


def response_to(executor: Executor, scope: str, request_sha256: bytes) -> bytes | None:
    """The stored response to these very bytes."""
    response = executor.execute(_RESPONSE, {"scope": scope, "request_sha256": request_sha256}).scalar_one_or_none()
    return None if response is None else bytes(response)


class SqlIssuanceStore:
    """Implements EnrolmentStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find_redemption(self, reference: str, request_sha256: bytes) -> tuple[Registration, bytes | None] | None:
        def work(executor: Executor) -> tuple[Registration, bytes | None] | None:
            wanted = {"reference": reference, "request_sha256": request_sha256}
            row = executor.execute(_BY_REFERENCE, wanted).one_or_none()
            if row is None:
                return None
            return registration_of(row), None if row.response is None else bytes(row.response)

        return await self._store.look_up(work)

    async def recall_response(self, scope: str, request_sha256: bytes) -> bytes | None:
        return await self._store.look_up(lambda executor: response_to(executor, scope, request_sha256))

    async def record_issuance(self, issuance: Issuance) -> bytes:
        outcome = await self._store.write(lambda tx: self._issue(tx, issuance))
        if isinstance(outcome, NftrustError):
            raise outcome
        return outcome

    def _issue(self, tx: Transaction, issuance: Issuance) -> bytes | NftrustError:
        new = issuance.certificate
        row = tx.execute(_CLAIM, {"registration_id": new.registration_id, "spki_sha256": new.spki_sha256}).one()
        known = registration_of(row)
        # The certificate's row says whether the IAK is spent, not the column (security rule 7).
        if row.spent_on is not None:
            stored = response_to(tx, f"enrol:{known.id}", issuance.request_sha256)
            return stored if stored is not None else self._spent(tx, known, issuance.request_id, new.spki_sha256)
        refusal = {
            RegistrationState.REVOKED: Reason.IAK_REVOKED,
            RegistrationState.EXPIRED: Reason.IAK_EXPIRED,
        }.get(known.state(tx.now))
        if refusal is not None:
            return NftrustError(refusal)
        refusal = why_closed(row)
        if refusal is not None:
            return NftrustError(refusal)
        admit_key(tx, new.spki_sha256, new.nf_instance_id, row.key_owner)
        insert_certificate(tx, new)
        tx.execute(_SPEND, {"registration_id": known.id, "serial": new.serial, "now": tx.now})
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

    async def refuse_spent(self, registration_id: str, request_id: str, spki_sha256: bytes) -> NoReturn:
        def work(tx: Transaction) -> NftrustError:
            known = find_registration(tx, registration_id)
            assert known is not None
            return self._spent(tx, known, request_id, spki_sha256)

        raise await self._store.write(work)

    @staticmethod
    def _spent(tx: Transaction, known: Registration, request_id: str, spki_sha256: bytes) -> NftrustError:
        """Another key with a valid proof on a spent IAK is a theft signal (security rule 13)."""
        row = tx.execute(
            select(certificate).where(certificate.c.registration_id == known.id, certificate.c.predecessor.is_(None))
        ).one_or_none()
        if row is None:
            return NftrustError(Reason.STORED_ROW_TAMPERED, "the registration names a certificate that does not exist")
        issued = certificate_of(row)
        nf_instance_id = known.identity.nf_instance_id
        if issued.spki_sha256 != spki_sha256 and closed(tx, nf_instance_id) is None:
            suspend(tx, nf_instance_id, {"cause": "another key on a spent IAK", "registration": known.name})
            # Nobody knows which of the two is the NF: what the other one holds must not be relied on.
            if not is_revoked(tx, issued.serial) and issued.not_after > tx.now:
                revoke(tx, issued, RevocationReason.KEY_COMPROMISE, ACTOR)
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
            known = find_registration(executor, row.registration_id)
            assert known is not None
            return certificate_of(row), known

        return await self._store.read(work)

    async def record_confirmation(self, confirmed: IssuedCertificate, request_sha256: bytes, response: bytes) -> bytes:
        def work(tx: Transaction) -> bytes:
            known = find_registration(tx, confirmed.registration_id)
            assert known is not None
            scope = f"confirm:{known.id}"
            stored = recall(tx, scope, request_sha256.hex(), request_sha256)
            if stored is not None:
                return stored
            if is_revoked(tx, confirmed.serial):
                raise NftrustError(Reason.CERTIFICATE_REVOKED)
            if known.revoke_time is not None:
                raise NftrustError(Reason.IAK_REVOKED)
            refusal = closed(tx, confirmed.nf_instance_id)
            if refusal is not None:
                raise NftrustError(refusal)
            remember(tx, scope, request_sha256.hex(), request_sha256, response)
            if confirmed.predecessor is not None:
                complete_renewal(tx, confirmed)
                return response
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

    async def get_certificate(self, serial: str) -> IssuedCertificate | None:
        return await self._store.read(lambda c: find_certificate(c, serial))

    async def list_certificates(
        self,
        nf_instance_id: str | None,
        tenants: tuple[str, ...],
        limit: int,
        before: int | None,
        *,
        expire_before: datetime | None = None,
        exclude_revoked: bool = False,
    ) -> list[tuple[int, IssuedCertificate]]:
        """The newest first, with their sequence numbers."""
        statement = select(certificate).order_by(certificate.c.sequence.desc()).limit(limit)
        if nf_instance_id is not None:
            statement = statement.where(certificate.c.nf_instance_id == nf_instance_id)
        if "*" not in tenants:
            statement = statement.where(certificate.c.tenant.in_(tenants))
        if before is not None:
            statement = statement.where(certificate.c.sequence < before)
        if expire_before is not None:
            statement = statement.where(certificate.c.not_after < expire_before)
        if exclude_revoked:
            revoked = select(revocation.c.serial).where(revocation.c.serial == certificate.c.serial)
            statement = statement.where(~revoked.exists())
        return await self._store.read(
            lambda c: [(row.sequence, certificate_of(row)) for row in c.execute(statement).all()]
        )

    async def count_certificates(self) -> int:
        return await self._store.read(
            lambda c: int(c.execute(select(func.coalesce(func.max(certificate.c.sequence), 0))).scalar_one())
        )

    async def count_by_time_left(self, now: datetime) -> dict[str, int]:
        """Certificates that are not revoked, by what is left: expired, and within 7, 30, 90 days or more."""
        bounds = {"expired": now, **{f"{days}d": now + timedelta(days=days) for days in (7, 30, 90)}}

        def ending(table: Table) -> Any:
            counts = [func.count().filter(table.c.not_after <= bound) for bound in bounds.values()]
            return select(*counts, func.count()).select_from(table)

        def work(executor: Executor) -> list[int]:
            # Two scans of one index each; a look for each certificate among the revoked takes ten times as long.
            issued, revoked = (executor.execute(ending(table)).one() for table in (certificate, revocation))
            return [all_ - gone for all_, gone in zip(issued, revoked, strict=True)]

        row = await self._store.read(work)
        # Each band without those before it.
        return {name: row[place] - (row[place - 1] if place else 0) for place, name in enumerate([*bounds, "more"])}

    async def count_suspended(self) -> int:
        """NFs that are suspended after a theft signal (security rule 13)."""
        return await self._store.read(
            lambda c: int(c.execute(select(func.count(end_entity.c.suspend_time))).scalar_one())
        )
