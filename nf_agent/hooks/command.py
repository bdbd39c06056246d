"""A command of the NF's, run after each new certificate: no shell, a bounded environment, a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nf_agent.credential import Credential
from nf_agent.hooks.files import CERTIFICATE_FILE, TRUST_BUNDLE_FILE, CredentialFiles, fingerprint
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically

log = logging.getLogger("nf_agent.hooks")

#: What a command gets of the agent's own environment.
INHERITED = ("LANG", "PATH", "TZ")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Of what it prints, kept for whoever looks why it failed.
MAX_OUTPUT_BYTES = 64 * 1024
#: Between SIGTERM and SIGKILL.
GRACE_SECONDS = 2.0
#: What a pipe holds on Linux.
_PIPE_BYTES = 64 * 1024
TOLD_FILE = "command.json"
OUTPUT_FILE = "command.log"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    #: As subprocess gives it: negative for a signal; None: it did not end in time and was killed.
    exit_code: int | None
    #: Standard output and error, the first :data:`MAX_OUTPUT_BYTES`.
    output: bytes


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What survives a restart: of which credential the command has been told."""

    fingerprint: str


class CommandHook:
    """A hook: runs ``argv`` until it exits with 0, once for each credential and argument list."""

    name = "command"

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        files: CredentialFiles,
        state_dir: Path,
        timeout_seconds: float,
    ) -> None:
        self._argv = tuple(argv)
        self._environment = dict(environment)
        self._files = files
        self._state_dir = state_dir
        self._timeout_seconds = timeout_seconds
        self._told = self._read_told()

    async def tell(self, credential: Credential) -> None:
        """Raises NftrustError(HOOK_FAILED)."""
        present = self._fingerprint(credential)
        if self._told == present:
            return
        try:
            outcome = await run(self._argv, self._environment_for(credential), self._timeout_seconds)
        except OSError as error:
            log.warning("the command cannot be started", extra={"cause": type(error).__name__})
            raise NftrustError(Reason.HOOK_FAILED, "the command cannot be started") from None
        with contextlib.suppress(NftrustError):
            write_atomically(self._state_dir / OUTPUT_FILE, outcome.output)
        log.info("command ended", extra={"exit_code": outcome.exit_code})
        if outcome.exit_code is None:
            raise NftrustError(Reason.HOOK_FAILED, "the command did not end in time")
        if outcome.exit_code != 0:
            raise NftrustError(Reason.HOOK_FAILED, f"the command ended with {outcome.exit_code}")
        self._told = present
        with contextlib.suppress(NftrustError):  # then it is run once more after a restart
            write_atomically(self._state_dir / TOLD_FILE, msgspec.json.encode(Told(fingerprint=present)))

    def _fingerprint(self, credential: Credential) -> str:
        """Another one, too, where the command was configured anew."""
        told = [fingerprint(credential), self._argv, sorted(self._environment.items()), str(self._files.directory)]
        return hashlib.sha256(msgspec.json.encode(told)).hexdigest()

    def _read_told(self) -> str:
        try:
            return msgspec.json.decode((self._state_dir / TOLD_FILE).read_bytes(), type=Told).fingerprint
        except (OSError, msgspec.MsgspecError):
            return ""

    def _environment_for(self, credential: Credential) -> dict[str, str]:
        directory = self._files.find(credential)
        if directory is None:
            raise NftrustError(Reason.HOOK_FAILED, "another credential has taken this one's place")
        certificate = credential.certificate
        return {
            **{name: os.environ[name] for name in INHERITED if name in os.environ},
            **({} if "PATH" in os.environ else {"PATH": DEFAULT_PATH}),
            **self._environment,
            "NFTRUST_DIRECTORY": str(directory),
            "NFTRUST_CERTIFICATE": str(directory / CERTIFICATE_FILE),
            "NFTRUST_TRUST_BUNDLE": str(directory / TRUST_BUNDLE_FILE),
            "NFTRUST_KEY_URI": credential.pkcs11_uri,
            "NFTRUST_SERIAL_NUMBER": f"{certificate.serial_number:x}",
            "NFTRUST_NOT_AFTER": certificate.not_valid_after_utc.isoformat(),
        }


async def run(argv: Sequence[str], environment: Mapping[str, str], timeout_seconds: float) -> Outcome:
    """Run a command in a session of its own, to its end or to the time limit. Raises OSError: not started.

    Cancelled, it leaves nothing running.
    """
    with _Output() as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.descriptor,
            stderr=output.descriptor,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
        exit_code: int | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                exit_code = await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await process.wait()
        finally:
            if exit_code is None:
                _signal(process, signal.SIGKILL)  # all of its session, what ignored SIGTERM included
                await process.wait()
    return Outcome(exit_code, output.content)


class _Output:
    """What a command prints. A pipe of our own: asyncio's would be waited for until all who inherit it have ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept = bytearray()
        self._reading, self.descriptor = os.pipe()

    def __enter__(self) -> _Output:
        os.set_blocking(self._reading, False)
        self._loop.add_reader(self._reading, self._read)
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)
        self._read()  # what is still in the pipe
        self._loop.remove_reader(self._reading)
        os.close(self._reading)

    @property
    def content(self) -> bytes:
        """The first :data:`MAX_OUTPUT_BYTES`; the rest was read and dropped."""
        return bytes(self._kept)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._reading, _PIPE_BYTES)
            self._kept += chunk[: MAX_OUTPUT_BYTES - len(self._kept)]


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
