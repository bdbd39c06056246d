"""Setting a SoftHSM token up: idempotent, private, and safe to interrupt."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.token import Token
from softhsm import create_token, open_config, setup

pytestmark = [pytest.mark.token, pytest.mark.process]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    first = create_token(tmp_path / "token", "nf")
    token = Token.open(first)
    token.execute(op.GenerateSecret("mac", "mac"))
    mac = token.execute(op.Mac("mac", b"x"))
    token.close()
    assert create_token(tmp_path / "token", "nf") == first == open_config(tmp_path / "token")
    token = Token.open(first)
    assert token.execute(op.Mac("mac", b"x")) == mac
    token.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    create_token(tmp_path / "token", "nf")
    files = [path for path in (tmp_path / "token").rglob("*") if path.is_file()]
    folders = [tmp_path / "token", *(path for path in (tmp_path / "token").rglob("*") if path.is_dir())]
    assert {mode(path) for path in files} == {0o600}
    assert {mode(path) for path in folders} == {0o700}
    assert len((tmp_path / "token" / "pin").read_text()) >= 22


def test_pins_are_random_unless_one_is_given(tmp_path: Path) -> None:
    create_token(tmp_path / "a", "nf")
    create_token(tmp_path / "b", "nf")
    assert (tmp_path / "a" / "pin").read_bytes() != (tmp_path / "b" / "pin").read_bytes()
    (tmp_path / "own").write_text("my own PIN\n")
    config = create_token(tmp_path / "c", "nf", pin_file=tmp_path / "own")
    Token.open(config).close()
    assert (tmp_path / "own").read_text() == "my own PIN\n"
    assert not (tmp_path / "c" / "pin").exists()


def test_made_by_several_at_once_it_is_made_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        configs = list(pool.map(lambda _: create_token(tmp_path / "token", "nf"), range(4)))
    assert all(config == configs[0] for config in configs)
    assert len(list((tmp_path / "token" / "tokens").iterdir())) == 1
    Token.open(configs[0]).close()


def test_an_interrupted_set_up_is_finished(tmp_path: Path) -> None:
    config = create_token(tmp_path / "token", "nf")
    # Killed after the token was in place: it is adopted, not made anew.
    (tmp_path / "token" / "token.json").unlink()
    before = next((tmp_path / "token" / "tokens").iterdir())
    assert create_token(tmp_path / "token", "nf") == config
    assert next((tmp_path / "token" / "tokens").iterdir()) == before
    # Killed before: what lies about is cleared away.
    (tmp_path / "other" / "scratch" / "tokens" / "half").mkdir(parents=True)
    Token.open(create_token(tmp_path / "other", "nf")).close()
    assert not (tmp_path / "other" / "scratch").exists()


def test_refusals_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_token(tmp_path / "token", "nf")

    def reason(label: str, folder: str = "token") -> Reason:
        with pytest.raises(NftrustError) as caught:
            create_token(tmp_path / folder, label)
        return caught.value.reason

    assert reason("another") is Reason.STATE_FOREIGN
    for label in ("", " ", "a" * 33, "é", "a\n"):
        assert reason(label, "new") is Reason.CONFIG_INVALID
    with pytest.raises(NftrustError) as caught:
        open_config(tmp_path / "new")
    assert caught.value.reason is Reason.TOKEN_MISSING
    (tmp_path / "token" / "token.json").write_text("{")
    assert reason("nf") is Reason.STATE_CORRUPT
    monkeypatch.setattr(setup, "MODULE_PLACES", ())
    with pytest.raises(NftrustError, match="apt-get install softhsm2") as caught:
        create_token(tmp_path / "new", "nf")
    assert caught.value.reason is Reason.TOKEN_MISSING


def test_the_command(tmp_path: Path) -> None:
    def run(label: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "softhsm", str(tmp_path / "token"), label],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("nf")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["label"] == "nf"
    assert (tmp_path / "token" / "pin").read_text() not in done.stdout
    refused = run("other")
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)
    assert refused.stderr.startswith("STATE_FOREIGN")
