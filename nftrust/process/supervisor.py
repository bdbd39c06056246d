"""The supervisor: keeps fronts alive behind reserved ports.

A front that has ended is started again with back-off, one that hangs is
killed. All fronts die with the supervisor. What a front says of its health
goes to all of them, so that each answers for the whole server.
"""

from __future__ import annotations

import logging
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nftrust.process.child import Child
from nftrust.process.control import EX_CONFIG, IMPAIRED, SERVING
from nftrust.process.liveness import INERT_SECONDS, SILENCE_SECONDS
from nftrust.process.ports import reserved

log = logging.getLogger(__name__)

DRAIN_SECONDS = 20.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
#: A front that has lived for so long starts again without a pause.
STABLE_SECONDS = 10.0
_TICK_SECONDS = 0.1


@dataclass(slots=True)
class _Slot:
    """A place for one front."""

    number: int
    child: Child | None = None
    start_at: float = 0.0
    pause: float = 0.0


class Supervisor:
    """``command`` is a front's command line; ``--control-fd N`` is added to it.

    ``on_ready`` is called once, when every front has reported ready;
    ``on_ended`` with the number of each front that has ended, before it is replaced.
    ``silence`` is how long a front that is at work may send no heartbeat, in
    seconds; for one that hangs it is :data:`nftrust.process.liveness.INERT_SECONDS`.
    """

    def __init__(
        self,
        command: Sequence[str],
        addresses: Sequence[str],
        *,
        fronts: int,
        pass_fds: Sequence[int] = (),
        on_ready: Callable[[], None] = lambda: None,
        on_ended: Callable[[int], None] = lambda number: None,
        silence: float = SILENCE_SECONDS,
        drain: float = DRAIN_SECONDS,
    ) -> None:
        self._command = list(command)
        self._addresses = addresses
        self._slots = [_Slot(number) for number in range(fronts)]
        self._pass_fds = tuple(pass_fds)
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._silence = silence
        self._drain_seconds = drain
        self._announced = False
        self._health = SERVING
        self._stopping = False
        self._last_tick = 0.0
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until SIGTERM or SIGINT (0), or until a front ends with 78 and has told nobody why (78).

        Raises NftrustError: PORT_IN_USE, or a front's permanent refusal to
        start, after the other fronts have drained. Call it from the main thread.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with reserved(self._addresses):
            self._last_tick = time.monotonic()
            while not self._stopping:
                for slot in self._slots:
                    if slot.child is None and time.monotonic() >= slot.start_at:
                        self._start(slot)
                self._listen()
                for slot in self._slots:
                    ended = self._check(slot)
                    if ended is not None and ended.process.returncode == EX_CONFIG:
                        return self._give_up(ended)
                self._spread_health()
            self._drain()
        return 0

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _give_up(self, ended: Child) -> int:
        self._drain()
        if ended.refusal is not None:
            raise ended.refusal
        return EX_CONFIG

    def _start(self, slot: _Slot) -> None:
        try:
            slot.child = Child(self._command, self._pass_fds, self._silence, slot.number)
        except OSError as error:  # no process, memory or descriptor left: no reason to end the other fronts
            log.error("front cannot be started", extra={"front": slot.number, "cause": type(error).__name__})
            slot.start_at = time.monotonic() + LONGEST_PAUSE_SECONDS
            return
        slot.child.tell(self._health)
        self._selector.register(slot.child.control, selectors.EVENT_READ, slot.child)

    def _children(self) -> list[Child]:
        return [slot.child for slot in self._slots if slot.child is not None]

    def _listen(self) -> None:
        for key, _ in self._selector.select(_TICK_SECONDS):
            key.data.receive()
            if key.data.hung_up:
                self._selector.unregister(key.fileobj)
        now = time.monotonic()
        if now - self._last_tick > INERT_SECONDS / 2:
            for child in self._children():
                child.vigil.forgive(now)
        self._last_tick = now
        if not self._announced and all(slot.child is not None and slot.child.ready for slot in self._slots):
            self._announced = True
            self._on_ready()

    def _check(self, slot: _Slot) -> Child | None:
        """Bury a front that has ended, kill one that hangs; the front, where it has ended."""
        child = slot.child
        if child is None:
            return None
        now = time.monotonic()
        # As of the last tick: while the supervisor does not run since, silence says nothing.
        if child.process.poll() is None and child.vigil.hangs(self._last_tick):
            log.error("front hangs, killed", extra={"front": slot.number, "child": child.process.pid})
            child.kill()
        if child.process.returncode is None:
            return None
        if child.control in self._selector.get_map():
            self._selector.unregister(child.control)
        child.close()
        self._on_ended(slot.number)
        stable = now - child.started > STABLE_SECONDS
        slot.child = None
        slot.start_at = now + (0.0 if stable else slot.pause)
        slot.pause = 0.0 if stable else min(max(slot.pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        log.warning("front ended", extra={"front": slot.number, "status": child.process.returncode})
        return child

    def _spread_health(self) -> None:
        """Clients are spread over the fronts, so the server is as well as its sickest front that serves."""
        health = IMPAIRED if any(child.impaired for child in self._children()) else SERVING
        if health != self._health:
            self._health = health
            for child in self._children():
                child.tell(health)

    def _drain(self) -> None:
        """SIGTERM to every front, then SIGKILL to what is left."""
        alive = self._children()
        for child in alive:
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds
        for child in alive:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("front does not drain, killed", extra={"child": child.process.pid})
                child.kill()
