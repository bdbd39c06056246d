"""ProvisioningService over gRPC: parse, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from cmproxy import convert
from cmproxy.changes import Changes
from cmproxy.model import Claimed, Enrolment, NetworkFunction
from cmproxy.provisioning import Provisioner
from cmproxy.renewal import RenewalRequester
from cmproxy.store import SqlProxyStore
from nftrust import jose
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1.provisioning_service_pb2_grpc import ProvisioningServiceServicer
from nftrust.clock import Clock
from nftrust.errors import invalid_field
from nftrust.identity import parse_nf_instance_id
from nftrust.paging import cut, decode_number, decode_token, page_size
from nftrust.rpc.peer import current_peer

Context = grpc.aio.ServicerContext[Any, Any]
_NFS, _ENROLMENTS = "nf", "enrolment"


def request_hash(request: Message) -> bytes:
    """What identifies a request's body for idempotency."""
    return jose.sha256(request.SerializeToString(deterministic=True))


class Driver(Protocol):
    """Who drives enrolments on."""

    @property
    def spare(self) -> str:
        """The owner of a lease that would be driven at once; empty where there is no place for one more."""
        ...

    def drive(self, claimed: Claimed) -> None:
        """It is leased to the owner that :attr:`spare` named."""
        ...

    def wake(self) -> None:
        """There is new work in storage."""
        ...


class ProvisioningServicer(ProvisioningServiceServicer):
    """The CM proxy's face to OAM."""

    def __init__(
        self,
        provisioner: Provisioner,
        store: SqlProxyStore,
        changes: Changes,
        clock: Clock,
        driver: Driver,
        wake_retirer: Callable[[], None],
        renewals: RenewalRequester,
    ) -> None:
        self._provisioner = provisioner
        self._store = store
        self._clock = clock
        self._changes = changes
        self._driver = driver
        self._wake_retirer = wake_retirer
        self._renewals = renewals

    async def CreateNetworkFunction(
        self, request: pb.CreateNetworkFunctionRequest, context: Context
    ) -> pb.NetworkFunction:
        peer = current_peer()
        wanted = convert.network_function(request.network_function, self._clock.now())
        created = await self._provisioner.create(
            wanted, peer.uri, peer.scope, request.request_id, request_hash(request)
        )
        return convert.network_function_message(created)

    async def GetNetworkFunction(self, request: pb.GetNetworkFunctionRequest, context: Context) -> pb.NetworkFunction:
        found = await self._provisioner.get(convert.nf_name(request.name), current_peer().scope)
        return convert.network_function_message(found)

    async def ListNetworkFunctions(
        self, request: pb.ListNetworkFunctionsRequest, context: Context
    ) -> pb.ListNetworkFunctionsResponse:
        size = page_size(request.page_size)
        after = decode_token(_NFS, request.page_token)
        rows = await self._store.list_network_functions(current_peer().scope.tenants, size + 1, after)
        page, token = cut(_NFS, rows, size, lambda nf: nf.nf_instance_id)
        return pb.ListNetworkFunctionsResponse(
            network_functions=[convert.network_function_message(nf) for nf in page], next_page_token=token
        )

    async def UpdateNetworkFunction(
        self, request: pb.UpdateNetworkFunctionRequest, context: Context
    ) -> pb.NetworkFunction:
        peer = current_peer()
        wanted = request.network_function
        known: NetworkFunction = await self._provisioner.get(convert.nf_name(wanted.name), peer.scope)
        merged = convert.masked(known, wanted, request.update_mask)
        changed = convert.network_function(merged, self._clock.now())
        updated = await self._provisioner.update(changed, wanted.etag, peer.uri, peer.scope)
        return convert.network_function_message(updated)

    async def DeleteNetworkFunction(self, request: pb.DeleteNetworkFunctionRequest, context: Context) -> Empty:
        peer = current_peer()
        await self._provisioner.delete(convert.nf_name(request.name), request.etag, peer.uri, peer.scope)
        return Empty()

    async def RetireNetworkFunction(
        self, request: pb.RetireNetworkFunctionRequest, context: Context
    ) -> pb.NetworkFunction:
        peer = current_peer()
        retiring = await self._provisioner.retire(convert.nf_name(request.name), peer.uri, peer.scope)
        self._wake_retirer()
        self._driver.wake()  # the cancelled enrolment has to be cleaned up
        return convert.network_function_message(retiring)

    async def RenewNetworkFunction(
        self, request: pb.RenewNetworkFunctionRequest, context: Context
    ) -> pb.RenewNetworkFunctionResponse:
        peer = current_peer()
        sha256 = await self._renewals.renew(convert.nf_name(request.name), peer.uri, peer.scope)
        return pb.RenewNetworkFunctionResponse(certificate_sha256=sha256)

    async def StartEnrolment(self, request: pb.StartEnrolmentRequest, context: Context) -> pb.Enrolment:
        peer = current_peer()
        started = await self._provisioner.start(
            convert.nf_name(request.parent),
            request.allow_re_enrolment,
            peer.uri,
            peer.scope,
            request.request_id,
            request_hash(convert.without_secret(request)),
            convert.foreign_credential(request),
            self._driver.spare,
        )
        if started.claimed is None:
            self._driver.wake()
        else:
            self._driver.drive(started.claimed)
        return convert.enrolment_message(started.enrolment)

    async def ReinstantiateNetworkFunction(
        self, request: pb.ReinstantiateNetworkFunctionRequest, context: Context
    ) -> pb.Enrolment:
        peer = current_peer()
        started = await self._provisioner.reinstantiate(
            convert.nf_name(request.name),
            request.transport_key_sha256 or None,
            peer.uri,
            peer.scope,
            request.request_id,
            request_hash(request),
        )
        self._driver.wake()
        return convert.enrolment_message(started)

    async def GetEnrolment(self, request: pb.GetEnrolmentRequest, context: Context) -> pb.Enrolment:
        return convert.enrolment_message(await self._find(request.name))

    async def ListEnrolments(self, request: pb.ListEnrolmentsRequest, context: Context) -> pb.ListEnrolmentsResponse:
        size = page_size(request.page_size)
        before = decode_number(_ENROLMENTS, request.page_token)
        parent = convert.nf_name(request.parent)
        nf_instance_id = None if parent == "-" else parse_nf_instance_id(parent)
        rows = await self._store.list_enrolments(nf_instance_id, current_peer().scope.tenants, size + 1, before)
        page, token = cut(_ENROLMENTS, rows, size, lambda row: row[0])
        return pb.ListEnrolmentsResponse(
            enrolments=[convert.enrolment_message(enrolment) for _, enrolment in page], next_page_token=token
        )

    async def CancelEnrolment(self, request: pb.CancelEnrolmentRequest, context: Context) -> pb.Enrolment:
        peer = current_peer()
        nf_instance_id, enrolment_id = convert.enrolment_name(request.name)
        cancelled = await self._provisioner.cancel(nf_instance_id, enrolment_id, peer.uri, peer.scope)
        self._driver.wake()
        return convert.enrolment_message(cancelled)

    async def WatchEnrolment(
        self, request: pb.WatchEnrolmentRequest, context: Context
    ) -> AsyncIterator[pb.WatchEnrolmentResponse]:
        _, enrolment_id = convert.enrolment_name(request.name)
        with self._changes.watch(enrolment_id) as feed:
            feed.put(await self._find(request.name))
            while True:
                current = await feed.next()
                yield pb.WatchEnrolmentResponse(enrolment=convert.enrolment_message(current))
                if current.state.ended:
                    return

    async def _find(self, name: str) -> Enrolment:
        if not name:
            raise invalid_field("name", "required")
        nf_instance_id, enrolment_id = convert.enrolment_name(name)
        return await self._provisioner.enrolment(nf_instance_id, enrolment_id, current_peer().scope)
