"""The verifier's composition root."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nftrust.api.verifier.v1 import attestation_result_service_pb2 as pb
from nftrust.api.verifier.v1.attestation_result_service_pb2_grpc import (
    add_AttestationResultServiceServicer_to_server,
)
from nftrust.clock import GuardedClock, SystemClock
from nftrust.role import audit_service, diagnosis_service, metrics
from nftrust.role.health import Served
from nftrust.rpc.authz import AuthorisationTable, infrastructure
from nftrust.rpc.peer import Access
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.storage import Store
from nftrust.storage.migrate import verify
from verifier.config import VerifierConfig
from verifier.service import AttestationResultServicer

_PROXY_OAM = frozenset({"cm-proxy", "oam"})
_SERVICE = "/nftrust.api.verifier.v1.AttestationResultService/"
TABLE: AuthorisationTable = {
    _SERVICE + "GetAttestationResult": _PROXY_OAM,
    _SERVICE + "ListAttestationResults": _PROXY_OAM,
    audit_service.METHOD: frozenset({"oam"}),
    diagnosis_service.METHOD: frozenset({"oam"}),
    **infrastructure(_PROXY_OAM),
}


@contextlib.asynccontextmanager
async def serving(config: VerifierConfig, *, reuse_port: bool) -> AsyncIterator[Served]:
    """Serve until the end of the block, then drain. Raises NftrustError as the CA/RA's does."""
    verify(config.store, "verifier")
    async with contextlib.AsyncExitStack() as stack:
        clock = GuardedClock(SystemClock())
        store = Store.open(config.store, clock, observe=metrics.commit)
        stack.push_async_callback(asyncio.to_thread, store.close)
        results = ServiceBinding(
            add_AttestationResultServiceServicer_to_server,
            AttestationResultServicer(store),
            pb.DESCRIPTOR.services_by_name["AttestationResultService"],
        )
        server = RpcServer(
            config.management,
            [
                results,
                audit_service.audit_binding(store),
                diagnosis_service.diagnosis_binding(diagnosis_service.own_probes(store, clock)),
            ],
            TABLE,
            access=Access(config.access_file),
            deployment=config.deployment,
            reuse_port=reuse_port,
            observe=metrics.call,
        )
        await server.start()
        stack.push_async_callback(server.stop)
        yield Served([server], store, clock, certificates={"tls management": config.management.tls.certificate})
