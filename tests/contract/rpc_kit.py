"""A real listener on a loopback port with a services PKI, for the tests of nftrust.rpc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from nftrust.api.cmproxy.v1 import provisioning_service_pb2, provisioning_service_pb2_grpc
from nftrust.api.verifier.v1 import attestation_result_service_pb2, attestation_result_service_pb2_grpc
from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.rpc import ANYONE, Access, FileIdentity, RpcServer, ServiceBinding, infrastructure, open_channel
from nftrust.rpc.authz import ROLES
from nftrust.rpc.status import STATUS_KEY
from tests.pki import Authority, Leaf, make_ca, service_leaf

GET = "/nftrust.api.verifier.v1.AttestationResultService/GetAttestationResult"
LIST = "/nftrust.api.verifier.v1.AttestationResultService/ListAttestationResults"
WATCH = "/nftrust.api.cmproxy.v1.ProvisioningService/WatchEnrolment"
OAM_URI = "urn:nftrust:oam:one"

Behaviour = Callable[[Any], Awaitable[Any]]


class Results(attestation_result_service_pb2_grpc.AttestationResultServiceServicer):
    """A servicer that does what a test tells it to."""

    def __init__(self) -> None:
        self.get: Behaviour = self._echo

    async def _echo(self, request: Any) -> Any:
        return attestation_result_service_pb2.AttestationResult(name=request.name)

    async def GetAttestationResult(self, request: Any, context: Any) -> Any:
        return await self.get(request)

    async def ListAttestationResults(self, request: Any, context: Any) -> Any:
        return attestation_result_service_pb2.ListAttestationResultsResponse()


class Watching(provisioning_service_pb2_grpc.ProvisioningServiceServicer):
    """One stream: a message at once, then whatever ``after`` does."""

    def __init__(self) -> None:
        self.after: Callable[[], Awaitable[None]] = asyncio.Event().wait  # type: ignore[assignment]
        self.closed = asyncio.Event()

    async def WatchEnrolment(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield provisioning_service_pb2.WatchEnrolmentResponse()
            await self.after()
        finally:
            self.closed.set()


# Only the stream is under test: the other methods stay as generated.
Watching.__abstractmethods__ = frozenset()


@dataclass
class Kit:
    """Everything around one listener."""

    directory: Path
    ca: Authority = field(default_factory=lambda: make_ca("services"))
    results: Results = field(default_factory=Results)
    watching: Watching = field(default_factory=Watching)
    observed: list[tuple[str, str, str]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.ca.write(self.directory, "services-ca")
        service_leaf(self.ca, "verifier").write(self.directory, "server")
        self.write_access(f'[[principal]]\nuri = "{OAM_URI}"\ntenants = ["a"]\n')

    @property
    def access_file(self) -> Path:
        return self.directory / "access.toml"

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def write_access(self, text: str) -> None:
        self.access_file.write_text(text)

    def listener(self, *, mutual: bool = True, **limits: Any) -> ListenerConfig:
        client_ca = self.directory / "services-ca.pem" if mutual else None
        tls = ServerTlsConfig(
            certificate=self.directory / "server.pem", private_key=self.directory / "server.key", client_ca=client_ca
        )
        return ListenerConfig(address="127.0.0.1:0", tls=tls, **limits)

    def bindings(self) -> list[ServiceBinding]:
        return [
            ServiceBinding(
                attestation_result_service_pb2_grpc.add_AttestationResultServiceServicer_to_server,
                self.results,
                attestation_result_service_pb2.DESCRIPTOR.services_by_name["AttestationResultService"],
            ),
            ServiceBinding(
                provisioning_service_pb2_grpc.add_ProvisioningServiceServicer_to_server,
                self.watching,
                provisioning_service_pb2.DESCRIPTOR.services_by_name["ProvisioningService"],
            ),
        ]

    def server(self, listener: ListenerConfig | None = None, **options: Any) -> RpcServer:
        listener = listener or self.listener()
        mutual = listener.tls.client_ca is not None
        options.setdefault("table", table(mutual=mutual))
        if mutual:
            options.setdefault("access", Access(self.access_file))

        def observe(method: str, code: str, reason: str, seconds: float) -> None:
            assert seconds >= 0
            self.observed.append((method, code, reason))

        return RpcServer(listener, self.bindings(), observe=observe, **options)

    @asynccontextmanager
    async def serving(self, listener: ListenerConfig | None = None, **options: Any) -> AsyncIterator[RpcServer]:
        server = self.server(listener, **options)
        await server.start()
        self.port = server.port
        try:
            yield server
        finally:
            await server.stop(0)

    def identity(self, leaf: Leaf, name: str = "client") -> FileIdentity:
        return FileIdentity(*leaf.write(self.directory, name))

    @asynccontextmanager
    async def channel(self, leaf: Leaf | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """A channel as OAM, or as the holder of ``leaf``."""
        identity = self.identity(leaf or service_leaf(self.ca, "oam"))
        async with open_channel(self.target, trust_roots=self.ca.pem, identity=identity) as channel:
            yield channel

    @asynccontextmanager
    async def anonymous_channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A channel without a client certificate."""
        async with open_channel(self.target, trust_roots=self.ca.pem) as channel:
            yield channel


def table(*, mutual: bool = True) -> dict[str, frozenset[str]]:
    """OAM may call everything, the CM proxy may get; anyone where there are no client certificates."""
    everybody = ROLES if mutual else ANYONE
    methods = provisioning_service_pb2.DESCRIPTOR.services_by_name["ProvisioningService"].methods
    oam = frozenset({"oam"}) if mutual else ANYONE
    rows = {f"/{method.containing_service.full_name}/{method.name}": oam for method in methods}
    get = frozenset({"oam", "cm-proxy"}) if mutual else ANYONE
    return {**infrastructure(everybody), **rows, GET: get, LIST: oam}


async def get(channel: grpc.aio.Channel, name: str = "x", **options: Any) -> Any:
    """Call GetAttestationResult."""
    stub: Any = attestation_result_service_pb2_grpc.AttestationResultServiceStub(channel)
    request = attestation_result_service_pb2.GetAttestationResultRequest(name=name)
    return await stub.GetAttestationResult(request, **options)


async def raw_call(channel: grpc.aio.Channel, method: str, body: bytes = b"") -> bytes:
    """Call any unary method with any bytes."""
    call: Any = channel.unary_unary(method)
    answer: bytes = await call(body)
    return answer


async def refusal(call: Awaitable[Any]) -> tuple[str, str, dict[str, Any]]:
    """Status code and reason of a call that must fail, and its details by message name."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        details: dict[str, Any] = {"message": error.details()}
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_KEY:
                for entry in status_pb2.Status.FromString(value).details:
                    name = entry.TypeName().rpartition(".")[2]
                    details[name] = getattr(error_details_pb2, name).FromString(entry.value)
        reason = details["ErrorInfo"].reason if "ErrorInfo" in details else ""
        return error.code().name, reason, details
    raise AssertionError("the call was not refused")
