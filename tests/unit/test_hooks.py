"""The port by which the NF is told of its certificate: repeated until told, newest wins, nobody held up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from nf_agent import Credential
from nf_agent.config import HooksConfig
from nf_agent.hooks import Callbacks, CredentialFiles, Hook, Hooks
from nftrust.errors import NftrustError, Reason
from tests.hooks_kit import credential, eventually


class Told:
    """A hook that keeps what it was told, after failing as often as it is made to."""

    def __init__(self, name: str, failures: int = 0, error: Exception | None = None) -> None:
        self.name = name
        self.failures = failures
        self.error = error or NftrustError(Reason.HOOK_FAILED)
        self.told: list[Credential] = []

    async def tell(self, credential: Credential) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        if credential not in self.told[-1:]:
            self.told.append(credential)

    def publish(self, credential: Credential) -> None:
        """As the files do, at once."""
        if self.failures:
            raise NftrustError(Reason.STORAGE_FULL)


class Nf:
    """What the hooks are told of."""

    def __init__(self, files: Told, *others: Hook, present: Credential | None = None) -> None:
        self.present = present
        self.hooks = Hooks(lambda: self.present, cast("CredentialFiles", files), others, retry_cap_seconds=0.02)

    def change(self, present: Credential) -> None:
        self.present = present
        self.hooks.certificate_changed()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        run = asyncio.create_task(self.hooks.run())
        try:
            yield
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


async def test_the_certificate_that_is_there_and_each_new_one() -> None:
    one, two = credential("one"), credential("two")
    files, command = Told("files"), Told("command")
    nf = Nf(files, command, present=one)
    async with nf.running():
        await eventually(lambda: command.told == [one], "told at start")
        nf.change(two)
        await eventually(lambda: command.told == [one, two], "told of the new one")
    assert files.told == [one, two]
    assert nf.hooks.pending == frozenset()


async def test_nothing_before_the_first() -> None:
    files, command = Told("files"), Told("command")
    nf = Nf(files, command)
    async with nf.running():
        await asyncio.sleep(0.05)
        assert files.told == command.told == []
        nf.change(credential("one"))
        await eventually(lambda: command.told == [credential("one")], "told")


@pytest.mark.parametrize("error", [NftrustError(Reason.HOOK_FAILED), ValueError("unexpected")])
async def test_a_failure_is_repeated_and_does_not_keep_the_neighbour(error: Exception) -> None:
    files, first, second = Told("files"), Told("first", 3, error), Told("second")
    nf = Nf(files, first, second, present=credential("one"))
    async with nf.running():
        await eventually(lambda: first.told == [credential("one")], "repeated")
        await eventually(lambda: not nf.hooks.pending, "done")
    assert second.told == [credential("one")]
    assert nf.hooks.failures == {"files": 0, "first": 3, "second": 0}


async def test_nobody_is_sent_to_files_that_are_not_there() -> None:
    files, command = Told("files", 1000), Told("command")
    nf = Nf(files, command, present=credential("one"))
    async with nf.running():
        await eventually(lambda: nf.hooks.failures["files"] > 2, "repeated")
        assert command.told == []
        assert nf.hooks.pending == {"files", "command"}
        files.failures = 0
        await eventually(lambda: command.told == [credential("one")], "told once there is room")


async def test_the_caller_is_not_held_up_and_the_newest_wins() -> None:
    class Slow(Told):
        free = asyncio.Event()

        async def tell(self, credential: Credential) -> None:
            await self.free.wait()
            await super().tell(credential)

    slow = Slow("command")
    nf = Nf(Told("files"), slow, present=credential("one"))
    async with nf.running():
        await asyncio.sleep(0)
        for name in ("two", "three", "four"):
            nf.change(credential(name))
        slow.free.set()
        await eventually(lambda: slow.told[-1:] == [credential("four")], "told")
    assert credential("three") not in slow.told


async def test_a_change_ends_the_pause() -> None:
    failing = Told("command", 1)
    nf = Nf(Told("files"), failing, present=credential("one"))
    nf.hooks._retry_cap_seconds = 3600.0
    nf.hooks._pause = lambda failed: 3600.0  # type: ignore[method-assign]
    async with nf.running():
        await eventually(lambda: nf.hooks.failures["command"] == 1, "failed")
        nf.change(credential("two"))
        await eventually(lambda: failing.told == [credential("two")], "told at once")


async def test_callbacks_plain_and_asynchronous_once_for_each_credential() -> None:
    plain: list[Credential] = []
    later: list[Credential] = []

    async def coroutine(credential: Credential) -> None:
        await asyncio.sleep(0)
        later.append(credential)

    callbacks = Callbacks(5.0)
    callbacks.add(plain.append)
    callbacks.add(coroutine)
    for name in ("one", "one", "two"):
        await callbacks.tell(credential(name))
    assert plain == later == [credential("one"), credential("two")]


async def test_a_callback_that_raises_is_called_again_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    well: list[Credential] = []
    calls = 0

    def ill(credential: Credential) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError

    callbacks = Callbacks(5.0)
    callbacks.add(ill)
    callbacks.add(well.append)
    with pytest.raises(NftrustError) as caught:
        await callbacks.tell(credential("one"))
    assert caught.value.reason is Reason.HOOK_FAILED
    await callbacks.tell(credential("one"))
    assert calls == 2
    assert well == [credential("one")]


async def test_a_callback_that_hangs_is_given_up_for_now() -> None:
    async def hang(credential: Credential) -> None:
        await asyncio.Event().wait()

    callbacks = Callbacks(0.01)
    callbacks.add(hang)
    with pytest.raises(NftrustError) as caught:
        await callbacks.tell(credential("one"))
    assert caught.value.reason is Reason.HOOK_FAILED


@pytest.mark.parametrize(
    "section",
    [
        {"command": ["nginx", "-s", "reload"]},
        {"command": ["./reload"]},
        {"command": [""]},
        {"command": ["/bin/true", "a\0b"]},
        {"command": ["/bin/true"] * 65},
        {"command": "/bin/true"},
        {"command": ["/bin/true", "x" * 4097]},
        {"environment": {"NFTRUST_KEY_URI": "x"}},
        {"environment": {"A=B": "x"}},
        {"environment": {"A": "x\0"}},
        {"environment": {f"A{number}": "" for number in range(65)}},
        {"timeout_seconds": 0},
        {"timeout_seconds": 601},
        {"shell": True},
    ],
)
def test_what_cannot_be_configured(section: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(section, HooksConfig)


def test_what_can() -> None:
    command = ["/usr/local/bin/on-certificate", "a b", "$(x)"]
    section = {"directory": "/run/nf", "command": command, "environment": {"NGINX_PID": "/run/nginx.pid"}}
    made = msgspec.convert(section, HooksConfig, dec_hook=lambda target, value: Path(value))
    assert made.command == tuple(command)
