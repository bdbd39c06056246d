"""The HTTP server against raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from nftrust.config import HttpConfig
from nftrust.errors import NftrustError, Reason
from nftrust.http import HttpServer, Request, Response
from nftrust.http.server import MAX_BODY_BYTES, MAX_HEADER_BYTES

GET = b"GET /crl HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(request: Request) -> Response:
    if request.path == "/fail":
        raise ValueError("inner text")
    if request.path == "/outage":
        raise NftrustError(Reason.STORAGE_UNAVAILABLE)
    text = f"{request.method} {request.path} {request.query} {len(request.body)}"
    return Response(200, text.encode(), "application/pkix-crl")


@asynccontextmanager
async def serving(handler: Callable[..., object] = echo, **options: object) -> AsyncIterator[HttpServer]:
    settings = {"header_timeout_seconds": 5.0, "body_timeout_seconds": 5.0, "max_connections": 64} | options
    server = HttpServer(HttpConfig(address="127.0.0.1:0", public_url="http://x", **settings), handler)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(server: HttpServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def exchange(server: HttpServer, *chunks: bytes, end: bool = False) -> bytes:
    """Send ``chunks``; all that comes back until the server closes."""
    async with connected(server) as (reader, writer):
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        if end:
            writer.write_eof()
        return await reader.read()


def closing(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


async def test_get_head_and_post() -> None:
    async with serving() as server:
        got = await exchange(server, closing(b"GET /a%20b?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"))
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"application/pkix-crl" in head
        assert b"date: " in head.lower()
        assert body == b"GET /a%20b x=1 0"
        got = await exchange(server, closing(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert b"content-length: 10" in got.lower()
        assert got.endswith(b"\r\n\r\n")
        got = await exchange(server, closing(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n") + b"12345")
        assert got.endswith(b"POST /p  5")


async def test_keep_alive_and_pipelining() -> None:
    async with serving() as server:
        got = await exchange(server, GET + GET, closing(GET))
        assert got.count(b"HTTP/1.1 200") == 3


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving() as server:
        assert (await exchange(server, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_expect_100_continue() -> None:
    async with serving() as server, connected(server) as (reader, writer):
        writer.write(closing(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"))
        assert b"100" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ok")
        assert (await reader.read()).endswith(b"POST /  2")


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"X"])
async def test_other_methods_are_refused(method: bytes) -> None:
    async with serving() as server:
        got = await exchange(server, method + b" / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 405")
        assert b"allow: get, head, post" in got.lower()


async def test_slow_header_is_cut() -> None:
    async with serving(header_timeout_seconds=0.05) as server:
        assert (await exchange(server, b"GET / HTT")).startswith(b"HTTP/1.1 408")
        assert await exchange(server) == b""
        # The time runs for the whole head: trickling bytes buys none.
        async with connected(server) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n")
            read = asyncio.create_task(reader.read())
            while not read.done():
                writer.write(b"a: b\r\n")
                await asyncio.sleep(0.01)
            assert read.result().startswith(b"HTTP/1.1 408")


async def test_slow_body_is_cut() -> None:
    async with serving(body_timeout_seconds=0.05) as server:
        got = await exchange(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12")
        assert got.startswith(b"HTTP/1.1 408")


async def test_oversize_is_refused_and_the_refusal_arrives() -> None:
    async with serving() as server:
        got = await exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 4 * MAX_HEADER_BYTES + b"\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 431")
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
        got = await exchange(server, head, b"b" * (MAX_BODY_BYTES + 1))
        assert got.startswith(b"HTTP/1.1 413")
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"%x\r\n" % 0x8000 + b"c" * 0x8000 + b"\r\n"
        got = await exchange(server, chunked, *[chunk] * (MAX_BODY_BYTES // 0x8000 + 1))
        assert got.startswith(b"HTTP/1.1 413")
        largest = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES
        got = await exchange(server, closing(largest), b"d" * MAX_BODY_BYTES)
        assert got.endswith(b" %d" % MAX_BODY_BYTES)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /\xff\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nshort",
    ],
)
async def test_garbage_is_a_4xx_or_5xx(garbage: bytes) -> None:
    async with serving() as server:
        status = int((await exchange(server, garbage, end=True)).split()[1])
        assert status in (400, 501, 505)


async def test_random_bytes_never_raise(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    source = random.Random(7)
    with caplog.at_level(logging.WARNING):
        async with serving() as server:
            for size in range(1, 200):
                prefix = source.choice([b"", GET, b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n"])
                await exchange(server, prefix + source.randbytes(size), end=True)
            assert b"200" in await exchange(server, closing(GET))
    assert failures == []
    assert caplog.records == []


async def test_a_failing_handler_tells_nothing() -> None:
    async with serving() as server:
        got = await exchange(server, GET.replace(b"/crl", b"/fail"), closing(GET))
        assert got.startswith(b"HTTP/1.1 500")
        assert b"inner text" not in got
        assert b"HTTP/1.1 200" in got  # the connection goes on
        assert (await exchange(server, closing(GET.replace(b"/crl", b"/outage")))).startswith(b"HTTP/1.1 503")


async def test_connection_limit() -> None:
    async with serving(max_connections=2) as server, connected(server) as one, connected(server) as other:
        for reader, writer in (one, other):
            writer.write(GET)
            await reader.readuntil(b"GET /crl  0")
        with contextlib.suppress(OSError):
            assert await exchange(server, closing(GET)) == b""
        one[1].write_eof()
        assert await one[0].read() == b""  # the server has seen the end
        assert b"HTTP/1.1 200" in await exchange(server, closing(GET))


async def test_one_peer_cannot_take_all_connections() -> None:
    """The addresses of 127.0.0.0/8 are as many peers."""
    async with serving(max_connections=8, max_connections_per_peer=3) as server:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):  # half a request each
                _, writer = await stack.enter_async_context(connected(server))
                writer.write(GET[:10])
            async with asyncio.timeout(30):
                while len(server._connections) < 3:  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                assert await exchange(server, closing(GET)) == b""
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
            writer.write(closing(GET))
            assert b"HTTP/1.1 200" in await reader.read()
            writer.close()
        async with asyncio.timeout(30):
            while server._per_peer:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert b"HTTP/1.1 200" in await exchange(server, closing(GET))


async def test_stop_lets_a_request_in_progress_end() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        entered.set()
        await release.wait()
        return Response(200, b"late")

    async with serving(slow) as server, connected(server):
        port = server.port
        answer = asyncio.create_task(exchange(server, GET))
        await entered.wait()
        stopping = asyncio.create_task(server.stop(grace=60.0))
        await asyncio.sleep(0)
        release.set()
        await stopping
        assert (await answer).endswith(b"late")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_used_port_is_said_to_be_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = HttpServer(HttpConfig(address=address, public_url="http://x"), echo)
        with pytest.raises(NftrustError) as refused:
            await server.start()
        assert refused.value.reason is Reason.PORT_IN_USE
    with pytest.raises(NftrustError) as refused:
        await HttpServer(HttpConfig(address="127.0.0.1:x", public_url="http://x"), echo).start()
    assert refused.value.reason is Reason.CONFIG_INVALID
