"""Rows of the CA/RA's tables as the domain sees them, and the look-ups that both stores share."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update

from ca_ra.model import IssuedCertificate, Registration, Revocation
from ca_ra.tables import certificate, end_entity, end_entity_key, registration, revocation
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Transaction
from nftrust.storage.transaction import Executor
from nftrust.x509.crl import RevocationReason
from nftrust.x509.names import NfIdentity

log = logging.getLogger("ca_ra.rows")

#: The CA/RA itself in its audit log.
ACTOR = "urn:nftrust:ca-ra"

# Built once, as in issuance_store.
_LAST_SEQUENCE = select(func.coalesce(func.max(certificate.c.sequence), 0))
_NEW_CERTIFICATE = insert(certificate)
_REGISTRATION = select(registration).where(registration.c.id == bindparam("id"))
_STANDING = select(end_entity.c.suspend_time, end_entity.c.retire_time).where(
    end_entity.c.nf_instance_id == bindparam("nf_instance_id")
)
_NEW_KEY = insert(end_entity_key)
_KEY_OWNERS = select(end_entity_key).where(end_entity_key.c.spki_sha256.in_(bindparam("keys", expanding=True)))


def registration_of(row: Row[Any]) -> Registration:
    """A row of the registration table as the domain sees it."""
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
        replaces_instance=bool(row.replaces_instance),
    )


def certificate_of(row: Row[Any]) -> IssuedCertificate:
    """A row of the certificate table as the domain sees it."""
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
        predecessor=row.predecessor,
        generation=row.generation,
    )


def certificate_row(new: IssuedCertificate, sequence: int) -> dict[str, Any]:
    """A new certificate as a row."""
    return {
        "serial": new.serial,
        "sequence": sequence,
        "registration_id": new.registration_id,
        "predecessor": new.predecessor,
        "nf_instance_id": new.nf_instance_id,
        "tenant": new.tenant,
        "der": new.der,
        "sha256": new.sha256,
        "spki_sha256": new.spki_sha256,
        "not_before": new.not_before,
        "not_after": new.not_after,
        "create_time": new.create_time,
        "generation": new.generation,
    }


def find_certificate(executor: Executor, serial: str) -> IssuedCertificate | None:
    row = executor.execute(select(certificate).where(certificate.c.serial == serial)).one_or_none()
    return None if row is None else certificate_of(row)


def insert_certificates(tx: Transaction, certificates: Sequence[IssuedCertificate]) -> None:
    """Number and store new certificates."""
    last = tx.execute(_LAST_SEQUENCE).scalar_one()
    tx.execute(_NEW_CERTIFICATE, [certificate_row(new, last + place) for place, new in enumerate(certificates, 1)])


def is_revoked(executor: Executor, serial: str) -> bool:
    found = select(revocation.c.serial).where(revocation.c.serial == serial)
    return executor.execute(found).scalar_one_or_none() is not None


def revoke(tx: Transaction, known: IssuedCertificate, reason: RevocationReason, actor: str) -> Revocation:
    """Put a certificate that is not revoked on the list, and into the audit log."""
    sequence = tx.execute(select(func.coalesce(func.max(revocation.c.sequence), 0) + 1)).scalar_one()
    tx.execute(
        insert(revocation).values(
            serial=known.serial,
            sequence=sequence,
            reason=int(reason),
            revoke_time=tx.now,
            not_after=known.not_after,
            generation=known.generation,
        )
    )
    # A successor that nobody has confirmed makes room for another one.
    tx.execute(
        update(certificate)
        .where(certificate.c.serial == known.serial)
        .where(certificate.c.confirm_time.is_(None), certificate.c.predecessor.is_not(None))
        .values(lapse_time=tx.now)
    )
    # With it ends the registration that it has not completed, so that the NF can be registered anew.
    tx.execute(
        update(registration)
        .where(registration.c.id == known.registration_id)
        .where(registration.c.confirm_time.is_(None), registration.c.revoke_time.is_(None))
        .values(revoke_time=tx.now, iak_blob=None, live=None)
    )
    detail = {"reason": reason.name.lower(), "nf_instance_id": known.nf_instance_id}
    tx.audit(actor=actor, action="certificate.revoke", subject=known.name, detail=detail)
    return Revocation(tx.now, reason)


def revoke_all(
    tx: Transaction, nf_instance_id: str, reason: RevocationReason, actor: str, *, but: str = ""
) -> list[str]:
    """Revoke the NF's certificates that are still good, whether confirmed or not, but for one serial; their names."""
    good = select(certificate).where(certificate.c.nf_instance_id == nf_instance_id, certificate.c.not_after > tx.now)
    found = [certificate_of(row) for row in tx.execute(good.order_by(certificate.c.sequence)).all()]
    due = [each for each in found if each.serial != but and not is_revoked(tx, each.serial)]
    for each in due:
        revoke(tx, each, reason, actor)
    return [each.name for each in due]


def find_registration(executor: Executor, registration_id: str) -> Registration | None:
    """The registration with this id."""
    row = executor.execute(_REGISTRATION, {"id": registration_id}).one_or_none()
    return None if row is None else registration_of(row)


def void(tx: Transaction, old: Registration, actor: str) -> None:
    """End an open registration and destroy its IAK."""
    tx.execute(
        update(registration).where(registration.c.id == old.id).values(live=None, iak_blob=None, revoke_time=tx.now)
    )
    tx.audit(actor=actor, action="registration.revoke", subject=old.name)


def closed(executor: Executor, nf_instance_id: str) -> Reason | None:
    """Why nothing may be issued to the NF: retired by OAM, or suspended by a theft signal. None: it may."""
    row = executor.execute(_STANDING, {"nf_instance_id": nf_instance_id}).one_or_none()
    return None if row is None else why_closed(row)


def why_closed(row: Row[Any]) -> Reason | None:
    """The same, of a row that has the end entity's times."""
    if row.retire_time is not None:
        return Reason.NF_RETIRED
    return None if row.suspend_time is None else Reason.END_ENTITY_SUSPENDED


def key_owners(executor: Executor, keys: Collection[bytes]) -> dict[bytes, str]:
    """Public keys, by SHA-256 of their SubjectPublicKeyInfo, with the NFs that they belong to."""
    rows = executor.execute(_KEY_OWNERS, {"keys": list(keys)})
    return {bytes(row.spki_sha256): row.nf_instance_id for row in rows}


def add_keys(tx: Transaction, owners: Mapping[bytes, str]) -> None:
    """Give public keys that belong to nobody to NFs."""
    if owners:
        tx.execute(_NEW_KEY, [{"spki_sha256": key, "nf_instance_id": owner} for key, owner in owners.items()])


def admit_key(tx: Transaction, spki_sha256: bytes, nf_instance_id: str) -> None:
    """A public key belongs to one NF only (security rule 3). Raises NftrustError(KEY_TAKEN)."""
    owner = key_owners(tx, [spki_sha256]).get(spki_sha256)
    if owner is None:
        add_keys(tx, {spki_sha256: nf_instance_id})
    elif owner != nf_instance_id:
        raise NftrustError(Reason.KEY_TAKEN)


def suspend(tx: Transaction, nf_instance_id: str, detail: Mapping[str, str]) -> None:
    """A theft signal (security rule 13): nothing is issued to the NF until OAM has looked at it."""
    tx.execute(update(end_entity).where(end_entity.c.nf_instance_id == nf_instance_id).values(suspend_time=tx.now))
    log.error("theft signal: NF suspended", extra={"nf_instance_id": nf_instance_id})
    tx.audit(actor=ACTOR, action="endentity.suspend", subject=f"endEntities/{nf_instance_id}", detail=detail)
