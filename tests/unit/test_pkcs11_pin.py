"""Where PINs come from, and the token's lock file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import locks
from nftrust.pkcs11.locks import FileLock, lock_path
from nftrust.pkcs11.pin import hold_pin, read_pin

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


def test_a_pin_file_may_end_in_a_newline(tmp_path: Path) -> None:
    (tmp_path / "pin").write_bytes(b"12 34\n")
    assert read_pin(TokenConfig(module=MODULE, label="t", pin_file=tmp_path / "pin")) == b"12 34"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"1" * 257, b"1\x002"])
def test_what_is_no_pin_is_refused_and_not_repeated(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "pin").write_bytes(content)
    with pytest.raises(NftrustError) as caught:
        read_pin(TokenConfig(module=MODULE, label="t", pin_file=tmp_path / "pin"))
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert "111" not in caught.value.message


def test_a_pin_from_a_pipe_is_held_in_a_sealed_memory_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"1234\n")
    os.close(writer)
    config = hold_pin(TokenConfig(module=MODULE, label="t", pin_fd=reader))
    os.close(reader)
    assert config.pin_fd is not None
    try:
        assert [read_pin(config), read_pin(config)] == [b"1234", b"1234"]
        with pytest.raises(PermissionError):
            os.pwrite(config.pin_fd, b"9", 0)
    finally:
        os.close(config.pin_fd)


def test_a_lock_that_another_holds_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_LIMIT_SECONDS", 0.02)
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    with first.held():
        with pytest.raises(NftrustError) as caught, second.held():
            pass
        assert caught.value.reason is Reason.TOKEN_UNAVAILABLE
    with second.held():
        pass
    first.close()
    second.close()


def test_softhsm_is_never_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/elsewhere/softhsm2.conf")
    plain = TokenConfig(module=MODULE, label="t", pin_file=tmp_path / "pin")
    assert lock_path(plain) == Path("/elsewhere/softhsm2.conf.lock")
    own = TokenConfig(
        module=MODULE, label="t", pin_file=tmp_path / "pin", environment={"SOFTHSM2_CONF": f"{tmp_path}/conf"}
    )
    assert lock_path(own) == tmp_path / "conf.lock"
    hardware = TokenConfig(module=Path("/opt/hsm.so"), label="t", pin_file=tmp_path / "pin")
    assert lock_path(hardware) is None
