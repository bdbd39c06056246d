"""Carries out what OAM has retired: the CA/RA closes the end entity, however long it takes.

The intention is stored first and the effect is idempotent at the callee, so
that the proxy may be killed at any instant, and no lease is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta

from cmproxy.machine import RetryPolicy
from cmproxy.model import NetworkFunction
from cmproxy.ports import CaRaPort, Retirements
from nftrust.errors import NftrustError, Reason

log = logging.getLogger("cmproxy.retirement")

#: How often an idle proxy looks for retirements that are due; one that is asked for wakes it.
POLL = timedelta(seconds=1)
#: Carried out at a time.
CONCURRENCY = 16


class Retirer:
    """One per process."""

    def __init__(self, store: Retirements, ca_ra: CaRaPort, retry: RetryPolicy) -> None:
        self._store = store
        self._ca_ra = ca_ra
        self._retry = retry
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; a failing database slows it down and does not end it."""
        while True:
            self._wake.clear()
            try:
                due = await self._store.due(CONCURRENCY)
                await asyncio.gather(*(self._retire(nf, registrations) for nf, registrations in due))
                if len(due) == CONCURRENCY:
                    continue  # there may be more
            except NftrustError as error:
                log.warning("retirements cannot be looked up", extra={"reason": error.reason.name})
            except Exception:
                log.exception("retirements cannot be looked up")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL.total_seconds()):
                    await self._wake.wait()

    async def _retire(self, nf: NetworkFunction, registrations: tuple[str, ...]) -> None:
        try:
            await self._ca_ra.retire(nf, registrations)
        except NftrustError as error:
            log.warning("retirement put off", extra={"nf": nf.name, "reason": error.reason.name})
            await self._put_off(nf, error.reason, error.retry_after)
        except Exception:
            log.exception("retirement put off", extra={"nf": nf.name})
            await self._put_off(nf, Reason.INTERNAL, None)
        else:
            await self._store.finish(nf)
            log.info("network function retired", extra={"nf": nf.name})

    async def _put_off(self, nf: NetworkFunction, reason: Reason, at_least: float | None) -> None:
        await self._store.put_off(nf, reason, self._retry.delay(nf.retire_attempt + 1, at_least))
