"""Storage of certificates: each method one transaction or one read.

A unit of work returns its outcome and the refusal is raised after the commit,
so that what a refusal has to leave behind (a suspension) is not rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn

from sqlalchemy import Row, Table, bindparam, func, literal, select, update

from ca_ra.model import Issuance, IssuedCertificate, Registration, RegistrationState
from ca_ra.renewal_rows import complete_renewal
from ca_ra.rows import (
    ACTOR,
    add_keys,
    certificate_of,
    closed,
    find_certificate,
    find_registration,
    insert_certificates,
    is_revoked,
    key_owners,
    registration_of,
    revoke,
    revoke_all,
    suspend,
    why_closed,
)
from ca_ra.tables import certificate, end_entity, registration, revocation
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.idempotency import Answer, recall, remember, remember_all
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
#: All that decides whether registrations may lead to a certificate, but for the key.
_CLAIMS = (
    select(
        registration,
        certificate.c.serial.label("spent_on"),
        end_entity.c.suspend_time,
        end_entity.c.retire_time,
    )
    .join(end_entity, end_entity.c.nf_instance_id == registration.c.nf_instance_id)
    .outerjoin(certificate, (certificate.c.registration_id == registration.c.id) & certificate.c.predecessor.is_(None))
    .where(registration.c.id.in_(bindparam("ids", expanding=True)))
)
_SPEND = (
    update(registration)
    .where(registration.c.id == bindparam("registration_id"))
    .values(certificate_serial=bindparam("serial"), issue_time=bindparam("now"))
)
_CLOSED = {RegistrationState.REVOKED: Reason.IAK_REVOKED, RegistrationState.EXPIRED: Reason.IAK_EXPIRED}


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
        outcome = await self._store.write_alike(self._issue, issuance)
        if isinstance(outcome, NftrustError):
            raise outcome
        return outcome

    def _issue(self, tx: Transaction, items: Sequence[Issuance]) -> Sequence[bytes | NftrustError]:
        """Decide, then write what was decided in one statement for each table.

        What meets another of its batch, by registration or key, is decided after that one is written.
        """
        ids = {item.certificate.registration_id for item in items}
        claims = {row.id: row for row in tx.execute(_CLAIMS, {"ids": list(ids)})}
        owners = key_owners(tx, {item.certificate.spki_sha256 for item in items})
        outcomes: dict[int, bytes | NftrustError] = {}
        admitted: dict[bytes, Issuance] = {}
        for place, item in enumerate(items):
            new = item.certificate
            if place and (new.registration_id not in claims or new.spki_sha256 in admitted):
                continue
            refusal = self._refusal(tx, claims.pop(new.registration_id), item, owners.get(new.spki_sha256))
            outcomes[place] = refusal or item.response
            if refusal is None:
                admitted[new.spki_sha256] = item
        self._write(tx, admitted, owners)
        return [outcomes.get(place) or self._issue(tx, [item])[0] for place, item in enumerate(items)]

    def _refusal(
        self, tx: Transaction, claim: Row[Any], issuance: Issuance, key_owner: str | None
    ) -> bytes | NftrustError | None:
        """Why nothing is issued, or what was issued before to the very same request."""
        known, new = registration_of(claim), issuance.certificate
        # The certificate's row says whether the IAK is spent, not the column (security rule 7).
        if claim.spent_on is not None:
            stored = response_to(tx, f"enrol:{known.id}", issuance.request_sha256)
            return stored if stored is not None else self._spent(tx, known, issuance.request_id, new.spki_sha256)
        reason = _CLOSED.get(known.state(tx.now)) or why_closed(claim)
        if reason is None and key_owner not in (None, new.nf_instance_id):
            reason = Reason.KEY_TAKEN
        return None if reason is None else NftrustError(reason)

    @staticmethod
    def _write(tx: Transaction, admitted: Mapping[bytes, Issuance], owners: Mapping[bytes, str]) -> None:
        if not admitted:
            return
        certificates = [item.certificate for item in admitted.values()]
        add_keys(tx, {key: item.certificate.nf_instance_id for key, item in admitted.items() if key not in owners})
        insert_certificates(tx, certificates)
        spent = [{"registration_id": new.registration_id, "serial": new.serial, "now": tx.now} for new in certificates]
        tx.execute(_SPEND, spent)
        remember_all(
            tx,
            [
                Answer(f"enrol:{item.certificate.registration_id}", item.request_id, item.request_sha256, item.response)
                for item in admitted.values()
            ],
        )
        for new in certificates:
            tx.audit(
                actor=f"urn:uuid:{new.nf_instance_id}",
                action="certificate.issue",
                subject=new.name,
                detail={
                    "registration": f"registrations/{new.registration_id}",
                    "sha256": new.sha256.hex(),
                    "spki_sha256": new.spki_sha256.hex(),
                    "not_after": new.not_after.isoformat(),
                },
            )

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
            if known.replaces_instance:
                revoke_all(tx, confirmed.nf_instance_id, RevocationReason.SUPERSEDED, ACTOR, but=confirmed.serial)
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
