"""The operator's command: every reading command as JSON, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.main import main
from nftrust.errors import Reason
from nftrust.lab.layout import DAY0_ROOT, HOME_DOMAIN
from tests.lab_fixture import ENROLLED, nfs
from tests.lab_kit import WAIT_SECONDS, RunningLab, SecondCa, free_port, read_toml, write_toml

pytestmark = pytest.mark.process

EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_ENROLLED, EXIT_AUDIT_BROKEN, EXIT_UNREACHABLE = 1, 2, 3, 4, 5
Enrolled = dict[str, pb.Enrolment]


class Command:
    """`nftrust` with a configuration."""

    def __init__(self, config: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.config = config
        self.capture = capture

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self.capture.readouterr()
        code = main(["--config", str(self.config), *arguments])
        output = self.capture.readouterr()
        return code, output.out, output.err

    def json(self, *arguments: str, code: int = 0) -> Any:
        found, output, problems = self.run(*arguments, "--output", "json")
        assert found == code, problems
        return json.loads(output)

    def text(self, *arguments: str) -> str:
        found, output, problems = self.run(*arguments)
        assert found == 0, problems
        return output

    def refused(self, reason: Reason, *arguments: str, code: int = EXIT_REFUSED) -> None:
        found, output, problems = self.run(*arguments)
        assert found == code, problems
        assert output == ""
        [line] = problems.splitlines()
        assert line.startswith(f"nftrust: {reason.name}: ")


@pytest.fixture
def nftrust(running_lab: RunningLab, enrolled: Enrolled, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(running_lab.config, capsys)


def test_network_functions(running_lab: RunningLab, nftrust: Command) -> None:
    listed = {item["nf_instance_id"]: item for item in nftrust.json("nf", "list")}
    for nf in nfs(running_lab):
        shown = nftrust.json("nf", "show", nf.nf_instance_id)
        assert shown == listed[nf.nf_instance_id]
        assert (shown["nf_type"], shown["fqdns"]) == (nf.nf_type, [nf.fqdn])
        assert len(bytes.fromhex(shown["pinned_transport_key_sha256"])) == 32
        assert nftrust.json("nf", "show", nf.fqdn) == shown
        assert nftrust.json("nf", "show", f"networkFunctions/{nf.nf_instance_id}") == shown
        assert nf.fqdn in nftrust.text("nf", "show", nf.nf_instance_id)
    assert nfs(running_lab)[0].fqdn in nftrust.text("nf", "list")


def test_enrolments(running_lab: RunningLab, enrolled: Enrolled, nftrust: Command) -> None:
    listed = {item["name"]: item for item in nftrust.json("enrolment", "list")}
    for nf_instance_id, enrolment in enrolled.items():
        shown = nftrust.json("enrolment", "show", enrolment.name)
        assert shown == listed[enrolment.name]
        assert shown["state"] == "SUCCEEDED"
        assert [step["number"] for step in shown["steps"]] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
        own = nftrust.json("enrolment", "list", nf_instance_id)
        assert enrolment.name in {item["name"] for item in own}
        assert all(item["name"].startswith(f"networkFunctions/{nf_instance_id}/") for item in own)
        text = nftrust.text("enrolment", "show", enrolment.name)
        assert "step 10" in text
    assert "SUCCEEDED" in nftrust.text("enrolment", "list")


def test_the_authority(running_lab: RunningLab, nftrust: Command) -> None:
    shown = nftrust.json("ca", "show")
    assert shown["home_domain"] == HOME_DOMAIN
    assert shown["crl_url"] == running_lab.description["ca_ra"]["crl"]
    assert int(shown["certificate_count"]) >= len(nfs(running_lab))
    assert shown["root_ca_pem"] == Path(running_lab.description["pki"]["trust_anchor"]).read_text()
    assert nftrust.text("ca", "show", "--pem") == shown["issuing_ca_pem"] + shown["root_ca_pem"]
    assert shown["ca_id"] in nftrust.text("ca", "show")


def test_registrations_and_certificates(enrolled: Enrolled, nftrust: Command) -> None:
    registrations = {item["name"]: item for item in nftrust.json("registration", "list")}
    certificates = {item["name"]: item for item in nftrust.json("certificate", "list")}
    for nf_instance_id, enrolment in enrolled.items():
        assert registrations[enrolment.registration]["state"] == "CONFIRMED"
        assert registrations[enrolment.registration]["certificate"] == enrolment.certificate
        shown = nftrust.json("certificate", "show", enrolment.certificate)
        assert shown == certificates[enrolment.certificate]
        assert shown["nf_instance_id"] == nf_instance_id
        assert nftrust.text("certificate", "show", enrolment.certificate, "--pem") == shown["pem"]
        assert nf_instance_id in nftrust.text("certificate", "show", enrolment.certificate)
        assert enrolment.certificate in {item["name"] for item in nftrust.json("certificate", "list", nf_instance_id)}
        own = nftrust.json("registration", "list", nf_instance_id)
        assert enrolment.registration in {item["name"] for item in own}
    assert "CONFIRMED" in nftrust.text("registration", "list")
    assert next(iter(certificates)) in nftrust.text("certificate", "list")


@pytest.mark.parametrize("role", ["ca_ra", "cmproxy", "verifier"])
def test_audit_events(nftrust: Command, role: str) -> None:
    events = nftrust.json("audit", "list", role)
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert all(len(bytes.fromhex(event["hash"])) == 32 for event in events)
    assert len(nftrust.text("audit", "list", role).splitlines()) >= len(events)


def test_the_audit_logs_verify(nftrust: Command) -> None:
    verdicts = nftrust.json("audit", "verify")
    assert {verdict["role"]: verdict["first_broken"] for verdict in verdicts} == {
        "ca_ra": None,
        "cmproxy": None,
        "verifier": None,
    }
    assert nftrust.text("audit", "verify").count("chain intact") == 3


@pytest.fixture(scope="module")
def copy(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondCa]:
    """A CA/RA whose audit log may be tampered with."""
    with running_lab.second_ca(tmp_path_factory.mktemp("copy")) as second:
        second.execute("CREATE TABLE kept AS SELECT * FROM audit_event")
        yield second


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET actor = 'nobody' WHERE sequence = 2",
        "UPDATE audit_event SET detail = '{}', action = 'x' WHERE sequence = 2",
        "UPDATE audit_event SET time = time + 1 WHERE sequence = 2",
        "DELETE FROM audit_event WHERE sequence = 2",
        "UPDATE audit_event SET hash = zeroblob(32) WHERE sequence = 2",
    ],
)
def test_a_tampered_audit_log_is_found(
    running_lab: RunningLab, nftrust: Command, copy: SecondCa, tmp_path: Path, statement: str
) -> None:
    config = read_toml(running_lab.config) | {"ca_ra": copy.targets["ca_ra"]}
    path = tmp_path / "nftrust.toml"
    write_toml(path, config)
    tampered = Command(path, nftrust.capture)
    assert tampered.json("audit", "verify")[0]["first_broken"] is None
    copy.execute(statement)
    try:
        verdicts = tampered.json("audit", "verify", code=EXIT_AUDIT_BROKEN)
        assert [verdict["first_broken"] for verdict in verdicts] == [2, None, None]
        code, output, _ = tampered.run("audit", "verify")
        assert code == EXIT_AUDIT_BROKEN
        assert "BROKEN at event 2" in output
    finally:
        copy.execute("DELETE FROM audit_event WHERE sequence = 2")
        copy.execute("INSERT INTO audit_event SELECT * FROM kept WHERE sequence = 2")


def test_lab_status(running_lab: RunningLab, nftrust: Command) -> None:
    directory = ("--dir", str(running_lab.lab.directory))
    found = nftrust.json("lab", "status", *directory)
    assert set(found.values()) == {True}
    assert set(found) == {"ca_ra", "cmproxy", "verifier", *(f"nf {nf.folder}" for nf in running_lab.lab.settings.nfs)}
    assert "down" not in nftrust.text("lab", "status", *directory)


# Acts and exit codes


def test_create_watch_cancel_and_delete(running_lab: RunningLab, nftrust: Command, tmp_path: Path) -> None:
    nf_instance_id = str(uuid.uuid4())
    options = [
        "--nf-instance-id",
        nf_instance_id,
        "--nf-type",
        "UDM",
        "--fqdn",
        f"u{nf_instance_id[:8]}.udm.{HOME_DOMAIN}",
    ]
    options += ["--agent", f"localhost:{free_port()}", "--day0-root", DAY0_ROOT, "--pin-on-first-contact"]
    created = nftrust.json("nf", "create", *options, "--require-attestation")
    assert created["attestation"] == "ATTESTATION_REQUIREMENT_REQUIRED"
    nftrust.refused(Reason.NF_ALREADY_EXISTS, "nf", "create", *options)
    name = nftrust.text("enrol", nf_instance_id).strip()
    nftrust.refused(Reason.ENROLMENT_ACTIVE, "enrol", nf_instance_id)
    nftrust.refused(Reason.ENROLMENT_ACTIVE, "nf", "delete", nf_instance_id)
    nftrust.text("enrolment", "cancel", name)
    nftrust.refused(Reason.ENROLMENT_ENDED, "enrolment", "cancel", name)
    assert nftrust.json("enrolment", "show", name)["state"] == "CANCELLED"
    nftrust.text("nf", "delete", nf_instance_id)
    nftrust.refused(Reason.NF_NOT_FOUND, "nf", "show", nf_instance_id)


def test_retire(running_lab: RunningLab, nftrust: Command) -> None:
    created = running_lab.create_nf(running_lab.unborn())
    nf = created.nf_instance_id
    assert nftrust.json("nf", "retire", nf, "--no-wait")["state"] in ("RETIRING", "RETIRED")
    deadline = time.monotonic() + WAIT_SECONDS
    while nftrust.json("nf", "show", nf)["state"] != "RETIRED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "retired 20" in nftrust.text("nf", "retire", nf)  # again: it says since when
    nftrust.refused(Reason.NF_RETIRED, "enrol", nf)
    nftrust.text("nf", "delete", nf)
    nftrust.refused(Reason.NF_NOT_FOUND, "nf", "retire", nf)


def test_a_watched_enrolment_that_fails_has_its_own_exit_code(running_lab: RunningLab, nftrust: Command) -> None:
    nf = nfs(running_lab)[2]
    code, output, problems = nftrust.run("enrol", nf.nf_instance_id, "--watch")
    assert code == EXIT_NOT_ENROLLED
    assert "step  3" in output
    assert output.splitlines()[-1] == "FAILED"
    assert "FAILED: ALREADY_ENROLLED: " in problems
    assert nftrust.json("enrol", nf.nf_instance_id, "--watch", code=EXIT_NOT_ENROLLED)["state"] == "FAILED"


def test_a_watched_enrolment_that_succeeds(running_lab: RunningLab, nftrust: Command) -> None:
    nf = running_lab.lab.settings.nfs[ENROLLED]  # the others keep the certificates they have
    with running_lab.provisioned(running_lab.network_function(nf)):
        code, output, problems = nftrust.run("enrol", nf.nf_instance_id, "--watch", "--again")
    assert (code, problems) == (0, "")
    for number in (1, 3, 4, 5, 6, 7, 8, 9, 10):
        assert output.count(f"step {number:>2}  ") == 1
    assert output.splitlines()[-1].startswith("SUCCEEDED  certificates/")


def test_refusals_are_one_line_with_the_reason(nftrust: Command, tmp_path: Path) -> None:
    unknown = str(uuid.uuid4())
    nftrust.refused(Reason.NF_NOT_FOUND, "nf", "show", unknown)
    nftrust.refused(Reason.NF_NOT_FOUND, "nf", "show", "no-such")
    nftrust.refused(Reason.INVALID_NF_INSTANCE_ID, "nf", "show", "x" * 36)
    nftrust.refused(Reason.NF_NOT_FOUND, "enrol", unknown)
    nftrust.refused(
        Reason.ENROLMENT_NOT_FOUND, "enrolment", "show", f"networkFunctions/{unknown}/enrolments/{uuid.uuid4()}"
    )
    nftrust.refused(Reason.INVALID_FIELD, "enrolment", "show", "nonsense")
    nftrust.refused(Reason.CERTIFICATE_NOT_FOUND, "certificate", "show", "certificates/7")
    nftrust.refused(Reason.END_ENTITY_NOT_FOUND, "ca", "reinstate", unknown)
    broken = tmp_path / "nf.json"
    broken.write_text("{")
    nftrust.refused(Reason.INVALID_FIELD, "nf", "create", "--file", str(broken))
    nftrust.refused(Reason.INVALID_FIELD, "nf", "create", "--transport-key", "xyz")
    nftrust.refused(Reason.CONFIG_INVALID, "lab", "status", "--dir", str(tmp_path))


def test_wrong_usage(nftrust: Command) -> None:
    for arguments in (["unheard-of"], ["nf", "show"], ["nf", "list", "--output", "yaml"], ["audit", "list", "nobody"]):
        assert nftrust.run(*arguments)[0] == EXIT_USAGE


def test_a_service_that_is_not_there(running_lab: RunningLab, nftrust: Command, tmp_path: Path) -> None:
    config = read_toml(running_lab.config) | {"cmproxy": f"localhost:{free_port()}", "timeout_seconds": 2.0}
    path = tmp_path / "nftrust.toml"
    write_toml(path, config)
    command = Command(path, nftrust.capture)
    command.refused(Reason.PEER_UNAVAILABLE, "nf", "list", code=EXIT_UNREACHABLE)
    assert command.json("ca", "show")["home_domain"] == HOME_DOMAIN
    Command(tmp_path / "none.toml", nftrust.capture).refused(Reason.CONFIG_INVALID, "nf", "list")


def test_a_caller_without_the_role_is_told_so(running_lab: RunningLab, nftrust: Command, tmp_path: Path) -> None:
    running_lab.files_of("verifier", "lab")
    files = {end: str(running_lab.directory / f"verifier.lab{end}") for end in (".pem", ".key")}
    config = read_toml(running_lab.config) | {"certificate": files[".pem"], "private_key": files[".key"]}
    path = tmp_path / "nftrust.toml"
    write_toml(path, config)
    Command(path, nftrust.capture).refused(Reason.METHOD_NOT_ALLOWED, "nf", "list")


def test_the_command_as_a_process(running_lab: RunningLab, enrolled: Enrolled) -> None:
    environment = os.environ | {"NFTRUST_CONFIG": str(running_lab.config)}
    command = [sys.executable, "-m", "nftrust.cli.main"]
    done = subprocess.run(
        [*command, "nf", "list"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert nfs(running_lab)[0].nf_instance_id in done.stdout
    missing = [*command, "nf", "show", str(uuid.uuid4())]
    done = subprocess.run(missing, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (EXIT_REFUSED, "")
    assert "NF_NOT_FOUND" in done.stderr
