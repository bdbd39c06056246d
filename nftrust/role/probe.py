"""The plaintext local endpoint for orchestrators and Prometheus: /livez, /readyz, /metrics.

It tells nothing that is secret and takes nothing but GET; still it is bound to
loopback unless the configuration says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nftrust.config import HttpConfig, ProbeConfig
from nftrust.http import HttpServer, Request, Response
from nftrust.role import metrics

MAX_CONNECTIONS = 64


class Probe:
    """``missing`` names what the server lacks; nothing where it is ready."""

    def __init__(self, missing: Callable[[], list[str]]) -> None:
        self._missing = missing

    async def handle(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405)
        if request.path == "/livez":
            return Response(200, b"ok\n")
        if request.path == "/readyz":
            missing = self._missing()
            return Response(503, f"missing: {', '.join(missing)}\n".encode()) if missing else Response(200, b"ok\n")
        if request.path == "/metrics":
            body = await asyncio.to_thread(metrics.exposition)
            return Response(200, body, "text/plain; version=0.0.4; charset=utf-8")
        return Response(404)


@asynccontextmanager
async def probed(config: ProbeConfig | None, missing: Callable[[], list[str]]) -> AsyncIterator[None]:
    """Serve until the end of the block, if there is anything to serve. Raises NftrustError(PORT_IN_USE)."""
    if config is None:
        yield
        return
    http = HttpConfig(address=config.address, public_url="", max_connections=MAX_CONNECTIONS)
    server = HttpServer(http, Probe(missing).handle, reuse_port=True)
    await server.start()
    try:
        yield
    finally:
        await server.stop()
