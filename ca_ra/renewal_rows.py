"""Successors of certificates, inside a transaction."""

from __future__ import annotations

from sqlalchemy import bindparam, select, update

from ca_ra.model import IssuedCertificate, Registration
from ca_ra.rows import certificate_of
from ca_ra.tables import certificate, registration
from nftrust.storage import Transaction
from nftrust.storage.transaction import Executor

_SUCCESSOR = select(certificate).where(
    certificate.c.predecessor == bindparam("predecessor"), certificate.c.lapse_time.is_(None)
)
_SEQUENCE = select(registration.c.sequence).where(registration.c.id == bindparam("id")).scalar_subquery()
_NEWER = (
    select(registration.c.id)
    .where(registration.c.nf_instance_id == bindparam("nf_instance_id"), registration.c.confirm_time.is_not(None))
    .where(registration.c.sequence > _SEQUENCE)
    .limit(1)
)


def successor_of(executor: Executor, serial: str) -> IssuedCertificate | None:
    """What renews it, confirmed or not."""
    row = executor.execute(_SUCCESSOR, {"predecessor": serial}).one_or_none()
    return None if row is None else certificate_of(row)


def enrolled_since(executor: Executor, known: Registration) -> bool:
    """Whether the NF has been enrolled again: its line of certificates goes on from there."""
    found = executor.execute(_NEWER, {"id": known.id, "nf_instance_id": known.identity.nf_instance_id})
    return found.scalar_one_or_none() is not None


def complete_renewal(tx: Transaction, confirmed: IssuedCertificate) -> None:
    """The NF has the successor: from now on the predecessor is superseded. Again: nothing."""
    done = tx.execute(
        update(certificate)
        .where(certificate.c.serial == confirmed.serial, certificate.c.confirm_time.is_(None))
        .values(confirm_time=tx.now)
    )
    if done.rowcount == 1:
        tx.audit(
            actor=f"urn:uuid:{confirmed.nf_instance_id}",
            action="certificate.confirm",
            subject=confirmed.name,
            detail={"supersedes": f"certificates/{confirmed.predecessor}"},
        )
