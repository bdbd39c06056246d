"""The server: bounded in connections, header and body size, and time. Garbage never raises."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11

from nftrust.config import HttpConfig
from nftrust.errors import NftrustError, Reason

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 256 * 1024
_CHUNK = 16 * 1024
_WRITE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` is without the query."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "text/plain"


Handler = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """The request is answered with this status and the connection closed."""

    def __init__(self, status: int) -> None:
        self.status = status


class HttpServer:
    """Serves ``handler`` on ``config.address``."""

    def __init__(self, config: HttpConfig, handler: Handler, *, reuse_port: bool = False) -> None:
        self._config = config
        self._handler = handler
        self._reuse_port = reuse_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The bound port, once started."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Raises NftrustError(PORT_IN_USE)."""
        host, _, port = self._config.address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._accept, host.strip("[]"), int(port), reuse_port=self._reuse_port or None, limit=_CHUNK
            )
        except (OSError, ValueError):
            raise NftrustError(Reason.PORT_IN_USE, f"cannot listen on {self._config.address}") from None

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= self._config.max_connections:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError, h11.RemoteProtocolError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests one after the other, until either side closes."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        while True:
            try:
                request = await self._read(connection, reader)
                if request is None:
                    return
                response = await self._answer(request)
            except _Refused as refused:
                request, response = Request("GET", ""), Response(refused.status)
            except h11.RemoteProtocolError as error:
                request, response = Request("GET", ""), Response(error.error_status_hint)
            if connection.states[h11.SERVER] not in (h11.IDLE, h11.SEND_RESPONSE):
                return
            await self._write(connection, writer, request, response)
            if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                return
            connection.start_next_cycle()

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except NftrustError as error:
            log.warning("HTTP request refused", extra={"reason": error.reason.name, "path": request.path[:200]})
            return Response(503)
        except Exception:
            log.exception("HTTP handler failed")
            return Response(500)

    async def _read(self, connection: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
        """The next request, or None where the peer has gone. Raises _Refused."""
        try:
            async with asyncio.timeout(self._config.header_timeout_seconds):
                head = await self._next(connection, reader)
        except TimeoutError:
            if connection.trailing_data[0]:
                raise _Refused(408) from None
            return None
        if not isinstance(head, h11.Request):
            return None
        try:
            async with asyncio.timeout(self._config.body_timeout_seconds):
                body = await self._body(connection, reader)
        except TimeoutError:
            raise _Refused(408) from None
        target = head.target.decode("ascii", "replace").partition("?")[0]
        return Request(head.method.decode("ascii", "replace"), target, body)

    async def _body(self, connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            event = await self._next(connection, reader)
            if isinstance(event, h11.EndOfMessage):
                return b"".join(parts)
            if not isinstance(event, h11.Data):
                raise _Refused(400)
            size += len(event.data)
            if size > MAX_BODY_BYTES:
                raise _Refused(413)
            parts.append(bytes(event.data))

    @staticmethod
    async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
        while True:
            event = connection.next_event()
            if event is not h11.NEED_DATA:
                return event
            connection.receive_data(await reader.read(_CHUNK))

    @staticmethod
    async def _write(
        connection: h11.Connection, writer: asyncio.StreamWriter, request: Request, response: Response
    ) -> None:
        headers = [
            ("content-type", response.content_type),
            ("content-length", str(len(response.body))),
            ("cache-control", "no-cache"),
        ]
        data = connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if request.method != "HEAD":
            data += connection.send(h11.Data(data=response.body)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
        writer.write(data)
        async with asyncio.timeout(_WRITE_SECONDS):
            await writer.drain()
