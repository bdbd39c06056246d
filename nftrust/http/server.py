"""The server: bounded in connections, header and body size, and time. Garbage never raises."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate

import h11

from nftrust.config import HttpConfig
from nftrust.errors import Code, NftrustError, Reason
from nftrust.source import counted, source_key

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 256 * 1024
_CHUNK = 16 * 1024
_HANDLER_SECONDS = 30.0
_WRITE_SECONDS = 10.0
#: How long, and for how much, a refused peer may go on sending before the connection is cut.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 * MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class Request:
    """A request as received: ``path`` and ``query`` are not percent-decoded."""

    method: str
    path: str
    body: bytes = b""
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "text/plain"


Handler = Callable[[Request], Awaitable[Response]]


class _RefusedError(Exception):
    """The request is answered with this status and the connection closed."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class HttpServer:
    """Serves ``handler`` on ``config.address``: GET, HEAD and POST, keep-alive, nothing else."""

    def __init__(self, config: HttpConfig, handler: Handler, *, reuse_port: bool = False) -> None:
        self._config = config
        self._handler = handler
        self._reuse_port = reuse_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._per_peer: Counter[str] = Counter()
        #: Those of them that wait for a request.
        self._idle: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def port(self) -> int:
        """The bound port, once started."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Raises NftrustError(PORT_IN_USE, CONFIG_INVALID)."""
        address = self._config.address
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._accept, host.strip("[]"), int(port), reuse_port=self._reuse_port or None, limit=_CHUNK
            )
        except OSError as error:
            reason = Reason.PORT_IN_USE if error.errno == errno.EADDRINUSE else Reason.CONFIG_INVALID
            raise NftrustError(reason, f"cannot listen on {address}") from None
        except (ValueError, OverflowError):
            raise NftrustError(Reason.CONFIG_INVALID, f"not an address to listen on: {address}") from None

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more connections; let requests in progress end for at most ``grace`` seconds."""
        if self._server is None:
            return
        self._stopping = True
        self._server.close()
        for task in self._idle:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=grace)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        peer = _source(writer)
        crowded = self._per_peer[peer] >= self._config.max_connections_per_peer
        if crowded or len(self._connections) >= self._config.max_connections:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            with counted(self._per_peer, peer), contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._serve(task, reader, writer)
        except Exception:
            log.exception("HTTP connection failed")
        finally:
            self._connections.discard(task)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Requests one after the other, until either side closes."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        while True:
            refused: int | None = None
            method = ""
            try:
                self._idle.add(task)
                try:
                    head = await self._head(connection, reader)
                finally:
                    self._idle.discard(task)
                if head is None:
                    return
                method = head.method.decode("ascii")
                response = await self._answer(await self._request(connection, reader, writer, head))
            except _RefusedError as error:
                refused = error.status
            except h11.RemoteProtocolError as error:
                refused = error.error_status_hint
            if refused is not None:
                response = Response(refused)
            await self._write(connection, writer, method, response, close=refused is not None or self._stopping)
            if refused is not None:
                await _linger(reader, writer)
                return
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _answer(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(_HANDLER_SECONDS):
                return await self._handler(request)
        except NftrustError as error:
            log.warning("HTTP request refused", extra={"reason": error.reason.name, "path": request.path[:200]})
            return Response(503 if error.transient and error.reason.code is not Code.INTERNAL else 500)
        except TimeoutError:
            log.warning("HTTP handler timed out", extra={"path": request.path[:200]})
            return Response(503)
        except Exception:
            log.exception("HTTP handler failed")
            return Response(500)

    async def _head(self, connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
        """The next request's head, or None where the peer has gone or sends nothing. Raises _RefusedError."""
        try:
            async with asyncio.timeout(self._config.header_timeout_seconds):
                event = await _next_event(connection, reader)
        except TimeoutError:
            if connection.trailing_data[0]:
                raise _RefusedError(408) from None
            return None
        return event if isinstance(event, h11.Request) else None

    async def _request(
        self,
        connection: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: h11.Request,
    ) -> Request:
        """The whole request behind ``head``. Raises _RefusedError."""
        if not head.http_version.startswith(b"1."):
            raise _RefusedError(505)
        if head.method not in (b"GET", b"HEAD", b"POST"):
            raise _RefusedError(405)
        for name, value in head.headers:
            # h11 has checked the number's form.
            if name == b"content-length" and int(value) > MAX_BODY_BYTES:
                raise _RefusedError(413)
        if connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            async with asyncio.timeout(self._config.body_timeout_seconds):
                body = await _read_body(connection, reader)
        except TimeoutError:
            raise _RefusedError(408) from None
        path, _, query = head.target.decode("ascii").partition("?")
        return Request(head.method.decode("ascii"), path, body, query)

    @staticmethod
    async def _write(
        connection: h11.Connection, writer: asyncio.StreamWriter, method: str, response: Response, *, close: bool
    ) -> None:
        headers = [
            ("date", formatdate(usegmt=True)),
            ("content-type", response.content_type),
            ("content-length", str(len(response.body))),
            ("cache-control", "no-cache"),
        ]
        if response.status == 405:
            headers.append(("allow", "GET, HEAD, POST"))
        if close:
            headers.append(("connection", "close"))
        data = connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if method != "HEAD":
            data += connection.send(h11.Data(data=response.body)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
        writer.write(data)
        async with asyncio.timeout(_WRITE_SECONDS):
            await writer.drain()


def _source(writer: asyncio.StreamWriter) -> str:
    """Under which key the peer's connections are counted; one that has gone already has none."""
    address = writer.get_extra_info("peername")
    return source_key(address[0]) if address else ""


async def _read_body(connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        event = await _next_event(connection, reader)
        if isinstance(event, h11.EndOfMessage):
            return b"".join(parts)
        if not isinstance(event, h11.Data):
            raise _RefusedError(400)
        size += len(event.data)
        if size > MAX_BODY_BYTES:
            raise _RefusedError(413)
        parts.append(bytes(event.data))


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await reader.read(_CHUNK))


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the peer read the refusal: closing with its data unread would reset the connection and lose it."""
    writer.write_eof()
    left = _LINGER_BYTES
    async with asyncio.timeout(_LINGER_SECONDS):
        while left > 0 and (data := await reader.read(_CHUNK)):
            left -= len(data)
