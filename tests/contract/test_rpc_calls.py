"""What callers get for what they send, and how a listener ends, against a real listener."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nftrust import logs
from nftrust.api.cmproxy.v1 import provisioning_service_pb2, provisioning_service_pb2_grpc
from nftrust.api.verifier.v1 import attestation_result_service_pb2 as pb
from nftrust.config import LogConfig
from nftrust.errors import NftrustError, Reason, invalid_field
from tests.contract.rpc_kit import GET, WATCH, Kit, get, raw_call, refusal
from tests.pki import make_ca, service_leaf

SECRET = "hunter2-inner-text"


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def watch(channel: grpc.aio.Channel) -> Any:
    stub: Any = provisioning_service_pb2_grpc.ProvisioningServiceStub(channel)
    return stub.WatchEnrolment(provisioning_service_pb2.WatchEnrolmentRequest())


@pytest.mark.parametrize("body", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28"])
@pytest.mark.parametrize("method", [GET, WATCH])
async def test_garbage_is_malformed(kit: Kit, body: bytes, method: str) -> None:
    async with kit.serving(), kit.channel() as channel:
        assert (await refusal(raw_call(channel, method, body)))[:2] == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
        await get(channel)


async def test_a_stranger_does_not_reach_the_parser(kit: Kit) -> None:
    async with kit.serving(), kit.channel(service_leaf(kit.ca, "oam", "two")) as channel:
        assert (await refusal(raw_call(channel, GET, b"\xff" * 40)))[1] == "PEER_DENIED"


async def test_oversize_is_refused_and_the_server_goes_on(kit: Kit) -> None:
    async with kit.serving(kit.listener(max_message_bytes=4096)), kit.channel() as channel:
        await get(channel, "x" * 4000)
        assert (await refusal(get(channel, "x" * 5000)))[0] == "RESOURCE_EXHAUSTED"
        await get(channel)


async def never() -> AsyncIterator[bytes]:
    """A request body that does not come."""
    await asyncio.Event().wait()
    yield b""


@pytest.mark.parametrize("method", [GET, WATCH])
async def test_bodies_that_never_come_do_not_hold_the_listener(
    kit: Kit, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nftrust.rpc.handlers.RECEIVE_SECONDS", 0.1)
    async with kit.serving(kit.listener(max_concurrent_rpcs=8)), kit.channel() as attacker, kit.channel() as channel:
        calls: Any = attacker.stream_unary(method)
        outcomes = await asyncio.gather(*(refusal(calls(never())) for _ in range(16)))
        assert {outcome[:2] for outcome in outcomes} == {("DEADLINE_EXCEEDED", "DEADLINE")}
        await get(channel)


@pytest.mark.parametrize("limit", ["max_concurrent_rpcs", "max_calls_per_peer"])
@pytest.mark.parametrize("method", [GET, WATCH])
async def test_a_call_whose_body_does_not_come_gives_way(
    kit: Kit, method: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to its own neighbour: both channels are one principal."""
    monkeypatch.setattr("nftrust.rpc.handlers.RECEIVE_SECONDS", 300.0)
    async with kit.serving(kit.listener(**{limit: 4})), kit.channel() as attacker, kit.channel() as channel:
        calls: Any = attacker.stream_unary(method)
        flood = [asyncio.create_task(refusal(calls(never()))) for _ in range(8)]
        for outcome in islice(asyncio.as_completed(flood, timeout=25), 4):  # long before their own time is over
            assert (await outcome)[1] == "DEADLINE"
        await get(channel)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_a_stranger_is_refused_before_the_body(kit: Kit) -> None:
    async with kit.serving(), kit.channel(service_leaf(kit.ca, "oam", "two")) as channel:
        call: Any = channel.stream_unary(GET)
        assert (await refusal(call(never())))[1] == "PEER_DENIED"


async def test_a_call_without_a_body_is_malformed(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        call: Any = channel.stream_unary(GET)
        assert (await refusal(call(iter(()))))[:2] == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


async def test_plain_text_on_the_tls_port_is_dropped(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        reader, writer = await asyncio.open_connection("127.0.0.1", kit.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await reader.read(4096)
        writer.close()
        await get(channel)


async def test_a_silent_connection_ends(kit: Kit) -> None:
    async with kit.serving(kit.listener(handshake_timeout_seconds=0.2)):
        reader, writer = await asyncio.open_connection("127.0.0.1", kit.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("error", [RuntimeError(SECRET), KeyError(SECRET), ValueError(SECRET), AssertionError(SECRET)])
async def test_an_unknown_exception_is_a_bare_internal(
    kit: Kit, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(request: object) -> object:
        raise error

    kit.results.get = fail
    root = logging.getLogger()
    before, level, hooks = root.handlers[:], root.level, logging.raiseExceptions
    logs.configure(LogConfig())
    try:
        async with kit.serving(), kit.channel() as channel:
            code, reason, details = await refusal(get(channel, metadata=(("x-correlation-id", "abc-1"),)))
    finally:
        root.handlers[:], logging.raiseExceptions = before, hooks
        root.setLevel(level)
        logging.captureWarnings(False)
    assert (code, reason, details["message"]) == ("INTERNAL", "INTERNAL", "An unexpected error.")
    assert details["RequestInfo"].request_id == "abc-1"
    assert SECRET not in str(details)
    written = capsys.readouterr().err
    assert SECRET not in written
    (line,) = [line for line in written.splitlines() if "unexpected error" in line]
    assert '"correlation_id":"abc-1"' in line
    assert type(error).__name__ in line


async def test_what_a_servicer_returns_wrongly_is_internal(kit: Kit) -> None:
    async def wrong(request: object) -> object:
        return None

    kit.results.get = wrong
    async with kit.serving(), kit.channel() as channel:
        assert (await refusal(get(channel)))[:2] == ("INTERNAL", "INTERNAL")


@pytest.mark.parametrize("sent", ["", "with space", "x" * 65, "<script>"])
async def test_an_ill_formed_correlation_id_is_replaced(kit: Kit, sent: str) -> None:
    kit.results.get = raising(NftrustError(Reason.NF_NOT_FOUND))
    async with kit.serving(), kit.channel() as channel:
        _, _, details = await refusal(get(channel, metadata=(("x-correlation-id", sent),)))
    assert details["RequestInfo"].request_id not in ("", sent)


def raising(error: Exception) -> Any:
    async def serve(request: object) -> object:
        raise error

    return serve


async def test_a_field_error_names_the_field(kit: Kit) -> None:
    kit.results.get = raising(invalid_field("name", "too long"))
    async with kit.serving(), kit.channel() as channel:
        code, reason, details = await refusal(get(channel))
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert details["ErrorInfo"].domain == "nftrust"
    assert details["ErrorInfo"].metadata["field"] == "name"
    assert details["BadRequest"].field_violations[0].field == "name"
    assert "RetryInfo" not in details


async def test_the_listener_has_a_deadline(kit: Kit) -> None:
    ended = asyncio.Event()

    async def hang(request: object) -> object:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    kit.results.get = hang
    async with kit.serving(kit.listener(default_deadline_seconds=0.05)), kit.channel() as channel:
        assert (await refusal(get(channel)))[:2] == ("DEADLINE_EXCEEDED", "DEADLINE")
        assert ended.is_set()
        ended.clear()
        assert (await refusal(get(channel, timeout=30)))[:2] == ("DEADLINE_EXCEEDED", "DEADLINE")


async def test_a_stream_outlives_the_deadline_and_ends_with_its_client(kit: Kit) -> None:
    async with kit.serving(kit.listener(default_deadline_seconds=0.01)), kit.channel() as channel:
        call = watch(channel)
        await call.read()
        await asyncio.sleep(0.05)
        assert not call.done()
        call.cancel()
        await asyncio.wait_for(kit.watching.closed.wait(), 10)
    assert (WATCH, "CANCELLED", "") in kit.observed


async def test_a_stream_that_fails_is_typed(kit: Kit) -> None:
    async def fail() -> None:
        raise NftrustError(Reason.STORAGE_UNAVAILABLE, retry_after=2.5)

    kit.watching.after = fail
    async with kit.serving(), kit.channel() as channel:
        call = watch(channel)
        await call.read()
        code, reason, details = await refusal(call.read())
    assert (code, reason) == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 2500


async def test_drain_lets_calls_finish_and_ends_streams(kit: Kit) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> object:
        arrived.set()
        await release.wait()
        return pb.AttestationResult(name="finished")

    kit.results.get = slow
    async with kit.serving() as server, kit.channel() as channel, kit.channel() as other:
        stream = watch(channel)
        await stream.read()
        call = asyncio.ensure_future(get(channel))
        await arrived.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        assert (await refusal(stream.read()))[:2] == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert not stopping.done()
        assert (await refusal(get(other)))[0] == "UNAVAILABLE"
        release.set()
        assert (await call).name == "finished"
        await asyncio.wait_for(stopping, 10)


async def test_a_call_that_slips_in_during_the_drain_is_told_so(kit: Kit) -> None:
    """gRPC may hand over a call that it accepted before the drain began."""
    async with kit.serving() as server, kit.channel() as channel:
        server._wrapper.end_streams()
        assert (await refusal(get(channel)))[:2] == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert (await refusal(watch(channel).read()))[:2] == ("UNAVAILABLE", "SHUTTING_DOWN")


async def test_drain_does_not_wait_for_ever(kit: Kit) -> None:
    arrived = asyncio.Event()

    async def hang(request: object) -> object:
        arrived.set()
        await asyncio.Event().wait()
        return None

    kit.results.get = hang
    async with kit.serving() as server, kit.channel() as channel:
        call = asyncio.ensure_future(refusal(get(channel)))
        await arrived.wait()
        await asyncio.wait_for(server.stop(0.05), 10)
        assert (await call)[0] in ("UNAVAILABLE", "CANCELLED")


async def test_a_port_in_use_is_typed(kit: Kit) -> None:
    async with kit.serving():
        taken = kit.listener().__class__(address=f"127.0.0.1:{kit.port}", tls=kit.listener().tls)
        with pytest.raises(NftrustError) as refused:
            await kit.server(taken).start()
    assert refused.value.reason is Reason.PORT_IN_USE


async def test_fronts_share_a_port_only_where_told(kit: Kit) -> None:
    async with kit.serving(reuse_port=True):
        shared = kit.listener().__class__(address=f"127.0.0.1:{kit.port}", tls=kit.listener().tls)
        second = kit.server(shared, reuse_port=True)
        await second.start()
        assert second.port == kit.port
        await second.stop(0)


def served_certificate(port: int) -> bytes:
    """The leaf that the server shows, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        leaf = tls.getpeercert(binary_form=True)
    assert leaf is not None
    return leaf


async def test_certificates_are_read_again(kit: Kit) -> None:
    async with kit.serving():
        first = await asyncio.to_thread(served_certificate, kit.port)
        renewed = service_leaf(kit.ca, "verifier")
        # Half of the pair: the former one stays.
        (kit.directory / "server.pem").write_bytes(renewed.chain_pem)
        assert await asyncio.to_thread(served_certificate, kit.port) == first
        (kit.directory / "server.key").write_bytes(renewed.key_pem)
        second = await asyncio.to_thread(served_certificate, kit.port)
        assert ssl.DER_cert_to_PEM_cert(second).encode() == renewed.chain_pem
        # Nonsense, and a lab certificate in production: the former one stays.
        service_leaf(kit.ca, "verifier", lab=True).write(kit.directory, "server")
        assert await asyncio.to_thread(served_certificate, kit.port) == second
        (kit.directory / "server.pem").unlink()
        assert await asyncio.to_thread(served_certificate, kit.port) == second
        async with kit.channel() as channel:
            await get(channel)


async def test_a_second_services_ca_is_taken_over_beside_the_first(kit: Kit) -> None:
    following = make_ca("services 2")
    leaf = service_leaf(following, "oam")
    async with kit.serving():
        async with kit.channel(leaf) as channel:
            assert (await refusal(get(channel)))[:2] == ("UNAVAILABLE", "")
        (kit.directory / "services-ca.pem").write_bytes(kit.ca.pem + following.pem)
        async with kit.channel(leaf) as channel:
            await get(channel)
        async with kit.channel() as channel:
            await get(channel)


async def test_an_expired_certificate_is_healed_without_a_restart(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    kit.ca.issue(dns_sans=["localhost"], lifetime=timedelta(hours=-1)).write(kit.directory, "server")
    async with kit.serving():
        assert "certificate is not valid at this time" in caplog.text
        async with kit.channel() as channel:
            assert (await refusal(get(channel)))[0] == "UNAVAILABLE"
        service_leaf(kit.ca, "verifier").write(kit.directory, "server")
        async with kit.channel() as channel:
            await get(channel)


@pytest.mark.parametrize("damage", ["missing", "foreign key", "no key", "no certificate", "empty client CA"])
async def test_unusable_tls_files_stop_the_start(kit: Kit, damage: str) -> None:
    certificate, key, client_ca = (kit.directory / name for name in ("server.pem", "server.key", "services-ca.pem"))
    match damage:
        case "missing":
            certificate.unlink()
        case "foreign key":
            key.write_bytes(service_leaf(kit.ca, "verifier").key_pem)
        case "no key":
            key.write_bytes(b"nothing")
        case "no certificate":
            certificate.write_bytes(b"nothing")
        case "empty client CA":
            client_ca.write_bytes(b"")
    with pytest.raises(NftrustError) as refused:
        kit.server()
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert kit.directory.name in refused.value.message


async def test_health_tells_services_and_the_drain(kit: Kit) -> None:
    async with kit.serving() as server, kit.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        service = "nftrust.api.verifier.v1.AttestationResultService"
        for name in ("", service):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(stub.Check(health_pb2.HealthCheckRequest(service="other"))))[0] == "NOT_FOUND"
        await server.set_serving(False)
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.ensure_future(server.stop(30))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await refusal(watching.read()))[1] == "SHUTTING_DOWN"
        await asyncio.wait_for(stopping, 10)


async def test_reflection_lists_and_describes(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        requests = [
            request(list_services=""),
            request(file_containing_symbol="nftrust.api.verifier.v1.AttestationResultService"),
            request(file_containing_symbol="no.such.Symbol"),
        ]
        listed, described, unknown = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert {service.name for service in listed.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "nftrust.api.cmproxy.v1.ProvisioningService",
        "nftrust.api.verifier.v1.AttestationResultService",
    }
    assert described.file_descriptor_response.file_descriptor_proto
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_takes_garbage(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        call: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        assert (await refusal(call(iter([b"\xff" * 9])).read()))[1] == "MALFORMED_MESSAGE"


async def test_a_listener_without_reflection(kit: Kit) -> None:
    async with kit.serving(reflection=False), kit.channel() as channel:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        assert (await refusal(raw_call(channel, method)))[0] == "UNIMPLEMENTED"


async def test_calls_are_observed(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        await get(channel)
        kit.write_access("")
        await refusal(get(channel))
    assert kit.observed == [(GET, "OK", ""), (GET, "PERMISSION_DENIED", "PEER_DENIED")]
