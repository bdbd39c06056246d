"""Rows of the CA/RA's tables as the domain sees them, and the look-ups that both stores share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from ca_ra.model import IssuedCertificate, Registration
from ca_ra.tables import end_entity, end_entity_key, registration
from nftrust.errors import NftrustError, Reason
from nftrust.storage import Transaction
from nftrust.storage.transaction import Executor
from nftrust.x509.names import NfIdentity


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
    )


def find_registration(executor: Executor, registration_id: str) -> Registration | None:
    """The registration with this id."""
    row = executor.execute(select(registration).where(registration.c.id == registration_id)).one_or_none()
    return None if row is None else registration_of(row)


def is_suspended(executor: Executor, nf_instance_id: str) -> bool:
    """Whether a theft signal has suspended the NF."""
    statement = select(end_entity.c.suspend_time).where(end_entity.c.nf_instance_id == nf_instance_id)
    return executor.execute(statement).scalar_one_or_none() is not None


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
