"""The one wrapper around every served method.

In this order: correlation id, authentication, authorisation, parsing, the
deadline, the servicer, serialisation; and whatever goes wrong on the way
becomes a google.rpc.Status. Servicers only ever see parsed messages from
callers that may call them, and raise NftrustError.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from nftrust.config import Deployment
from nftrust.errors import NftrustError, Reason
from nftrust.identity import Scope
from nftrust.logs import correlation_id
from nftrust.rpc.admission import Admission
from nftrust.rpc.authz import AuthorisationTable
from nftrust.rpc.channel import CORRELATION_KEY
from nftrust.rpc.peer import Access, Peer, current_peer, parse_credential, set_current_peer
from nftrust.rpc.status import STATUS_KEY, grpc_code, to_status

#: For the body of a request, from its headers on.
RECEIVE_SECONDS = 10.0

_CORRELATION = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

#: method, gRPC status code name, reason (empty where OK), seconds.
Observer = Callable[[str, str, str, float], None]


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may pass: the listener's table, access file and deployment."""

    table: AuthorisationTable
    access: Access | None
    deployment: Deployment
    #: Whether the listener demands client certificates.
    authenticated: bool

    def admit(self, method: str, context: _Context) -> Peer:
        """The caller, if it may call ``method``.

        Raises NftrustError(PEER_UNAUTHENTICATED, PEER_ROLE_INVALID, LAB_CREDENTIAL, PEER_DENIED, METHOD_NOT_ALLOWED).
        """
        address = host_of(context.peer())
        if not self.authenticated:
            return Peer(address=address)
        pems = list(context.auth_context().get("x509_pem_cert", ()))
        if len(pems) != 1:
            raise NftrustError(Reason.PEER_UNAUTHENTICATED)
        credential = parse_credential(bytes(pems[0]))
        credential.check_validity(datetime.now(UTC))
        if credential.lab and self.deployment == "production":
            raise NftrustError(Reason.LAB_CREDENTIAL)
        scope = self.access.admit(credential) if self.access is not None else Scope()
        if credential.role not in self.table[method]:
            raise NftrustError(Reason.METHOD_NOT_ALLOWED, metadata={"method": method, "role": credential.role})
        return Peer(credential.role, credential.name, credential.uri, scope, address)


def host_of(peer: str) -> str:
    """The IP address in gRPC's ``ipv4:1.2.3.4:5`` or ``ipv6:%5B::1%5D:5``."""
    address = urllib.parse.unquote(peer.partition(":")[2])
    return address.rpartition(":")[0].strip("[]")


class CallWrapper:
    """Wraps method handlers of one listener."""

    def __init__(
        self, gate: Gate, admission: Admission, default_deadline: float, observe: Observer | None = None
    ) -> None:
        self._gate = gate
        self._admission = admission
        self._default_deadline = default_deadline
        self._observe = observe
        self._draining = False
        self._streams: set[asyncio.Timeout] = set()

    def end_streams(self) -> None:
        """End the streams being served, and refuse new calls on connections that still are open."""
        self._draining = True
        for timeout in tuple(self._streams):
            timeout.reschedule(0.0)

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """``handler`` on raw bytes, with everything around it.

        All are registered as streaming their requests, which is the same on
        the wire: gRPC then calls at once instead of after the request's body,
        so that a stranger is refused before anything is read, and a body that
        never comes to its end does not hold a place for long.
        """
        serialise = handler.response_serializer
        if handler.request_streaming:
            if not handler.response_streaming:
                raise NftrustError(Reason.CONFIG_INVALID, f"{method}: client streaming is not offered")
            call = self._bidirectional(method, handler)
        elif handler.response_streaming:
            call = self._stream(method, handler)
        else:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler))
        return grpc.stream_stream_rpc_method_handler(call, response_serializer=serialise)

    def _unary(self, method: str, handler: Any) -> Any:
        parse, serialise, serve = handler.request_deserializer, handler.response_serializer, handler.unary_unary

        async def call(raws: object, context: _Context) -> bytes:
            async with self._served(method, context):
                seconds = self._seconds(context)
                async with asyncio.timeout(min(seconds, RECEIVE_SECONDS)) as scope:
                    with self._admission.receiving(current_peer(), scope):
                        request = await _receive(parse, context)
                    scope.reschedule(asyncio.get_running_loop().time() + seconds)
                    response = await serve(request, context)
                encoded: bytes = serialise(response)
                return encoded
            raise AssertionError("an aborted call does not come here")

        return call

    def _stream(self, method: str, handler: Any) -> Any:
        parse, serve = handler.request_deserializer, handler.unary_stream

        async def call(raws: object, context: _Context) -> None:
            async with self._served(method, context):
                async with asyncio.timeout(min(self._seconds(context), RECEIVE_SECONDS)) as scope:
                    with self._admission.receiving(current_peer(), scope):
                        request = await _receive(parse, context)
                async with self._until_drained():
                    await _write_all(serve(request, context), context)

        return call

    def _bidirectional(self, method: str, handler: Any) -> Any:
        parse, serve = handler.request_deserializer, handler.stream_stream

        async def call(raws: AsyncIterator[bytes], context: _Context) -> None:
            async with self._served(method, context), self._until_drained():
                requests = (_parse(parse, raw) async for raw in raws)
                await _write_all(serve(requests, context), context)

        return call

    def _seconds(self, context: _Context) -> float:
        """The caller's deadline, but not more than the listener's."""
        remaining: float | None = context.time_remaining()
        return self._default_deadline if remaining is None else min(remaining, self._default_deadline)

    @asynccontextmanager
    async def _until_drained(self) -> AsyncIterator[None]:
        """A stream lasts until its client, its servicer or the server's drain ends it."""
        if self._draining:
            raise NftrustError(Reason.SHUTTING_DOWN)
        with self._admission.streaming(current_peer()):
            async with asyncio.timeout(None) as scope:
                self._streams.add(scope)
                try:
                    yield
                finally:
                    self._streams.discard(scope)

    @asynccontextmanager
    async def _served(self, method: str, context: _Context) -> AsyncIterator[None]:
        """Admit the caller, serve, and turn what is raised into the call's status."""
        started = time.perf_counter()
        identifier = _correlation(context)
        correlation_id.set(identifier)
        refusal: NftrustError | None = None
        try:
            if self._draining:
                raise NftrustError(Reason.SHUTTING_DOWN)
            peer = self._gate.admit(method, context)
            set_current_peer(peer)
            with self._admission.admitted(peer):
                yield
        except NftrustError as error:
            refusal = error
        except TimeoutError:
            refusal = NftrustError(Reason.SHUTTING_DOWN if self._draining else Reason.DEADLINE)
        except asyncio.CancelledError:
            self._report(method, "CANCELLED", "", started)
            raise
        except grpc.aio.AbortError:
            # grpc's own servicers (health) abort with a bare code of their own.
            self._report(method, "ABORTED_BY_SERVICER", "", started)
            raise
        except Exception as error:  # noqa: BLE001 - the border: nothing a caller sends may pass it unhandled
            refusal = NftrustError(Reason.INTERNAL)
            _log.error("unexpected error", extra={"method": method}, exc_info=error)
        if refusal is None:
            self._report(method, "OK", "", started)
            return
        self._report(method, refusal.reason.code.name, refusal.reason.name, started)
        status = to_status(refusal, identifier).SerializeToString()
        await context.abort(grpc_code(refusal), refusal.message, ((STATUS_KEY, status),))

    def _report(self, method: str, code: str, reason: str, started: float) -> None:
        seconds = time.perf_counter() - started
        level = logging.WARNING if reason else logging.DEBUG
        if _log.isEnabledFor(level):
            _log.log(level, "call", extra={"method": method, "code": code, "reason": reason, "seconds": seconds})
        if self._observe is not None:
            self._observe(method, code, reason, seconds)


def _correlation(context: _Context) -> str:
    """The caller's correlation id if it is well-formed, else one of our own."""
    for key, value in context.invocation_metadata() or ():
        if key == CORRELATION_KEY and isinstance(value, str) and _CORRELATION.match(value):
            return value
    return secrets.token_hex(8)


def _parse(deserialise: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return deserialise(raw)
    except DecodeError:
        raise NftrustError(Reason.MALFORMED_MESSAGE) from None


async def _receive(deserialise: Callable[[bytes], Message], context: _Context) -> Message:
    """The one message of a request that does not stream."""
    raw = await context.read()
    if raw is grpc.aio.EOF:
        raise NftrustError(Reason.MALFORMED_MESSAGE)
    return _parse(deserialise, raw)


async def _write_all(outcome: Any, context: _Context) -> None:
    """Send what a streaming servicer yields; one that is no generator writes to ``context`` itself."""
    if not hasattr(outcome, "__aiter__"):
        await outcome
        return
    # A generator left to the garbage collector would end in another task.
    async with aclosing(outcome) as responses:
        async for response in responses:
            await context.write(response)
