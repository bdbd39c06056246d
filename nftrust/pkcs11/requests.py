"""Who waits for what: operations on their way to a token, and how their callers hear of the results."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from nftrust.errors import NftrustError
from nftrust.pkcs11.operations import Operation, Outcome


@dataclass(frozen=True, slots=True)
class Request:
    """Operations that go in one batch, and who waits for all of them: a thread, or a coroutine of ``loop``."""

    operations: Sequence[Operation[Any]]
    future: Future[list[Any]] | asyncio.Future[list[Any]]
    loop: asyncio.AbstractEventLoop | None = None

    def wanted(self) -> bool:
        """Whether somebody still waits; a thread can no longer give up from now on."""
        if isinstance(self.future, Future):
            return self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()


Answer = tuple[Request, list[Any] | None, NftrustError | None]


def answers(batch: Sequence[Request], outcomes: Sequence[Outcome]) -> list[Answer]:
    """Each request with its results, or with the failure of the first of its operations that failed."""
    found: list[Answer] = []
    rest = iter(outcomes)
    for request in batch:
        own = list(itertools.islice(rest, len(request.operations)))
        failure = next((outcome.failure for outcome in own if outcome.failure is not None), None)
        if failure is None:
            found.append((request, [outcome.value for outcome in own], None))
        else:
            found.append((request, None, failure.error()))
    return found


def tell(answers: Sequence[Answer]) -> None:
    """Settle the futures, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        loop = answer[0].loop
        if loop is None:
            _settle([answer])
        else:
            by_loop.setdefault(loop, []).append(answer)
    for loop, own in by_loop.items():
        # A closed loop has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, own)


def _settle(answers: Sequence[Answer]) -> None:
    for request, results, error in answers:
        if request.future.done():
            continue
        if error is not None:
            request.future.set_exception(error)
        else:
            assert results is not None
            request.future.set_result(results)
