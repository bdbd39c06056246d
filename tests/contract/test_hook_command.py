"""The command that the agent runs after each new certificate."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from nf_agent.hooks import CommandHook, CredentialFiles
from nf_agent.hooks.command import INHERITED, MAX_OUTPUT_BYTES, run
from nftrust.errors import Reason
from tests.hooks_kit import PATIENCE_SECONDS, credential, eventually
from tests.unit.support import refused

ENVIRONMENT = {"PATH": os.environ["PATH"]}
REPORT = "import json, os, sys; json.dump([dict(os.environ), sys.argv[2:]], open(sys.argv[1], 'w'))"


def shell(script: str) -> list[str]:
    """A command of the tests' own that happens to be a shell; the agent starts none."""
    return ["/bin/sh", "-c", script]


class Nf:
    """A state directory with published files, and commands that are told of them."""

    def __init__(self, directory: Path, name: str = "one") -> None:
        self.directory = directory
        self.files = CredentialFiles(directory)
        self.files.publish(credential(name))

    def hook(self, *argv: str, timeout: float = PATIENCE_SECONDS, **environment: str) -> CommandHook:
        return CommandHook(argv, environment, self.files, self.directory, timeout)


@pytest.fixture
def nf(tmp_path: Path) -> Nf:
    return Nf(tmp_path)


async def test_what_the_command_is_given(nf: Nf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "secret of the NF's")
    monkeypatch.setenv("TZ", "UTC")
    awkward = ["a b", "$(touch x)", "; exit 1", "*", ""]
    out = tmp_path / "report"
    one = credential("one")
    await nf.hook(sys.executable, "-c", REPORT, str(out), *awkward, SOFTHSM2_CONF="/nf/softhsm2.conf").tell(one)
    environment, arguments = json.loads(out.read_text())
    assert arguments == awkward  # no shell has seen them
    directory = Path(environment.pop("NFTRUST_DIRECTORY"))
    assert directory == nf.files.find(one)
    assert Path(environment.pop("NFTRUST_CERTIFICATE")) == directory / "certificate.pem"
    assert Path(environment.pop("NFTRUST_TRUST_BUNDLE")) == directory / "trust-bundle.pem"
    assert environment.pop("NFTRUST_KEY_URI") == one.pkcs11_uri
    assert environment.pop("NFTRUST_SERIAL_NUMBER") == f"{one.certificate.serial_number:x}"
    assert environment.pop("NFTRUST_NOT_AFTER") == one.certificate.not_valid_after_utc.isoformat()
    assert environment.pop("SOFTHSM2_CONF") == "/nf/softhsm2.conf"
    environment.pop("LC_CTYPE", None)  # Python's own doing
    assert environment.keys() <= set(INHERITED)
    assert environment["TZ"] == "UTC"


async def test_once_for_each_credential_also_after_a_restart(nf: Nf, tmp_path: Path) -> None:
    argv = shell("echo told >>" + str(tmp_path / "count"))

    async def told(name: str) -> int:
        nf.files.publish(credential(name))
        await nf.hook(*argv).tell(credential(name))  # a new object each time, as after a restart
        return len((tmp_path / "count").read_text().splitlines())

    assert [await told(name) for name in ("one", "one", "two", "two", "one")] == [1, 1, 2, 2, 3]
    argv[-1] += "; true"
    assert await told("one") == 4  # configured anew


async def test_not_told_until_it_has_succeeded(nf: Nf, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = shell(f"echo cannot reload; echo why >&2; test -e {tmp_path}/ready || exit 7")
    caplog.set_level("INFO", "nf_agent.hooks")
    with refused(Reason.HOOK_FAILED) as caught:
        await nf.hook(*argv).tell(credential("one"))
    assert "7" in caught.value.message
    assert [record.__dict__["exit_code"] for record in caplog.records] == [7]
    assert (tmp_path / "command.log").read_text() == "cannot reload\nwhy\n"
    assert (tmp_path / "command.log").stat().st_mode & 0o777 == 0o600
    assert "reload" not in caplog.text
    (tmp_path / "ready").touch()
    hook = nf.hook(*argv)
    await hook.tell(credential("one"))
    (tmp_path / "ready").unlink()
    await hook.tell(credential("one"))


@pytest.mark.parametrize("argv", ["/nonexistent/command", "/etc/passwd", "/"])
async def test_what_cannot_be_started(nf: Nf, argv: str) -> None:
    with refused(Reason.HOOK_FAILED):
        await nf.hook(argv).tell(credential("one"))


async def test_of_a_credential_that_is_no_longer_the_present_one_it_is_not_told(nf: Nf, tmp_path: Path) -> None:
    nf.files.publish(credential("two"))
    with refused(Reason.HOOK_FAILED):
        await nf.hook(*shell(f"touch {tmp_path}/ran")).tell(credential("one"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
async def test_the_time_limit_ends_it_and_its_children(nf: Nf, tmp_path: Path, ignores: str) -> None:
    pids = tmp_path / "pids"
    script = f"{ignores}sleep 600 & echo $! $$ >{pids}; wait; wait; sleep 600"
    for limit in (0.5, 5.0, 30.0):  # a machine under load may not come to start it in the first
        with refused(Reason.HOOK_FAILED) as caught:
            await nf.hook(*shell(script), timeout=limit).tell(credential("one"))
        assert "in time" in caught.value.message
        if pids.exists():
            break
    for pid in pids.read_text().split():
        await eventually(lambda pid=pid: ended(int(pid)), "ended")  # type: ignore[misc]


async def test_the_agents_end_is_the_commands(tmp_path: Path) -> None:
    running = asyncio.create_task(run(shell(f"echo $$ >{tmp_path}/pid; exec sleep 600"), ENVIRONMENT, 600.0))
    await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", "started")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await eventually(lambda: ended(int((tmp_path / "pid").read_text())), "ended")


async def test_much_output_is_bounded_and_does_not_block_it() -> None:
    outcome = await run(shell("head -c 5000000 /dev/zero"), ENVIRONMENT, PATIENCE_SECONDS)
    assert outcome.exit_code == 0
    assert outcome.output == bytes(MAX_OUTPUT_BYTES)


async def test_what_it_leaves_running_does_not_keep_the_agent() -> None:
    outcome = await run(shell("sleep 600 & echo $!"), ENVIRONMENT, 600.0)
    os.kill(int(outcome.output), 9)
    assert outcome.exit_code == 0


async def test_it_has_no_standard_input_and_no_descriptor_of_ours(tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        outcome = await run(shell("cat; ls /proc/self/fd"), ENVIRONMENT, PATIENCE_SECONDS)
    finally:
        os.close(secret)
    assert set(outcome.output.split()) == {b"0", b"1", b"2", b"3"}  # 3: the directory that ls lists


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
