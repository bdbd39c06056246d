"""What keeps a role or an agent from starting: one line that says why, exit status 78, and nothing tried twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nftrust.errors import Reason
from nftrust.lab.layout import ADDRESS
from tests.lab_kit import RunningLab, SpareAgent, free_port, read_toml, run_to_end, running, write_toml
from tests.nss_kit import create_nss_token

pytestmark = pytest.mark.process

EX_CONFIG = 78
WRONG_PIN = "a-wrong-pin-1234"


def changed(token: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return token | changes


def wrong_pin(directory: Path) -> str:
    path = directory / "wrong-pin"
    path.touch(mode=0o600)
    path.write_text(WRONG_PIN)
    return str(path)


def nss_token(directory: Path) -> dict[str, Any]:
    """The configuration of a token that ignores unwrap templates."""
    config: dict[str, Any] = msgspec.to_builtins(create_nss_token(directory / "nss", "nss"), enc_hook=str)
    return {key: value for key, value in config.items() if value is not None}


def assert_refused(outcome: tuple[int, str], reason: Reason) -> None:
    """One line with the reason on standard error, no stack trace and no secret."""
    code, stderr = outcome
    assert code == EX_CONFIG, stderr
    # Log lines are JSON; gRPC's own library writes a line where it cannot bind.
    plain = [line for line in stderr.splitlines() if not line.startswith("{") and "add_port.cc" not in line]
    assert len(plain) == 1, stderr
    assert f": {reason.name}: " in plain[0]
    assert reason.remedy in plain[0]
    assert WRONG_PIN not in stderr
    assert "Traceback" not in stderr


AGENT_CASES: list[tuple[str, Callable[[SpareAgent, Path], dict[str, Any]], Reason]] = [
    (
        "wrong PIN",
        lambda spare, folder: {"token": changed(spare.config["token"], pin_file=wrong_pin(folder))},
        Reason.PIN_INCORRECT,
    ),
    (
        "no PIN file",
        lambda spare, folder: {"token": changed(spare.config["token"], pin_file=str(folder / "none"))},
        Reason.CONFIG_INVALID,
    ),
    (
        "no such token",
        lambda spare, folder: {"token": changed(spare.config["token"], label="unheard-of")},
        Reason.TOKEN_MISSING,
    ),
    (
        "no such module",
        lambda spare, folder: {"token": changed(spare.config["token"], module=str(folder / "none.so"))},
        Reason.TOKEN_MISSING,
    ),
    (
        "a token that lets IAKs out",
        lambda spare, folder: {"token": nss_token(folder)},
        Reason.TOKEN_CUSTODY_UNPROVEN,
    ),
    (
        "another instance's state",
        lambda spare, folder: {"nf_instance_id": "0f0e0d0c-0b0a-4908-8706-050403020100"},
        Reason.STATE_FOREIGN,
    ),
    (
        "never initialised",
        lambda spare, folder: {"state_dir": str(folder / "nothing")},
        Reason.KEY_MISSING,
    ),
    (
        "an unknown key",
        lambda spare, folder: {"colour": "green"},
        Reason.CONFIG_INVALID,
    ),
    (
        "an id that is no UUID of version 4",
        lambda spare, folder: {"nf_instance_id": "amf-1"},
        Reason.INVALID_NF_INSTANCE_ID,
    ),
]


def with_day0(spare: SpareAgent, folder: Path) -> dict[str, Any]:
    """A listener with a good day-0 credential on a free port."""
    certificate, key = spare.leaf().write(folder, "day0")
    tls = {**spare.config["listener"]["tls"], "certificate": str(certificate), "private_key": str(key)}
    return {"address": f"{ADDRESS}:{free_port()}", "tls": tls}


@pytest.mark.parametrize(("changes", "reason"), [case[1:] for case in AGENT_CASES], ids=[c[0] for c in AGENT_CASES])
def test_an_agent_that_cannot_start_says_why(
    spare_agent: SpareAgent, tmp_path: Path, changes: Callable[[SpareAgent, Path], dict[str, Any]], reason: Reason
) -> None:
    tree = {"listener": with_day0(spare_agent, tmp_path)} | changes(spare_agent, tmp_path)
    path = spare_agent.written(tmp_path, **tree)
    assert_refused(run_to_end("nf_agent", path), reason)


def test_a_corrupt_state_is_not_overwritten(spare_agent: SpareAgent, tmp_path: Path) -> None:
    path = spare_agent.written(tmp_path, listener=with_day0(spare_agent, tmp_path))
    state = tmp_path / "state" / "state.json"
    state.write_bytes(b"{")
    assert_refused(run_to_end("nf_agent", path), Reason.STATE_CORRUPT)
    assert state.read_bytes() == b"{"


def test_an_agent_with_its_right_pin_still_starts_after_a_wrong_one(spare_agent: SpareAgent, tmp_path: Path) -> None:
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    for folder in (wrong, right):
        folder.mkdir()
    token = changed(spare_agent.config["token"], pin_file=wrong_pin(tmp_path))
    path = spare_agent.written(wrong, listener=with_day0(spare_agent, wrong), token=token)
    for _ in range(3):
        assert_refused(run_to_end("nf_agent", path), Reason.PIN_INCORRECT)
    path = spare_agent.written(right, listener=with_day0(spare_agent, right))
    with running("nf_agent", path) as process:
        assert process.popen.poll() is None
    assert process.popen.returncode == 0


def test_two_agents_do_not_share_a_port(spare_agent: SpareAgent, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    listener = with_day0(spare_agent, first)
    with running("nf_agent", spare_agent.written(first, listener=listener)):
        assert_refused(run_to_end("nf_agent", spare_agent.written(second, listener=listener)), Reason.PORT_IN_USE)


# The server roles


def role_config(running_lab: RunningLab, role: str, tmp_path: Path) -> dict[str, Any]:
    """A role's configuration on ports of its own and a copy of nothing: for starts that fail before the store."""
    config = read_toml(running_lab.lab.role(role) / "config.toml")
    for name in ("management", "enrolment", "http", "probe"):
        if name in config:
            config[name]["address"] = f"{ADDRESS}:{free_port()}"
    database = tmp_path / "store.sqlite"
    shutil.copy(running_lab.lab.role(role) / "store.sqlite", database)
    config["store"]["url"] = f"sqlite:///{database}"
    return config


def start(role: str, tmp_path: Path, config: dict[str, Any]) -> tuple[int, str]:
    path = tmp_path / "role.toml"
    write_toml(path, config)
    return run_to_end(role, path)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy"])
def test_a_role_with_a_wrong_pin_stops_at_once(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path)
    config["token"]["pin_file"] = wrong_pin(tmp_path)
    assert_refused(start(role, tmp_path, config), Reason.PIN_INCORRECT)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy"])
def test_a_role_without_its_token_stops(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path)
    config["token"]["label"] = "unheard-of"
    assert_refused(start(role, tmp_path, config), Reason.TOKEN_MISSING)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy"])
def test_a_role_with_anothers_token_lacks_its_keys(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path)
    other = {"ca_ra": "cmproxy", "cmproxy": "ca_ra"}[role]
    config["token"] = read_toml(running_lab.lab.role(other) / "config.toml")["token"]
    assert_refused(start(role, tmp_path, config), Reason.KEY_MISSING)


def test_a_ca_ra_whose_token_lets_iaks_out_stops(running_lab: RunningLab, tmp_path: Path) -> None:
    config = role_config(running_lab, "ca_ra", tmp_path)
    config["token"] = nss_token(tmp_path)
    assert_refused(start("ca_ra", tmp_path, config), Reason.TOKEN_CUSTODY_UNPROVEN)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy", "verifier"])
def test_a_role_without_a_migrated_database_stops(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path)
    config["store"]["url"] = f"sqlite:///{tmp_path / 'empty.sqlite'}"
    assert_refused(start(role, tmp_path, config), Reason.SCHEMA_OUTDATED)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy", "verifier"])
def test_a_second_supervisor_does_not_take_the_port(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path)
    config["management"]["address"] = read_toml(running_lab.lab.role(role) / "config.toml")["management"]["address"]
    assert_refused(start(role, tmp_path, config), Reason.PORT_IN_USE)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy", "verifier"])
def test_a_production_role_refuses_lab_credentials_of_its_own(
    running_lab: RunningLab, role: str, tmp_path: Path
) -> None:
    config = role_config(running_lab, role, tmp_path)
    config["deployment"] = "production"
    assert_refused(start(role, tmp_path, config), Reason.LAB_CREDENTIAL)


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy", "verifier"])
def test_an_unknown_key_is_named(running_lab: RunningLab, role: str, tmp_path: Path) -> None:
    config = role_config(running_lab, role, tmp_path) | {"colour": "green"}
    outcome = start(role, tmp_path, config)
    assert_refused(outcome, Reason.CONFIG_INVALID)
    assert "colour" in outcome[1]


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    for role in ("ca_ra", "cmproxy", "verifier", "nf_agent"):
        assert_refused(run_to_end(role, tmp_path / "none.toml"), Reason.CONFIG_INVALID)
