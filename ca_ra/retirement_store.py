"""The end of an end entity: one transaction, after which nothing is issued to it any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update

from ca_ra.rows import registration_of, revoke_all, void
from ca_ra.tables import end_entity, end_entity_fqdn, registration
from nftrust.errors import NftrustError, Reason
from nftrust.identity import Scope
from nftrust.storage import Store, Transaction
from nftrust.x509.crl import RevocationReason


@dataclass(frozen=True, slots=True)
class EndEntity:
    """Whom to retire; ``tenant`` and ``nf_type`` count only where it has never been registered."""

    nf_instance_id: str
    tenant: str
    nf_type: str

    @property
    def name(self) -> str:
        return f"endEntities/{self.nf_instance_id}"


class SqlRetirementStore:
    """Retires end entities on :class:`nftrust.storage.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def retire(self, entity: EndEntity, actor: str, scope: Scope) -> datetime:
        """Close it, or find it closed; since when. Raises NftrustError(END_ENTITY_NOT_FOUND, OUT_OF_SCOPE)."""
        return await self._store.write(lambda tx: _retire(tx, entity, actor, scope))


def _retire(tx: Transaction, entity: EndEntity, actor: str, scope: Scope) -> datetime:
    row = tx.execute(select(end_entity).where(end_entity.c.nf_instance_id == entity.nf_instance_id)).one_or_none()
    if row is None:
        # A registration may still be under way: it has to find the door closed.
        scope.require(tenant=entity.tenant, nf_type=entity.nf_type, fqdns=())
        tx.execute(
            end_entity.insert().values(
                nf_instance_id=entity.nf_instance_id,
                tenant=entity.tenant,
                nf_type=entity.nf_type,
                create_time=tx.now,
            )
        )
    else:
        if not scope.covers_tenant(row.tenant):
            raise NftrustError(Reason.END_ENTITY_NOT_FOUND)
        names = select(end_entity_fqdn.c.fqdn).where(end_entity_fqdn.c.nf_instance_id == entity.nf_instance_id)
        scope.require(tenant=row.tenant, nf_type=row.nf_type, fqdns=tx.execute(names).scalars().all())
        if row.retire_time is not None:
            retired: datetime = row.retire_time
            return retired
    revoked = revoke_all(tx, entity.nf_instance_id, RevocationReason.CESSATION_OF_OPERATION, actor)
    _void_registration(tx, entity, actor)
    # Whatever takes the NF's place may bear its name; the keys stay its own (security rule 3).
    tx.execute(end_entity_fqdn.delete().where(end_entity_fqdn.c.nf_instance_id == entity.nf_instance_id))
    tx.execute(
        update(end_entity).where(end_entity.c.nf_instance_id == entity.nf_instance_id).values(retire_time=tx.now)
    )
    tx.audit(actor=actor, action="endentity.retire", subject=entity.name, detail={"certificates": revoked})
    return tx.now


def _void_registration(tx: Transaction, entity: EndEntity, actor: str) -> None:
    live = select(registration).where(registration.c.nf_instance_id == entity.nf_instance_id, registration.c.live == 1)
    row = tx.execute(live).one_or_none()
    if row is not None:
        void(tx, registration_of(row), actor)
