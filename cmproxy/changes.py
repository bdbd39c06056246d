"""Who watches which enrolment, and what there is to tell them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from cmproxy.model import Enrolment
from nftrust.errors import NftrustError

log = logging.getLogger("cmproxy.changes")

#: How often the database is asked for what other processes have changed.
POLL = timedelta(milliseconds=500)


class Feed:
    """The newest state of one enrolment for one watcher, who may miss states in between but never sees an older one."""

    def __init__(self) -> None:
        self.revision = -1
        self._next: Enrolment | NftrustError | None = None
        self._filled = asyncio.Event()

    def put(self, enrolment: Enrolment) -> None:
        """Offer a committed state; one that is not newer is passed over."""
        if enrolment.revision > self.revision:
            self.revision = enrolment.revision
            self._fill(enrolment)

    def fail(self, error: NftrustError) -> None:
        """The watcher cannot be told any more."""
        self._fill(error)

    async def next(self) -> Enrolment:
        """Wait for a state that has not been read yet. Raises the NftrustError of :meth:`fail`."""
        await self._filled.wait()
        self._filled.clear()
        found, self._next = self._next, None
        assert found is not None
        if isinstance(found, NftrustError):
            raise found
        return found

    def _fill(self, item: Enrolment | NftrustError) -> None:
        self._next = item
        self._filled.set()


class Changes:
    """What this process commits reaches its watchers at once; what others commit, at the next poll."""

    def __init__(self) -> None:
        self._feeds: dict[str, set[Feed]] = {}

    @contextmanager
    def watch(self, enrolment_id: str) -> Iterator[Feed]:
        """A feed that gets all changes from now on."""
        feed = Feed()
        feeds = self._feeds.setdefault(enrolment_id, set())
        feeds.add(feed)
        try:
            yield feed
        finally:
            feeds.discard(feed)
            if not feeds and self._feeds.get(enrolment_id) is feeds:
                del self._feeds[enrolment_id]

    def publish(self, enrolment: Enrolment) -> None:
        """It has been committed."""
        for feed in self._feeds.get(enrolment.id, ()):
            feed.put(enrolment)

    async def follow(
        self, newer: Callable[[Mapping[str, int]], Awaitable[Sequence[Enrolment]]], every: timedelta = POLL
    ) -> None:
        """Until cancelled: ask ``newer`` for states beyond the revisions that watchers have. A refusal ends watches."""
        while True:
            await asyncio.sleep(every.total_seconds())
            known = {name: min(feed.revision for feed in feeds) for name, feeds in self._feeds.items()}
            if not known:
                continue
            try:
                for enrolment in await newer(known):
                    self.publish(enrolment)
            except NftrustError as error:
                for name in known:
                    for feed in self._feeds.get(name, ()):
                        feed.fail(error)
            except Exception:
                log.exception("changes cannot be followed")
