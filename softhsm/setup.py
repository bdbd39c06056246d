"""Idempotent set-up of a SoftHSM token in a directory of its own.

The directory (0700) holds ``softhsm2.conf``, ``tokens/``, ``pin`` (0600),
``lock`` and, written last, ``token.json``: the :class:`TokenConfig` by which
the token is opened. Nothing outside the directory is read or changed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason

MODULE_PLACES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
MAX_LABEL = 32
_TEMPLATE = Path(__file__).with_name("softhsm2.conf")


def find_module() -> Path:
    """The SoftHSM module on this machine. Raises NftrustError(TOKEN_MISSING)."""
    for place in MODULE_PLACES:
        if Path(place).is_file():
            return Path(place)
    raise NftrustError(Reason.TOKEN_MISSING, "SoftHSM is not installed (Debian: apt-get install softhsm2)")


def create_token(directory: Path, label: str, *, pin_file: Path | None = None) -> TokenConfig:
    """Make the token ``label`` in ``directory``, or return the configuration of the one that is there.

    The PIN is taken from ``pin_file`` if that exists, else it is random and
    written there (default: ``pin`` in the directory). The SO PIN is random and
    forgotten. Safe to repeat, to interrupt and to run twice at once. Raises
    NftrustError: TOKEN_MISSING without SoftHSM, STATE_FOREIGN if the directory
    holds a token of another label, CONFIG_INVALID for a bad label.
    """
    if not label.isascii() or not label.isprintable() or not 0 < len(label.strip()) == len(label) <= MAX_LABEL:
        raise NftrustError(Reason.CONFIG_INVALID, f"token label: 1 to {MAX_LABEL} printable ASCII characters")
    module = find_module()
    directory = directory.resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    config = TokenConfig(
        module=module,
        label=label,
        pin_file=pin_file.resolve() if pin_file else directory / "pin",
        lock_file=directory / "lock",
        environment={"SOFTHSM2_CONF": str(directory / "softhsm2.conf")},
    )
    with _locked(directory / "lock"):
        existing = _read(directory / "token.json")
        if existing is None:
            if not (directory / "tokens").exists():
                _build(directory, config)
            _write(directory / "token.json", msgspec.json.encode(config, enc_hook=str))
            existing = config
    if existing.label != label:
        raise NftrustError(Reason.STATE_FOREIGN, f"{directory} holds the token of another label")
    return existing


def open_config(directory: Path) -> TokenConfig:
    """The configuration of the token in ``directory``. Raises NftrustError(TOKEN_MISSING)."""
    config = _read(directory / "token.json")
    if config is None:
        raise NftrustError(Reason.TOKEN_MISSING, f"{directory} holds no token")
    return config


def _build(directory: Path, config: TokenConfig) -> None:
    """Initialise the token beside its place and move it there in one step."""
    assert config.pin_file is not None
    if not config.pin_file.exists():
        _write(config.pin_file, secrets.token_urlsafe(18).encode("ascii"))
    scratch = directory / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "tokens").mkdir(mode=0o700, parents=True)
    template = _TEMPLATE.read_text("utf-8")
    scratch_conf = scratch / "softhsm2.conf"
    _write(scratch_conf, template.replace("@TOKENS@", str(scratch / "tokens")).encode())
    _write(directory / "softhsm2.conf", template.replace("@TOKENS@", str(directory / "tokens")).encode())
    child = subprocess.run(
        [sys.executable, "-m", "softhsm.initialise", str(config.module), config.label],
        input=config.pin_file.read_bytes().strip(),
        env={**os.environ, "SOFTHSM2_CONF": str(scratch_conf)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    if child.returncode != 0:
        raise NftrustError(Reason.TOKEN_MISSING, f"SoftHSM did not make the token (exit {child.returncode})")
    (scratch / "tokens").rename(directory / "tokens")
    shutil.rmtree(scratch)


def _read(path: Path) -> TokenConfig | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=TokenConfig, dec_hook=_to_path)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, ValueError):
        raise NftrustError(Reason.STATE_CORRUPT, f"{path} cannot be read") from None


def _to_path(target: type, value: Any) -> Any:
    return target(value)


def _write(path: Path, data: bytes) -> None:
    """Replace ``path``, mode 0600, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(descriptor)
    draft.rename(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
