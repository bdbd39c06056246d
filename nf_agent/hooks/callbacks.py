"""Callbacks of an NF that has the agent inside."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nf_agent.credential import Credential
from nf_agent.hooks.files import fingerprint
from nftrust.errors import NftrustError, Reason

log = logging.getLogger("nf_agent.hooks")

#: Plain, or a coroutine function. An exception means that it is to be called again.
Callback = Callable[[Credential], Awaitable[None] | None]


@dataclass(slots=True)
class _Registered:
    callback: Callback
    told: str = ""


class Callbacks:
    """A hook: calls back from the event loop, each callback once for each credential."""

    name = "callback"

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._registered: list[_Registered] = []

    def add(self, callback: Callback) -> None:
        self._registered.append(_Registered(callback))

    async def tell(self, credential: Credential) -> None:
        """Raises NftrustError(HOOK_FAILED) where one of them did; the others have been called."""
        present = fingerprint(credential)
        outcomes = [await self._call(each, credential, present) for each in self._registered if each.told != present]
        if not all(outcomes):
            raise NftrustError(Reason.HOOK_FAILED)

    async def _call(self, registered: _Registered, credential: Credential, present: str) -> bool:
        try:
            answer = registered.callback(credential)
            if inspect.isawaitable(answer):
                async with asyncio.timeout(self._timeout_seconds):
                    await answer
        except Exception:
            log.exception("a callback of the embedding NF failed")
            return False
        registered.told = present
        return True
