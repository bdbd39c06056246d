"""`nftrust doctor` on a lab in which one thing is broken: it names that thing, its remedy, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import load_pem_x509_certificate

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as diagnosis_pb
from nftrust.api.diagnosis.v1.diagnosis_service_pb2_grpc import DiagnosisServiceStub
from nftrust.cli.doctor import services
from nftrust.cli.doctor.report import EXIT_ATTENTION, EXIT_BROKEN
from nftrust.cli.main import main
from nftrust.clock import SystemClock
from nftrust.errors import Reason
from nftrust.files import write_atomically
from nftrust.identity import day0_name, urn
from nftrust.lab import control
from nftrust.lab.configuration import OAM_URI, PROXY_URI
from nftrust.lab.layout import HOME_DOMAIN, HOST, Lab, NfSettings
from nftrust.role.diagnosis_service import DiagnosisServicer
from nftrust.x509.path import pem_chain
from softhsm import open_config
from tests.doctor_kit import Patient, ShiftedClock, other_verifier
from tests.e2e.test_token_faults import write_token
from tests.lab_kit import CALL_SECONDS, RunningLab, free_port, read_toml, refused, write_toml
from tests.pki import Leaf, make_ca, service_leaf
from tests.shim_kit import TOKEN_GONE, Shim

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

Break = Callable[[Patient], AbstractContextManager[None]]
LONG_AGO = timedelta(days=-3)
ADMISSIONS = ("ca-ra.admission", "verifier.admission", "cm-proxy.admission")


@dataclass(frozen=True)
class Case:
    """Something to break; the checks that have to find it, and a word of the remedy."""

    title: str
    break_it: Break
    ids: tuple[str, ...]
    remedy: str
    reason: str = ""


CASES: list[Case] = []


def case(title: str, *ids: str, remedy: str, reason: str = "") -> Callable[[Callable[[Patient], Iterator[None]]], None]:
    def add(function: Callable[[Patient], Iterator[None]]) -> None:
        CASES.append(Case(title, contextlib.contextmanager(function), ids, remedy, reason))

    return add


def amf(patient: Patient) -> NfSettings:
    return patient.running.lab.settings.nfs[0]


def smf(patient: Patient) -> NfSettings:
    """Not enrolled."""
    return patient.running.lab.settings.nfs[1]


# OAM's own side


@case("an unknown key in OAM's configuration", "oam.configuration", remedy="Correct the key", reason="CONFIG_INVALID")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(colour="blue"):
        yield


@case("services CA: garbage", "oam.services-ca", remedy="services-ca.pem")
def _(patient: Patient) -> Iterator[None]:
    path = patient.directory / "garbage.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    with patient.operator(services_ca=path):
        yield


@case("OAM's key can be read by others", "oam.key-file", remedy="chmod 600")
def _(patient: Patient) -> Iterator[None]:
    path = patient.running.lab.pki / "oam.key"
    path.chmod(0o644)
    yield
    path.chmod(0o600)


def with_leaf(patient: Patient, leaf: Leaf, **others: Path) -> AbstractContextManager[None]:
    certificate, key = leaf.write(patient.directory, "leaf")
    return patient.operator(**({"certificate": certificate, "private_key": key} | others))


@case("a CM proxy's certificate as OAM's", "oam.certificate", remedy="--role oam")
def _(patient: Patient) -> Iterator[None]:
    with with_leaf(patient, service_leaf(patient.running.services_authority, "cm-proxy", lab=True)):
        yield


@case("another key than the certificate's", "oam.key", remedy="Put the pair together")
def _(patient: Patient) -> Iterator[None]:
    leaf = service_leaf(patient.running.services_authority, "oam", "lab", lab=True)
    with with_leaf(patient, leaf, private_key=patient.running.lab.pki / "oam.key"):
        yield


@case("OAM's certificate is of another CA", "oam.trust", remedy="of one PKI")
def _(patient: Patient) -> Iterator[None]:
    with with_leaf(patient, service_leaf(make_ca("Another services CA"), "oam", "lab", lab=True)):
        yield


@case("OAM's certificate has expired", "oam.validity", remedy="pki service --role oam")
def _(patient: Patient) -> Iterator[None]:
    leaf = patient.running.services_authority.issue(uri_sans=[OAM_URI], lifetime=timedelta(hours=-1), lab=True)
    with with_leaf(patient, leaf):
        yield


# The way to a listener


@case("a host name that does not exist", "verifier.management.name", remedy="Correct the address")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(verifier="verifier.invalid:443"):
        yield


@case("nobody at the address", "verifier.management.tcp", remedy="Start the verifier")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(verifier=f"{HOST}:{free_port()}"):
        yield


@case("a plain HTTP server at the address", "verifier.management.tls", remedy="nothing else has taken its port")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(verifier=f"{HOST}:{patient.running.lab.settings.http_port}"):
        yield


@case("a TLS server of another PKI at the address", "verifier.management.trust", remedy="services_ca")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(verifier=f"{HOST}:{amf(patient).port}"):
        yield


@case("the verifier's certificate has expired", "verifier.management.validity", remedy="--role verifier")
def _(patient: Patient) -> Iterator[None]:
    with patient.files(patient.running.lab.role("verifier") / "server.pem"):
        patient.server_files("verifier", "verifier", [HOST], datetime.now(UTC) + LONG_AGO)
        yield


@case("the verifier's certificate is for another host", "verifier.management.host", remedy=f"--host {HOST}")
def _(patient: Patient) -> Iterator[None]:
    with patient.files(patient.running.lab.role("verifier") / "server.pem"):
        patient.server_files("verifier", "verifier", ["elsewhere.example"])
        yield


@case("the addresses of two roles mixed up", "verifier.management.role", remedy="mixed up")
def _(patient: Patient) -> Iterator[None]:
    with patient.operator(verifier=read_toml(patient.config)["ca_ra"]):
        yield


@case("the CA/RA is down", "ca-ra.management.tcp", remedy="Start the ca-ra")
def _(patient: Patient) -> Iterator[None]:
    patient.stop("ca_ra")  # the CM proxy and the NFs feel it, too: that is not told on top
    yield
    patient.start("ca_ra")


# Being let in


@case("OAM is not in the access file", *ADMISSIONS, remedy="added to the access file", reason="PEER_DENIED")
def _(patient: Patient) -> Iterator[None]:
    with patient.access(principal=[each for each in patient.principals() if each["uri"] != OAM_URI]):
        yield


@case("OAM's certificate is on the deny list", *ADMISSIONS, remedy="access file", reason="PEER_DENIED")
def _(patient: Patient) -> Iterator[None]:
    certificate = load_pem_x509_certificate((patient.running.lab.pki / "oam.pem").read_bytes())
    with patient.access(denied_certificates=[certificate.fingerprint(hashes.SHA256()).hex()]):
        yield


# What a role lacks


@case("a verifier that is too old to be asked", "verifier.version", remedy="version", reason="PEER_INCOMPATIBLE")
def _(patient: Patient) -> Iterator[None]:
    with other_verifier(patient, diagnosis=None) as target, patient.operator(verifier=target):
        yield


@case("the verifier's clock is ten minutes slow", "verifier.time", remedy="NTP")
def _(patient: Patient) -> Iterator[None]:
    well = dict.fromkeys(("clock", "storage"), _nothing_wrong)
    servicer = DiagnosisServicer(well, wall=ShiftedClock(timedelta(minutes=-10)))
    with other_verifier(patient, diagnosis=servicer) as target, patient.operator(verifier=target):
        yield


@case("another front of the verifier is not well", "verifier.serving", remedy="log")
def _(patient: Patient) -> Iterator[None]:
    servicer = DiagnosisServicer(dict.fromkeys(("clock", "storage"), _nothing_wrong))
    with (
        other_verifier(patient, diagnosis=servicer, serving=False) as target,
        patient.operator(verifier=target),
    ):
        yield


async def _nothing_wrong() -> None:
    return None


@case("this machine's clock is ten minutes fast", "oam.time", remedy="this machine's clock")
def _(patient: Patient) -> Iterator[None]:
    patient.clock = ShiftedClock(timedelta(minutes=10))
    yield
    patient.clock = SystemClock()


@case("the verifier's clock has jumped back", "verifier.clock", remedy="Set the clock right", reason="CLOCK_UNTRUSTED")
def _(patient: Patient) -> Iterator[None]:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    patient.marks = {"verifier": str(int(tomorrow.timestamp() * 1_000_000))}
    with patient.beside("verifier"):
        yield
    patient.marks = {}


@case("the CA/RA's token is gone", "ca-ra.token", remedy="token is back", reason="TOKEN_UNAVAILABLE")
def _(patient: Patient) -> Iterator[None]:
    with patient.shims["ca_ra"].failing(TOKEN_GONE):
        yield


@case("the CM proxy's token is gone", "cm-proxy.token", remedy="token is back", reason="TOKEN_UNAVAILABLE")
def _(patient: Patient) -> Iterator[None]:
    with patient.shims["cmproxy"].failing(TOKEN_GONE):
        yield


@case("the verifier's database is gone", "verifier.storage", remedy="disk space", reason="STORAGE_UNAVAILABLE")
def _(patient: Patient) -> Iterator[None]:
    with patient.moved(patient.running.lab.role("verifier") / "store.sqlite"):
        yield


# The CA


@case("the CRL's URL leads nowhere", "ca-ra.crl.reach", remedy="public_url")
def _(patient: Patient) -> Iterator[None]:
    with patient.beside("ca_ra", http={"public_url": f"http://{HOST}:{free_port()}"}):
        yield


@case("NFs are told a wrong enrolment endpoint", "ca-ra.enrolment.tcp", remedy="correct the address")
def _(patient: Patient) -> Iterator[None]:
    with patient.beside("ca_ra", registration={"endpoints": [f"{HOST}:{free_port()}"]}):
        yield


# What only the CM proxy sees


@case(
    "the CM proxy is not in the access file",
    "cm-proxy.to-ca-ra",
    "cm-proxy.to-verifier",
    remedy="access file",
    reason="PEER_DENIED",
)
def _(patient: Patient) -> Iterator[None]:
    with patient.access(denied_principals=[PROXY_URI]):
        yield


@case(
    "the CM proxy's client certificate has expired",
    "cm-proxy.client-certificate",
    remedy="pki service",
    reason="CREDENTIAL_EXPIRED",
)
def _(patient: Patient) -> Iterator[None]:
    public = load_pem_x509_certificate((patient.running.lab.role("cmproxy") / "client.pem").read_bytes()).public_key()
    path = patient.directory / "expired-client.pem"
    path.write_bytes(patient.service(public, "cm-proxy", [], datetime.now(UTC) + LONG_AGO))
    with patient.beside("cmproxy", client_certificate=str(path)):
        yield


@case("the CM proxy's CA/RA is another service", "cm-proxy.to-ca-ra", remedy="address", reason="PEER_UNTRUSTED")
def _(patient: Patient) -> Iterator[None]:
    with patient.beside("cmproxy", ca_ra={"target": f"{HOST}:{patient.running.lab.settings.verifier_port}"}):
        yield


@case("the CM proxy has another operator root", "cm-proxy.to-ca-ra", remedy="ca show", reason="TRUST_ANCHOR_DIFFERS")
def _(patient: Patient) -> Iterator[None]:
    root = make_ca("Another root").write(patient.directory, "another-root")
    with patient.beside("cmproxy", ca_ra={"trust_anchor": str(root)}):
        yield


# NFs


@case("the agent is down", "nf.reach", remedy="nf-agent is running", reason="NF_UNREACHABLE")
def _(patient: Patient) -> Iterator[None]:
    patient.stop_agent(smf(patient))
    yield
    patient.start_agent(smf(patient))


@case("the agent trusts another services CA", "nf.reach", remedy="agent endpoint", reason="NF_UNREACHABLE")
def _(patient: Patient) -> Iterator[None]:
    root = make_ca("Another services CA").write(patient.directory, "agents-services-ca")
    with patient.agent_configured(smf(patient), "listener", "tls", "client_ca", str(root)):
        yield


@case("a wrong agent endpoint", "nf.reach", remedy="agent endpoint", reason="NF_UNREACHABLE")
def _(patient: Patient) -> Iterator[None]:
    with patient.updated(smf(patient), agent_endpoint=f"{HOST}:{free_port()}"):
        yield


@case("another NF at the endpoint", "nf.day0-certificate", remedy="instance id", reason="DAY0_IDENTITY_MISMATCH")
def _(patient: Patient) -> Iterator[None]:
    with patient.updated(smf(patient), agent_endpoint=f"{HOST}:{amf(patient).port}"):
        yield


@case("an expired day-0 certificate", "nf.day0-certificate", remedy="day-0", reason="DAY0_CERTIFICATE_EXPIRED")
def _(patient: Patient) -> Iterator[None]:
    folder = patient.running.lab.nf(smf(patient))
    certificate, key = folder / "day0.pem", folder / "day0.key"
    with patient.files(certificate, key):
        leaf_key = make_ca("a key").key
        moment = datetime.now(UTC) + LONG_AGO
        made = patient.running.issue_day0(leaf_key, smf(patient).nf_instance_id, now=moment)  # type: ignore[arg-type]
        write_atomically(key, Leaf(made, leaf_key).key_pem)
        write_atomically(certificate, pem_chain([made]), 0o644)
        yield


@case("a day-0 certificate of another root", "nf.day0-certificate", remedy="root", reason="DAY0_CHAIN_UNTRUSTED")
def _(patient: Patient) -> Iterator[None]:
    nf = smf(patient)
    folder = patient.running.lab.nf(nf)
    with patient.files(folder / "day0.pem", folder / "day0.key"):
        leaf = make_ca("Another vendor").issue(
            uri_sans=[urn(nf.nf_instance_id)], dns_sans=[day0_name(nf.nf_instance_id, HOME_DOMAIN)], lab=True
        )
        write_atomically(folder / "day0.key", leaf.key_pem)
        write_atomically(folder / "day0.pem", leaf.chain_pem, 0o644)
        yield


@case("another transport key", "nf.transport-key", remedy="nf-agent init", reason="TRANSPORT_KEY_MISMATCH")
def _(patient: Patient) -> Iterator[None]:
    with patient.updated(smf(patient), transport_key_sha256=bytes(32)):
        yield


@case("the agent has another operator root", "nf.trust-anchor", remedy="ca show", reason="TRUST_ANCHOR_DIFFERS")
def _(patient: Patient) -> Iterator[None]:
    root = make_ca("Another root").write(patient.directory, "agents-root")
    with patient.agent_configured(smf(patient), "trust_anchor", str(root)):
        yield


@case("the CM proxy's scope lacks the NF type", "nf.enrolment", remedy="scope", reason="OUT_OF_SCOPE")
def _(patient: Patient) -> Iterator[None]:
    principals = [each | {"nf_types": ["AMF"]} if each["uri"] == PROXY_URI else each for each in patient.principals()]
    name = f"networkFunctions/{smf(patient).nf_instance_id}"
    with patient.access(principal=principals):
        started = patient.running.start(name)
        ended = patient.running.wait_ended(started.name)
        assert ended.state == pb.Enrolment.FAILED
        yield
    patient.running.enrol_and_wait(name)


# With a role's configuration at hand


@case("a wrong PIN in a role's PIN file", "local.token", remedy="Correct the PIN file", reason="PIN_INCORRECT")
def _(patient: Patient) -> Iterator[None]:
    path = patient.copied("cmproxy", "wrong-pin.toml")
    pin = patient.directory / "wrong.pin"
    write_atomically(pin, b"no-such-pin")
    tree = read_toml(path)
    tree["token"] = {**tree["token"], "pin_file": str(pin)}
    write_toml(path, tree)
    patient.role_configs = (path,)
    yield
    patient.role_configs = ()


@case("a PIN file that others can read", "local.secret-files", remedy="chmod 600")
def _(patient: Patient) -> Iterator[None]:
    path = patient.running.lab.role("ca_ra") / "config.toml"
    pin = Path(read_toml(path)["token"]["pin_file"])
    patient.role_configs = (path,)
    pin.chmod(0o640)
    yield
    pin.chmod(0o600)
    patient.role_configs = ()


# The tests


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """A lab of two NFs, one of them enrolled, whose CA/RA and CM proxy have the shim before their tokens."""
    directory = tmp_path_factory.mktemp("doctor")
    lab = Lab.make(directory / "lab", 2)
    try:
        control.set_up(lab, print)
        shims = {name: Shim(open_config(lab.token(name)), directory / name) for name in ("ca_ra", "cmproxy")}
        for name, shim in shims.items():
            write_token(lab.token(name), shim.config)
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            running = RunningLab(lab, stack, directory)
            names = [running.create_nf(running.network_function(nf)).name for nf in lab.settings.nfs]
            running.enrol_and_wait(names[0])
            yield Patient(running, shims, directory, running.config, SystemClock())
    finally:
        control.down(lab)


@pytest.mark.parametrize("broken", CASES, ids=lambda case: case.title.replace(" ", "-"))
def test_what_is_broken_is_named_with_its_remedy(patient: Patient, broken: Case) -> None:
    assert patient.until_broken(()) == {}
    with broken.break_it(patient):
        found = patient.until_broken(broken.ids)
        assert set(found) == set(broken.ids), {name: result.finding for name, result in found.items()}
        for result in found.values():
            assert result.finding is not None
            assert broken.remedy in result.finding.remedy
            assert result.finding.reason == broken.reason
            assert result.finding.text


def test_the_cm_proxy_dials_only_nfs_of_the_callers_tenants(patient: Patient) -> None:
    name = f"networkFunctions/{amf(patient).nf_instance_id}"
    request = diagnosis_pb.GetDiagnosisRequest(network_functions=[name, "networkFunctions/none"])
    everything = {"nf_types": ["*"], "fqdn_suffixes": ["*"]}
    stranger = {"uri": "urn:nftrust:oam:other", "tenants": ["other"], **everything}
    with patient.access(principal=[*patient.principals(), stranger]):
        seen = {}
        for who in ("lab", "other"):
            stub = DiagnosisServiceStub(patient.running.caller("oam", who).channel("cmproxy"))
            seen[who] = {found.subject: found for found in stub.GetDiagnosis(request, timeout=CALL_SECONDS).findings}
    assert seen["lab"][name].reason == ""
    assert seen["lab"][name].agent.state == "CONFIRMED"
    assert seen["other"][name].reason == "NF_NOT_FOUND"
    assert not seen["other"][name].HasField("agent")
    assert seen["lab"]["networkFunctions/none"].reason == "INVALID_NF_INSTANCE_ID"


@pytest.mark.parametrize(("role", "count"), [("cmproxy", 65), ("ca_ra", 1), ("verifier", 1)])
def test_nfs_are_asked_of_a_cm_proxy_only_and_not_too_many(patient: Patient, role: str, count: int) -> None:
    names = [f"networkFunctions/{number}" for number in range(count)]
    stub = DiagnosisServiceStub(patient.running.oam.channel(role))
    with refused(Reason.INVALID_FIELD):
        stub.GetDiagnosis(diagnosis_pb.GetDiagnosisRequest(network_functions=names), timeout=CALL_SECONDS)


def test_there_are_twenty_and_more() -> None:
    assert len(CASES) > 20


def test_a_lab_that_is_well(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    assert patient.until_broken(()) == {}
    capsys.readouterr()
    assert main(["--config", str(patient.config), "doctor"]) == 0
    output = capsys.readouterr().out
    assert "Nothing is broken" in output
    assert "✘" not in output
    assert "\x1b" not in output
    config = patient.running.lab.role("verifier") / "config.toml"
    assert main(["--config", str(patient.config), "doctor", "--all", "--nf", "AMF", "--role-config", str(config)]) == 0
    output = capsys.readouterr().out
    assert "✔ cm-proxy.to-ca-ra" in output
    assert "NF SMF" not in output


def test_json_and_exit_status(
    patient: Patient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert patient.until_broken(()) == {}
    with patient.operator(ca_ra=f"{HOST}:{free_port()}"):
        capsys.readouterr()
        assert main(["--config", str(patient.config), "doctor", "--output", "json"]) == EXIT_BROKEN
        report = json.loads(capsys.readouterr().out)
    assert report["broken"] == 1
    verdicts = {check["id"]: check["verdict"] for check in report["checks"]}
    assert verdicts["ca-ra.management.tcp"] == "BROKEN"
    assert verdicts["ca-ra.management.tls"] is None
    assert verdicts["verifier.serving"] == "OK"
    monkeypatch.setattr(services, "__version__", "99.0")
    assert main(["--config", str(patient.config), "doctor"]) == EXIT_ATTENTION
    output = capsys.readouterr().out
    assert "! ca-ra.version" in output
    assert "Nothing is broken" in output
    pin = Path(read_toml(patient.running.lab.role("ca_ra") / "config.toml")["token"]["pin_file"]).read_text().strip()
    assert pin not in output + json.dumps(report)
