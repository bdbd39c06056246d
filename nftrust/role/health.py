"""A role's health: what it needs is there, or health checks say so and the audit log tells when it was not.

Token, database and clock are looked at a few times a second. A front that lacks one
tells its supervisor, and every front of the server answers NOT_SERVING until
all have what they need again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509

from nftrust.clock import Clock, SystemClock
from nftrust.errors import NftrustError
from nftrust.files import read_file
from nftrust.pkcs11.client import TokenClient
from nftrust.role import metrics
from nftrust.rpc.server import RpcServer
from nftrust.storage import Store, Transaction

LOOK_SECONDS = 0.25
#: A token that was lost is back once it has been well for so long: a login may succeed and nothing after it.
STEADY_SECONDS = 1.0
#: How often a database that seems well is asked.
ASK_SECONDS = 1.0
#: How often gauges are set that cost more than a look.
MEASURE_SECONDS = 15.0
#: Outages that wait for the database to come back before they can be audited.
MAX_PENDING = 64

log = logging.getLogger(__name__)


class Reporter(Protocol):
    """The supervisor's view, see :class:`nftrust.process.front.Front`."""

    def report(self, *, impaired: bool) -> None: ...

    async def server_health(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What a composition root has opened, as far as health is concerned."""

    servers: Sequence[RpcServer]
    store: Store
    clock: Clock
    token: TokenClient | None = None
    #: PEM files whose ends of validity are watched, by a name for the metrics.
    certificates: Mapping[str, Path] = field(default_factory=dict)
    #: Sets the role's gauges that cost a look into its database. Raises NftrustError.
    measure: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class _Event:
    action: str
    subject: str
    detail: dict[str, str]


class HealthWatch:
    """Looks after one front. ``actor`` is the role's name in the audit log, such as ``urn:nftrust:ca-ra``."""

    def __init__(self, served: Served, front: Reporter, actor: str) -> None:
        self._served = served
        self._front = front
        self._actor = actor
        self._lost_since: dict[str, datetime] = {}
        self._losses = 0 if served.token is None else served.token.losses
        self._token_steady_at = 0.0
        self._pending: list[_Event] = []
        self._server_serving = True
        self._store_well = True
        self._ask_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*map(_for_ever, (self._look_once, self._follow_once, self._measure_once)))

    def missing(self) -> list[str]:
        """What this front lacks, or that another one of the server lacks something; empty: ready."""
        lost = sorted(self._lost_since)
        return lost if lost or self._server_serving else ["another front"]

    async def _measure_once(self) -> float:
        for name, path in self._served.certificates.items():
            with contextlib.suppress(NftrustError, ValueError):  # told when it was read
                leaf = x509.load_pem_x509_certificates(read_file(path))[0]
                metrics.not_after(name, leaf.not_valid_after_utc)
        if self._served.measure is not None:
            with contextlib.suppress(NftrustError):
                await self._served.measure()
        return MEASURE_SECONDS

    async def _follow_once(self) -> float:
        """Answer health checks with what holds for the whole server."""
        self._server_serving = serving = await self._front.server_health()
        for server in self._served.servers:
            await server.set_serving(serving)
        return 0.0

    async def _look_once(self) -> float:
        well = {"clock": self._look_at_clock(), "token": self._look_at_token(), "storage": await self._look_at_store()}
        self._front.report(impaired=not all(well.values()))
        for what, available in well.items():
            metrics.available(what, available)
        if self._pending and well["storage"]:
            await self._audit()
        return LOOK_SECONDS

    def _look_at_clock(self) -> bool:
        try:
            self._served.clock.now()
        except NftrustError:
            self._note_loss("clock", audit=False)  # nothing can be written at no time
            return False
        self._note_return("clock")
        return True

    def _look_at_token(self) -> bool:
        token = self._served.token
        if token is None:
            return True
        now, losses = asyncio.get_running_loop().time(), token.losses
        if losses != self._losses or not token.available:
            self._losses = losses
            self._token_steady_at = now + STEADY_SECONDS
            self._note_loss("token", audit=True)
        elif now >= self._token_steady_at:
            self._note_return("token")
        return "token" not in self._lost_since

    async def _look_at_store(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._store_well and self._served.store.writable and now < self._ask_at:
            return True
        self._ask_at = now + ASK_SECONDS
        self._store_well = await self._served.store.usable()
        if self._store_well:
            self._note_return("storage")
        else:
            self._note_loss("storage", audit=False)  # it cannot be written now
        return self._store_well

    def _note_loss(self, what: str, *, audit: bool) -> None:
        if what in self._lost_since:
            return
        self._lost_since[what] = SystemClock().now()  # the role's own clock may be what is lost
        log.error("lost", extra={"what": what})
        if audit:
            self._keep(_Event(f"{what}.lost", what, {}))

    def _note_return(self, what: str) -> None:
        since = self._lost_since.pop(what, None)
        if since is None:
            return
        log.warning("back", extra={"what": what, "since": since.isoformat()})
        self._keep(_Event(f"{what}.back", what, {"lost": since.isoformat()}))

    def _keep(self, event: _Event) -> None:
        if len(self._pending) < MAX_PENDING:
            self._pending.append(event)

    async def _audit(self) -> None:
        pending, self._pending = self._pending, []

        def work(tx: Transaction) -> None:
            for event in pending:
                tx.audit(actor=self._actor, action=event.action, subject=event.subject, detail=event.detail)

        try:
            await self._served.store.write(work)
        except NftrustError:
            self._pending = pending + self._pending


async def _for_ever(turn: Callable[[], Awaitable[float]]) -> None:
    """Turn after turn, with the pause that each asks for; a turn that fails unexpectedly is not the last."""
    while True:
        try:
            pause = await turn()
        except Exception:
            log.exception("health cannot be looked after")
            pause = MEASURE_SECONDS
        await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def watched(served: Served, front: Reporter, actor: str) -> AsyncIterator[HealthWatch]:
    """Watch over ``served`` until the end of the block."""
    watch = HealthWatch(served, front, actor)
    watching = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
