"""AuditService: every role lets OAM read its hash-chained audit log."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from nftrust.api.audit.v1 import audit_service_pb2 as pb
from nftrust.api.audit.v1.audit_service_pb2_grpc import AuditServiceServicer, add_AuditServiceServicer_to_server
from nftrust.audit import ChainedEvent
from nftrust.paging import cut, decode_number, page_size
from nftrust.rpc.server import ServiceBinding
from nftrust.storage import Store
from nftrust.storage.audit_log import list_events

METHOD = "/nftrust.api.audit.v1.AuditService/ListAuditEvents"
_KIND = "audit"


class AuditServicer(AuditServiceServicer):
    """Read only; the chain is verified by whoever reads it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListAuditEventsResponse:
        size = page_size(request.page_size)
        after = decode_number(_KIND, request.page_token) or 0
        events = await self._store.read(lambda c: list_events(c, after, size + 1))
        page, token = cut(_KIND, events, size, lambda chained: chained.event.sequence)
        return pb.ListAuditEventsResponse(events=[_message(chained) for chained in page], next_page_token=token)


def audit_binding(store: Store) -> ServiceBinding:
    """The service, ready to be served."""
    descriptor = pb.DESCRIPTOR.services_by_name["AuditService"]
    return ServiceBinding(add_AuditServiceServicer_to_server, AuditServicer(store), descriptor)


def _message(chained: ChainedEvent) -> pb.AuditEvent:
    event = chained.event
    time = Timestamp()
    time.FromDatetime(event.time)
    return pb.AuditEvent(
        sequence=event.sequence,
        time=time,
        actor=event.actor,
        action=event.action,
        subject=event.subject,
        detail=event.detail,
        hash=chained.hash,
    )
