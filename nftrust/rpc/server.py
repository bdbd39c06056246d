"""One way to serve gRPC, for every role and the NF agent.

A server object is one listener: its TLS files, its authorisation table, its
limits, health checking and, where wanted, reflection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from nftrust.config import Deployment, ListenerConfig
from nftrust.errors import NftrustError, Reason
from nftrust.rpc.admission import Admission, Limits
from nftrust.rpc.authz import AuthorisationTable, check_table
from nftrust.rpc.handlers import CallWrapper, Gate, Observer
from nftrust.rpc.peer import Access
from nftrust.rpc.reflection import SymbolPool
from nftrust.rpc.tls import ServerCredentials

MAX_METADATA_BYTES: Final = 8 * 1024
MAX_STREAMS_PER_CONNECTION: Final = 256
CONNECTION_GRACE_SECONDS: Final = 30
DRAIN_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)

AddServicer = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """A service to serve: its generated ``add_…Servicer_to_server``, its servicer and its descriptor."""

    add: AddServicer
    servicer: object
    descriptor: ServiceDescriptor


class RpcServer:
    """One listener.

    ``access`` None means that any principal of the roles in ``table`` may
    call, with an empty scope. ``port`` is the bound port once started.
    """

    def __init__(
        self,
        listener: ListenerConfig,
        services: Sequence[ServiceBinding],
        table: AuthorisationTable,
        *,
        access: Access | None = None,
        deployment: Deployment = "production",
        reuse_port: bool = False,
        reflection: bool = True,
        observe: Observer | None = None,
    ) -> None:
        """Raises NftrustError(CONFIG_INVALID, LAB_CREDENTIAL): the table lacks a method, or TLS files are no good."""
        authenticated = listener.tls.client_ca is not None
        self._listener = listener
        self._credentials = ServerCredentials(listener.tls, deployment)
        self._health = health_aio.HealthServicer()
        self._services = [*services, *self._infrastructure(services, reflection)]
        gate = Gate(table, access, deployment, authenticated)
        limits = Limits(
            calls=listener.max_concurrent_rpcs,
            calls_per_peer=listener.max_calls_per_peer,
            streams_per_peer=listener.max_streams_per_peer,
            rate_per_peer=listener.calls_per_second_per_peer,
        )
        self._wrapper = CallWrapper(gate, Admission(limits), listener.default_deadline_seconds, observe)
        self._handlers = {binding.descriptor.full_name: self._wrapped_methods(binding) for binding in self._services}
        served = [f"/{service}/{name}" for service, methods in self._handlers.items() for name in methods]
        check_table(table, served, authenticated=authenticated)
        self._options = _options(listener, reuse_port)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen and serve. Raises NftrustError(PORT_IN_USE)."""
        # Beyond this gRPC refuses with a bare status; our own refusals, which say when to retry, come before.
        most = 2 * self._listener.max_concurrent_rpcs
        server = grpc.aio.server(options=self._options, maximum_concurrent_rpcs=most)
        handlers = [grpc.method_handlers_generic_handler(name, methods) for name, methods in self._handlers.items()]
        server.add_generic_rpc_handlers(handlers)
        try:
            port = server.add_secure_port(self._listener.address, self._credentials.grpc_credentials())
        except RuntimeError:
            port = 0
        if port == 0:
            raise NftrustError(Reason.PORT_IN_USE, f"cannot listen on {self._listener.address}")
        await server.start()
        self._server, self.port = server, port
        for binding in self._services:
            await self._health.set(binding.descriptor.full_name, health_pb2.HealthCheckResponse.SERVING)
        _log.info("listening", extra={"address": self._listener.address, "port": port})

    async def set_serving(self, serving: bool) -> None:
        """What health checks say of this listener as a whole (the empty service name)."""
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Drain: say NOT_SERVING, take no more calls, end streams, give unary calls ``grace`` seconds."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(server.stop(grace))
        # The GOAWAY first, so that the clients of the ended streams reconnect elsewhere.
        await asyncio.sleep(0)
        self._wrapper.end_streams()
        await stopping

    def _infrastructure(self, services: Sequence[ServiceBinding], reflection: bool) -> list[ServiceBinding]:
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        bindings = [ServiceBinding(health_pb2_grpc.add_HealthServicer_to_server, self._health, health)]
        if reflection:
            descriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
            names = [binding.descriptor.full_name for binding in (*services, *bindings)]
            servicer = reflection_aio.ReflectionServicer([*names, descriptor.full_name], SymbolPool())
            add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
            bindings.append(ServiceBinding(add, servicer, descriptor))
        return bindings

    def _wrapped_methods(self, binding: ServiceBinding) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        collector = _Collector()
        binding.add(binding.servicer, collector)
        wrapped = {}
        for method in binding.descriptor.methods:
            full_name = f"/{binding.descriptor.full_name}/{method.name}"
            handler = collector.handler(full_name)
            # An older library may serve fewer methods than the descriptor in the pool has.
            if handler is not None:
                wrapped[method.name] = self._wrapper.wrap(full_name, handler)
        return wrapped


class _Collector:
    """Stands in for a server and keeps what the generated code adds to it."""

    def __init__(self) -> None:
        self._generic: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Newer generated code adds the same handlers a second time, by name; the generic ones suffice."""

    def handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any] | None:
        details = _Details(method)
        found = (generic.service(details) for generic in self._generic)  # type: ignore[arg-type]
        return next((handler for handler in found if handler is not None), None)


@dataclass(frozen=True, slots=True)
class _Details:
    """The part of grpc.HandlerCallDetails that generic handlers read."""

    method: str
    invocation_metadata: tuple[()] = ()


def _options(listener: ListenerConfig, reuse_port: bool) -> list[tuple[str, int]]:
    age = int(listener.max_connection_age_seconds * 1000)
    return [
        # The default of 1 would let a second server share the port silently.
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", listener.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        # Ends connections that never say anything or send half a body.
        ("grpc.max_connection_age_ms", age),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_SECONDS * 1000),
        ("grpc.server_handshake_timeout_ms", int(listener.handshake_timeout_seconds * 1000)),
        # Peers that vanished without a FIN, and clients that ping without need.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]
