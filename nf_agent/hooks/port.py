"""The port: something has changed, tell the NF.

It is level-triggered. A hook compares what the NF has been told with the
credential in use and does what is missing, so that a call may be lost to a
kill, be repeated or come too often, and the NF still ends up with the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from nf_agent.credential import Credential
from nf_agent.hooks.files import CredentialFiles
from nftrust.errors import NftrustError

log = logging.getLogger("nf_agent.hooks")

FIRST_PAUSE_SECONDS = 0.5


class Hook(Protocol):
    """One way of telling the NF."""

    @property
    def name(self) -> str:
        """For logs and metrics."""
        ...

    async def tell(self, credential: Credential) -> None:
        """Do what is missing; nothing where the NF knows this credential. Raises NftrustError: to be repeated."""
        ...


class Hooks:
    """Files first, since the others point to them; then each of the others, whether or not its neighbour failed."""

    def __init__(
        self,
        present: Callable[[], Credential | None],
        files: CredentialFiles,
        others: Sequence[Hook],
        *,
        retry_cap_seconds: float,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._present = present
        self._files = files
        self._others = others
        self._retry_cap_seconds = retry_cap_seconds
        self._on_progress = on_progress
        self._changed = asyncio.Event()
        #: Failures by hook, of this process so far.
        self.failures: Counter[str] = Counter({hook.name: 0 for hook in (files, *others)})
        #: Hooks that have yet to tell the NF of the credential in use.
        self.pending: frozenset[str] = frozenset()

    def certificate_changed(self) -> None:
        """The credential in use, or its trust bundle, is another one: called after it is persisted. Never raises.

        Where they can be written, the files are there when it returns; the rest follows in the background, is
        repeated until it succeeds, and is taken up again after a restart.
        """
        with contextlib.suppress(NftrustError):  # told, and repeated, in the background
            credential = self._present()
            if credential is not None:
                self._files.publish(credential)
        self._changed.set()

    async def run(self) -> None:
        """Keep the NF informed, until cancelled."""
        failed = 0
        while True:
            self._changed.clear()
            failed = 0 if await self._tell_all() else failed + 1
            pause = None if failed == 0 else self._pause(failed)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def _pause(self, failed: int) -> float:
        cap = min(self._retry_cap_seconds, FIRST_PAUSE_SECONDS * 2 ** min(failed - 1, 12))
        return random.uniform(cap / 2, cap)

    async def _tell_all(self) -> bool:
        """Whether the NF now knows everything."""
        try:
            credential = self._present()
        except NftrustError as error:
            log.error("the credential cannot be told of", extra={"reason": error.reason.name})
            return False
        if credential is None:
            return True
        pending = {self._files.name, *(hook.name for hook in self._others)}
        if await self._tell(self._files, credential):
            pending.remove(self._files.name)
            for hook in self._others:
                if await self._tell(hook, credential):
                    pending.remove(hook.name)
        self.pending = frozenset(pending)
        self._on_progress()
        return not pending

    async def _tell(self, hook: Hook, credential: Credential) -> bool:
        try:
            await hook.tell(credential)
        except NftrustError as error:
            log.warning("hook failed, will be repeated", extra={"hook": hook.name, "reason": error.reason.name})
        except Exception:
            log.exception("hook failed unexpectedly", extra={"hook": hook.name})
        else:
            return True
        self.failures[hook.name] += 1
        return False
