"""OAM has an NF renew its certificate at once, through the channel that the CM proxy has to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cmproxy.model import NetworkFunction, ServiceState
from cmproxy.ports import NfPort
from nftrust.errors import NftrustError, Reason
from nftrust.identity import Scope
from nftrust.storage import Store

#: Finds a network function as far as the caller may see it. Raises NftrustError(NF_NOT_FOUND).
Find = Callable[[str, Scope], Awaitable[NetworkFunction]]


class RenewalRequester:
    """Asks NF agents; what comes of it is between the NF and the CA/RA."""

    def __init__(self, find: Find, nfs: NfPort, store: Store) -> None:
        self._find = find
        self._nfs = nfs
        self._store = store

    async def renew(self, nf_instance_id: str, actor: str, scope: Scope) -> bytes:
        """SHA-256 of the new certificate, once the NF uses it.

        Raises NftrustError(NF_NOT_FOUND, OUT_OF_SCOPE, NF_RETIRED, NF_UNREACHABLE, DAY0_*) and what the agent refuses
        or was refused: NOT_ENROLLED, CERTIFICATE_EXPIRED, …
        """
        nf = await self._find(nf_instance_id, scope)
        scope.require(tenant=nf.tenant, nf_type=nf.nf_type, fqdns=nf.fqdns)
        if nf.service is not ServiceState.IN_SERVICE:
            raise NftrustError(Reason.NF_RETIRED)
        await self._store.write(lambda tx: tx.audit(actor=actor, action="networkfunction.renew", subject=nf.name))
        async with self._nfs.connect(nf) as session:
            return await session.renew()
