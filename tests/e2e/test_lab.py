"""`nftrust lab up|status|down`: lab.json as agreed, and what is stored survives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

KEYS = {
    "pki": {"services_ca", "oam_cert", "oam_key", "trust_anchor", "day0_root"},
    "cmproxy": {"management", "probe"},
    "ca_ra": {"management", "enrolment", "cmp", "crl", "ocsp", "probe"},
    "verifier": {"management", "attestation", "probe"},
    "processes": {"ca_ra", "cmproxy", "verifier", "nfs"},
}


def nftrust(*arguments: str, config: Path | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "nftrust.cli.main"]
    environment = os.environ | ({"NFTRUST_CONFIG": str(config)} if config else {})
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "lab"
    yield directory
    if directory.exists():
        nftrust("lab", "down", "--dir", str(directory))


def read(directory: Path) -> Any:
    return json.loads((directory / "lab.json").read_text())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(300)
def test_a_lab_goes_up_and_down_and_up_again_with_its_nfs_enrolled(directory: Path) -> None:
    code, output, problems = nftrust("lab", "up", "--dir", str(directory), "--nfs", "1")
    assert code == 0, problems
    assert str(directory / "lab.json") in output
    description = read(directory)
    assert_agreed_form(description)
    pids = [pid for group in description["processes"].values() for pid in group]
    assert len(pids) == 4
    assert all(map(runs, pids))
    config = directory / "nftrust.toml"

    [nf] = description["nfs"]
    created = nftrust("nf", "create", "--file", str(Path(nf["dir"]) / "network-function.json"), config=config)
    assert created[0] == 0, created[2]
    enrolled = nftrust("enrol", nf["nf_instance_id"], "--watch", "--output", "json", config=config)
    assert enrolled[0] == 0, enrolled[2]
    first = json.loads(enrolled[1])

    assert nftrust("lab", "up", "--dir", str(directory), "--nfs", "1")[0] == 0  # changes nothing
    assert read(directory) == description
    refused = nftrust("lab", "up", "--dir", str(directory), "--nfs", "2")
    assert (refused[0], "CONFIG_INVALID" in refused[2]) == (1, True)

    assert nftrust("lab", "down", "--dir", str(directory))[0] == 0
    assert not any(map(runs, pids))
    code, output, _ = nftrust("lab", "status", "--dir", str(directory), "--output", "json")
    assert code == 1
    assert set(json.loads(output).values()) == {False}
    assert {tuple(group) for group in read(directory)["processes"].values()} == {()}
    assert nftrust("lab", "down", "--dir", str(directory))[0] == 0  # once more does no harm

    assert nftrust("lab", "up", "--dir", str(directory), "--nfs", "1")[0] == 0
    again = read(directory)
    assert {**again, "processes": None} == {**description, "processes": None}
    assert nftrust("lab", "status", "--dir", str(directory))[0] == 0
    code, output, problems = nftrust("enrolment", "show", first["name"], "--output", "json", config=config)
    assert (code, json.loads(output)) == (0, first), problems
    refused = nftrust("enrol", nf["nf_instance_id"], "--watch", config=config)
    assert (refused[0], "ALREADY_ENROLLED" in refused[2]) == (3, True)
    code, output, problems = nftrust("enrol", nf["nf_instance_id"], "--watch", "--again", config=config)
    assert code == 0, problems
    assert first["certificate"] not in output
    assert nftrust("audit", "verify", config=config)[0] == 0


def assert_agreed_form(description: dict[str, Any]) -> None:
    """The keys of lab.json, null for what does not exist; secrets readable by their owner alone."""
    assert set(description) == {*KEYS, "nfs"}
    for name, keys in KEYS.items():
        assert set(description[name]) == keys
    for path in description["pki"].values():
        assert Path(path).is_file()
    assert description["ca_ra"]["cmp"] is None
    assert description["ca_ra"]["ocsp"].endswith("/ocsp")
    assert description["verifier"]["attestation"] is None
    for target in (description["cmproxy"]["management"], description["ca_ra"]["enrolment"]):
        host, _, port = target.partition(":")
        assert (host, port.isdecimal()) == ("localhost", True)
    [nf] = description["nfs"]
    assert {"nf_instance_id", "nf_type", "fqdn", "agent", "dir", "token"} <= set(nf)
    assert {"module", "label", "pin_file"} <= set(nf["token"])
    for secret in (description["pki"]["oam_key"], nf["token"]["pin_file"], Path(nf["dir"]) / "day0.key"):
        assert stat.S_IMODE(Path(secret).stat().st_mode) == 0o600
