"""The supervisor: keeps fronts alive behind reserved ports.

A front that has ended is started again with back-off, one that sends no
heartbeat is killed. All fronts die with the supervisor.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nftrust.errors import NftrustError
from nftrust.process.control import ALIVE, EX_CONFIG, MAX_MESSAGE_BYTES, READY, REFUSED, parse_refusal
from nftrust.process.ports import reserved

log = logging.getLogger(__name__)

#: A front without a heartbeat for so long is killed.
SILENCE_SECONDS = 10.0
#: The same until the first heartbeat: the interpreter starts and the role is imported.
START_SECONDS = 60.0
DRAIN_SECONDS = 20.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
#: A front that has lived for so long starts again without a pause.
STABLE_SECONDS = 10.0
_TICK_SECONDS = 0.1


@dataclass(slots=True)
class _Slot:
    """A place for one front."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    control: int = -1
    unread: bytes = b""
    ready: bool = False
    refusal: NftrustError | None = None
    silent_at: float = 0.0
    started: float = 0.0
    start_at: float = 0.0
    pause: float = 0.0


class Supervisor:
    """``command`` is a front's command line; ``--control-fd N`` is added to it.

    ``on_ready`` is called once, when every front has reported ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        addresses: Sequence[str],
        *,
        fronts: int,
        pass_fds: Sequence[int] = (),
        on_ready: Callable[[], None] = lambda: None,
        silence: float = SILENCE_SECONDS,
        drain: float = DRAIN_SECONDS,
    ) -> None:
        self._command = list(command)
        self._addresses = addresses
        self._slots = [_Slot(number) for number in range(fronts)]
        self._pass_fds = tuple(pass_fds)
        self._on_ready = on_ready
        self._silence = silence
        self._drain_seconds = drain
        self._announced = False
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
                    if slot.process is None and time.monotonic() >= slot.start_at:
                        self._start(slot)
                self._listen()
                for slot in self._slots:
                    if self._check(slot) == EX_CONFIG:
                        return self._give_up(slot)
            self._drain()
        return 0

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _give_up(self, slot: _Slot) -> int:
        self._drain()
        if slot.refusal is not None:
            raise slot.refusal
        return EX_CONFIG

    def _start(self, slot: _Slot) -> None:
        reading, writing = os.pipe()
        command = [*self._command, "--control-fd", str(writing)]
        slot.process = subprocess.Popen(command, pass_fds=(writing, *self._pass_fds), start_new_session=True)
        os.close(writing)
        os.set_blocking(reading, False)
        slot.control, slot.unread, slot.ready, slot.refusal = reading, b"", False, None
        slot.started = time.monotonic()
        slot.silent_at = slot.started + max(START_SECONDS, self._silence)
        self._selector.register(reading, selectors.EVENT_READ, slot)

    def _listen(self) -> None:
        for key, _ in self._selector.select(_TICK_SECONDS):
            self._receive(key.data)
        now = time.monotonic()
        if now - self._last_tick > self._silence / 2:
            # While the supervisor itself did not run, silence says nothing about the fronts.
            for slot in self._slots:
                slot.silent_at = max(slot.silent_at, now + self._silence)
        self._last_tick = now
        if not self._announced and all(slot.ready for slot in self._slots):
            self._announced = True
            self._on_ready()

    def _receive(self, slot: _Slot) -> bool:
        """Take what the front has said; False once it says no more."""
        try:
            data = os.read(slot.control, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            if slot.control in self._selector.get_map():
                self._selector.unregister(slot.control)
            return False
        *lines, rest = (slot.unread + data).split(b"\n")
        slot.unread = rest[-MAX_MESSAGE_BYTES:]
        for line in lines:
            word, _, text = line.decode("utf-8", "replace").partition(" ")
            if word == REFUSED:
                slot.refusal = parse_refusal(text)
            elif word in (ALIVE, READY):
                slot.silent_at = time.monotonic() + self._silence
                slot.ready = word == READY
        return True

    def _check(self, slot: _Slot) -> int | None:
        """Bury a front that has ended, kill one that is silent; its exit status where it has ended."""
        process = slot.process
        if process is None:
            return None
        now = time.monotonic()
        if process.poll() is None and now > slot.silent_at:
            log.error("front is silent, killed", extra={"front": slot.number, "child": process.pid})
            process.kill()
            process.wait()
        if process.returncode is None:
            return None
        while self._receive(slot):
            pass  # its last words
        self._bury(slot, now)
        log.warning("front ended", extra={"front": slot.number, "status": process.returncode})
        return process.returncode

    def _bury(self, slot: _Slot, now: float) -> None:
        if slot.control in self._selector.get_map():
            self._selector.unregister(slot.control)
        os.close(slot.control)
        stable = now - slot.started > STABLE_SECONDS
        slot.process, slot.control, slot.ready = None, -1, False
        slot.start_at = now + (0.0 if stable else slot.pause)
        slot.pause = 0.0 if stable else min(max(slot.pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)

    def _drain(self) -> None:
        """SIGTERM to every front, then SIGKILL to what is left."""
        alive = [slot.process for slot in self._slots if slot.process is not None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds
        for process in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
