"""The process model against real processes: who is replaced, who dies with whom, who is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.process_target import free_address

pytestmark = pytest.mark.process

PATIENCE_SECONDS = 30.0


class Running:
    """A supervisor under test."""

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self.address = address
        self.process = process

    def ask(self) -> int:
        """The process id of the front that answers, 0 where none does."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=1.0) as connection:
                return int(connection.makefile().readline() or 0)
        except OSError:
            return 0

    def fronts(self) -> set[int]:
        return {pid for pid in _children(self.process.pid) if not _ended(pid)}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def finish(self) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, output, errors


@contextmanager
def supervising(address: str, fronts: int = 1, behaviour: str = "normal") -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.contract.process_target", "supervise", address, str(fronts), behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        running = Running(address, process)
        try:
            yield running
        finally:
            for pid in {*running.fronts(), process.pid} if process.poll() is None else set():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def address() -> str:
    return free_address()


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until ``condition`` holds; the bound is patience, not a measurement."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_all_fronts_serve_one_port_and_drain_on_sigterm(address: str) -> None:
    with supervising(address, fronts=2) as running:
        running.wait_ready()
        fronts = running.fronts()
        assert len(fronts) == 2
        eventually(lambda: running.ask() in fronts, "a front answers")
        running.process.send_signal(signal.SIGTERM)
        status, output, _ = running.finish()
        assert status == 0
        assert sorted(output.splitlines()) == sorted(f"drained {pid}" for pid in fronts)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_frozen_front_is_replaced(address: str, blow: signal.Signals) -> None:
    with supervising(address) as running:
        running.wait_ready()
        (victim,) = running.fronts()
        os.kill(victim, blow)
        eventually(lambda: running.fronts() not in (set(), {victim}), "a new front")
        eventually(lambda: running.ask() not in (0, victim), "the new front answers")
        assert _ended(victim)


def test_a_front_whose_event_loop_hangs_is_replaced(address: str) -> None:
    with supervising(address, behaviour="block") as running:
        running.wait_ready()
        victim = running.ask()
        assert victim
        eventually(lambda: _ended(victim), "the hanging front is killed")
        eventually(lambda: running.ask() not in (0, victim), "another front answers")


def test_the_other_front_is_left_alone(address: str) -> None:
    with supervising(address, fronts=2) as running:
        running.wait_ready()
        victim, survivor = running.fronts()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(running.fronts() - {victim}) == 2, "a new front")
        assert survivor in running.fronts()


@pytest.mark.parametrize("frozen", [False, True])
def test_fronts_die_with_a_killed_supervisor(address: str, frozen: bool) -> None:
    with supervising(address, fronts=2) as running:
        running.wait_ready()
        fronts = running.fronts()
        if frozen:
            os.kill(min(fronts), signal.SIGSTOP)
        running.process.kill()
        eventually(lambda: all(_ended(pid) for pid in fronts), "no orphan is left")


def test_a_supervisor_that_was_stopped_does_not_kill_its_fronts(address: str) -> None:
    with supervising(address, fronts=2) as running:
        running.wait_ready()
        fronts = running.fronts()
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # longer than the silence it allows
        running.process.send_signal(signal.SIGCONT)
        running.process.send_signal(signal.SIGTERM)
        status, output, errors = running.finish()
        assert status == 0
        assert len(output.splitlines()) == 2, "both drained"
        assert "hangs" not in errors
        assert all(_ended(pid) for pid in fronts)


def test_a_second_supervisor_on_the_port_is_refused(address: str) -> None:
    with supervising(address) as running:
        running.wait_ready()
        with supervising(address) as second:
            status, output, errors = second.finish()
        assert (status, output) == (78, "")
        assert errors == f"PORT_IN_USE: cannot listen on {address}\n"
        assert running.ask() in running.fronts()


def test_a_supervisor_starts_at_once_after_a_crash_of_the_former(address: str) -> None:
    """Connections of the former instance linger in TIME_WAIT on the port."""
    with supervising(address) as running:
        running.wait_ready()
        fronts = running.fronts()
        assert running.ask() in fronts
        running.process.kill()
        eventually(lambda: all(_ended(pid) for pid in fronts), "no orphan is left")
    with supervising(address) as following:
        following.wait_ready()
        assert following.ask() in following.fronts()


def test_a_permanent_refusal_to_start_stops_the_supervisor_with_one_line(address: str) -> None:
    with supervising(address, fronts=2, behaviour="refuse") as running:
        status, output, errors = running.finish()
        assert (status, output) == (78, "")
        refusals = [line for line in errors.splitlines() if not line.startswith("{")]
        assert refusals == ["PIN_INCORRECT: The token refused the PIN; it is not tried again."]


def test_a_transient_refusal_to_start_is_tried_again(address: str, tmp_path: Path) -> None:
    with supervising(address, behaviour=f"busy:{tmp_path / 'mark'}") as running:
        running.wait_ready()
        assert running.ask() in running.fronts()


def test_a_front_that_does_not_drain_is_killed(address: str) -> None:
    with supervising(address, behaviour="stuck") as running:
        running.wait_ready()
        (front,) = running.fronts()
        running.process.send_signal(signal.SIGTERM)
        status, output, _ = running.finish()
        assert (status, output) == (0, "")
        assert _ended(front)
