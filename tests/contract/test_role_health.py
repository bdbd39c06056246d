"""Health while the clock cannot be trusted: it says so, and goes on looking at the rest."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from nftrust.clock import GuardedClock
from nftrust.config import StoreConfig
from nftrust.role.health import HealthWatch, Served
from nftrust.storage import Store
from nftrust.storage.tables import audit_event
from tests.contract.storage_kit import FakeClock


class Front:
    """The supervisor's side."""

    impaired: bool | None = None

    def report(self, *, impaired: bool) -> None:
        self.impaired = impaired

    async def server_health(self) -> bool:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_untrusted_clock_is_told_and_hides_nothing_else(
    database: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nftrust.role.health.STEADY_SECONDS", 0.0)
    wall, front, token = FakeClock(), Front(), SimpleNamespace(losses=0, available=True)
    clock = GuardedClock(wall)
    store = Store.open(database, clock)
    try:
        watch = HealthWatch(Served([], store, clock, token), front, "urn:nftrust:test")  # type: ignore[arg-type]
        await watch._look_once()
        assert (watch.missing(), front.impaired) == ([], False)
        wall.wall += timedelta(hours=1)
        token.available = False
        await watch._look_once()
        assert (watch.missing(), front.impaired) == (["clock", "token"], True)
        token.available = True
        await watch._look_once()
        assert (watch.missing(), front.impaired) == (["clock"], True)
        wall.wall -= timedelta(hours=1)
        await watch._look_once()
        assert (watch.missing(), front.impaired) == ([], False)
        query = select(audit_event.c.action).order_by(audit_event.c.sequence)
        actions = await store.read(lambda connection: connection.execute(query).scalars().all())
        assert actions == ["token.lost", "token.back", "clock.back"]
    finally:
        store.close()
