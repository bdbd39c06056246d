"""ProvisioningService over gRPC: parse, call, convert."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from cmproxy import convert
from cmproxy.model import Enrolment, NetworkFunction
from cmproxy.provisioning import Provisioner
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
WATCH_POLL_SECONDS = 0.5
_NFS, _ENROLMENTS = "nf", "enrolment"


def request_hash(request: Message) -> bytes:
    """What identifies a request's body for idempotency."""
    return jose.sha256(request.SerializeToString(deterministic=True))


class ProvisioningServicer(ProvisioningServiceServicer):
    """The CM proxy's face to OAM."""

    def __init__(
        self,
        provisioner: Provisioner,
        store: SqlProxyStore,
        clock: Clock,
        wake: Callable[[], None],
        wake_retirer: Callable[[], None],
    ) -> None:
        self._provisioner = provisioner
        self._store = store
        self._clock = clock
        self._wake = wake
        self._wake_retirer = wake_retirer

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
        self._wake()  # the cancelled enrolment has to be cleaned up
        return convert.network_function_message(retiring)

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
        )
        self._wake()
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
        self._wake()
        return convert.enrolment_message(cancelled)

    async def WatchEnrolment(
        self, request: pb.WatchEnrolmentRequest, context: Context
    ) -> AsyncIterator[pb.WatchEnrolmentResponse]:
        revision = -1
        while True:
            _, enrolment_id = convert.enrolment_name(request.name)
            change = self._store.change_of(enrolment_id)
            current = await self._find(request.name)
            if current.revision != revision:
                revision = current.revision
                yield pb.WatchEnrolmentResponse(enrolment=convert.enrolment_message(current))
            if current.state.ended:
                return
            # A change made here wakes us; one made by another process is seen by the poll.
            # Not wait_for: that of Python 3.11 forgets the drain's cancellation where it meets the change.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_POLL_SECONDS):
                    await change.wait()

    async def _find(self, name: str) -> Enrolment:
        if not name:
            raise invalid_field("name", "required")
        nf_instance_id, enrolment_id = convert.enrolment_name(name)
        return await self._provisioner.enrolment(nf_instance_id, enrolment_id, current_peer().scope)
