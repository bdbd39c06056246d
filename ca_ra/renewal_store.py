"""Storage of renewals: each method one transaction or one read.

As in issuance_store a unit of work returns its outcome, and the refusal is
raised after the commit: what it leaves behind is not rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, select

from ca_ra.issuance_store import response_to
from ca_ra.model import Issuance, IssuedCertificate
from ca_ra.renewal import Renewable
from ca_ra.renewal_rows import enrolled_since, successor_of
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
    revoke_all,
    suspend,
)
from ca_ra.tables import certificate
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Store, Transaction
from nftrust.storage.idempotency import remember
from nftrust.storage.transaction import Executor
from nftrust.x509.crl import RevocationReason

_BY_HASH = select(certificate).where(certificate.c.sha256 == bindparam("sha256"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no successor; ``theft`` where that is a signal of it."""

    reason: Reason
    theft: bool = False


_THEFT = Refusal(Reason.CERTIFICATE_SUPERSEDED, theft=True)


class SqlRenewalStore:
    """Implements RenewalStore on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find_renewable(self, sha256: bytes, request_sha256: bytes) -> Renewable | None:
        def work(executor: Executor) -> Renewable | None:
            row = executor.execute(_BY_HASH, {"sha256": sha256}).one_or_none()
            if row is None:
                return None
            known = find_registration(executor, row.registration_id)
            assert known is not None
            stored = response_to(executor, f"renew:{row.serial}", request_sha256)
            return Renewable(certificate=certificate_of(row), registration=known, response=stored)

        return await self._store.look_up(work)

    async def admit(self, old: IssuedCertificate, spki_sha256: bytes) -> IssuedCertificate | None:
        outcome = await self._store.look_up(lambda executor: _judge(executor, old, spki_sha256))
        if outcome == _THEFT:  # what it leaves behind has to be written
            outcome = await self._store.write(lambda tx: _freeze(tx, old, _judge(tx, old, spki_sha256)))
        if isinstance(outcome, Refusal):
            raise NftrustError(outcome.reason)
        return outcome

    async def record_renewal(self, issuance: Issuance) -> bytes | IssuedCertificate:
        outcome = await self._store.write(lambda tx: _renew(tx, issuance))
        if isinstance(outcome, Refusal):
            raise NftrustError(outcome.reason)
        return outcome


def _judge(executor: Executor, old: IssuedCertificate, spki_sha256: bytes) -> IssuedCertificate | Refusal | None:
    """Check R7: why there is no successor for this key; or the one that there is; None: there may be one."""
    shut = closed(executor, old.nf_instance_id)
    if shut is not None:
        return Refusal(shut)
    if is_revoked(executor, old.serial):
        return Refusal(Reason.CERTIFICATE_REVOKED)
    current = find_certificate(executor, old.serial)
    known = find_registration(executor, old.registration_id)
    assert current is not None
    assert known is not None
    if current.confirm_time is None:
        return Refusal(Reason.CERTIFICATE_UNCONFIRMED)
    successor = successor_of(executor, old.serial)
    if successor is not None:
        return successor if successor.spki_sha256 == spki_sha256 else _THEFT
    if enrolled_since(executor, known):
        return Refusal(Reason.CERTIFICATE_SUPERSEDED)
    owner = key_owners(executor, [spki_sha256]).get(spki_sha256)
    if owner is not None:
        return Refusal(Reason.CERTIFICATE_KEY_REUSED if owner == old.nf_instance_id else Reason.KEY_TAKEN)
    return None


def _freeze(
    tx: Transaction, old: IssuedCertificate, outcome: IssuedCertificate | Refusal | None
) -> IssuedCertificate | Refusal | None:
    """A second successor is a theft signal: two parties prove the same key (security rule 13)."""
    if outcome == _THEFT:
        suspend(tx, old.nf_instance_id, {"cause": "a second successor of a certificate", "certificate": old.name})
        # Nobody knows which of the two is the NF: what either holds must not be relied on.
        revoke_all(tx, old.nf_instance_id, RevocationReason.KEY_COMPROMISE, ACTOR)
    return outcome


def _renew(tx: Transaction, issuance: Issuance) -> bytes | IssuedCertificate | Refusal:
    new = issuance.certificate
    assert new.predecessor is not None
    old = find_certificate(tx, new.predecessor)
    assert old is not None
    stored = response_to(tx, f"renew:{old.serial}", issuance.request_sha256)
    if stored is not None:
        return stored
    outcome = _freeze(tx, old, _judge(tx, old, new.spki_sha256))
    if outcome is not None:
        return outcome
    if tx.now >= old.not_after:
        return Refusal(Reason.CERTIFICATE_EXPIRED)
    add_keys(tx, {new.spki_sha256: new.nf_instance_id})  # nobody's, as _judge has seen
    insert_certificates(tx, [new])
    remember(tx, f"renew:{old.serial}", issuance.request_id, issuance.request_sha256, issuance.response)
    tx.audit(
        actor=f"urn:uuid:{new.nf_instance_id}",
        action="certificate.renew",
        subject=new.name,
        detail={
            "predecessor": old.name,
            "sha256": new.sha256.hex(),
            "spki_sha256": new.spki_sha256.hex(),
            "not_after": new.not_after.isoformat(),
        },
    )
    return issuance.response
