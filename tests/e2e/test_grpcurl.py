"""A person with grpcurl: reflection, every reading call, and errors that say what they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason
from tests.lab_fixture import nfs
from tests.lab_kit import RunningLab

pytestmark = [pytest.mark.process, pytest.mark.grpcurl]

SERVICES = {
    "cmproxy": ["nftrust.api.cmproxy.v1.ProvisioningService"],
    "ca_ra": ["nftrust.api.ca_ra.v1.CertificateService", "nftrust.api.ca_ra.v1.RegistrationService"],
    "verifier": ["nftrust.api.verifier.v1.AttestationResultService"],
    "enrolment": ["nftrust.api.ca_ra.v1.EnrolmentService"],
}
INFRASTRUCTURE = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
AUDIT = "nftrust.api.audit.v1.AuditService"
DIAGNOSIS = "nftrust.api.diagnosis.v1.DiagnosisService"
Enrolled = dict[str, pb.Enrolment]


def find_grpcurl() -> str | None:
    repository = Path(__file__).parents[2]
    places = [os.environ.get("GRPCURL"), shutil.which("grpcurl")]
    places += [str(Path.home() / "go/bin/grpcurl"), str(repository / ".cache/bin/grpcurl")]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


class Grpcurl:
    """grpcurl as OAM against the lab, as the files of lab.json let anybody."""

    def __init__(self, running_lab: RunningLab, program: str) -> None:
        self.lab = running_lab
        self.program = program

    def run(self, listener: str, *arguments: str, data: dict[str, Any] | None = None) -> tuple[int, str, str]:
        files = self.lab.description["pki"]
        command = [self.program, "-cacert", files["services_ca"]]
        if listener != "enrolment":
            command += ["-cert", files["oam_cert"], "-key", files["oam_key"]]
        if data is not None:
            command += ["-d", json.dumps(data), "-format-error"]
        command += [self.lab.targets[listener], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    def lines(self, listener: str, *arguments: str) -> list[str]:
        code, output, problems = self.run(listener, *arguments)
        assert code == 0, problems
        return output.splitlines()

    def call(self, listener: str, method: str, **data: Any) -> Any:
        code, output, problems = self.run(listener, method, data=data)
        assert code == 0, problems
        return json.loads(output)

    def error(self, listener: str, method: str, reason: Reason, **data: Any) -> dict[str, Any]:
        """The ErrorInfo that grpcurl shows."""
        code, output, problems = self.run(listener, method, data=data)
        assert code != 0, output
        status = json.loads(problems or output)
        [info] = [detail for detail in status["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
        assert (info["reason"], info["domain"]) == (reason.name, "nftrust")
        assert status["message"]
        return dict(info)


@pytest.fixture(scope="module")
def grpcurl(running_lab: RunningLab) -> Grpcurl:
    program = find_grpcurl()
    if program is None:
        explanation = "grpcurl is not installed (GRPCURL, PATH, ~/go/bin; `make grpcurl` where Go is present)"
        if os.environ.get("CI") == "true":
            pytest.fail(explanation)
        pytest.skip(explanation)
    return Grpcurl(running_lab, program)


@pytest.mark.parametrize("listener", SERVICES)
def test_list_and_describe_everything(grpcurl: Grpcurl, listener: str) -> None:
    expected = [*SERVICES[listener], *INFRASTRUCTURE, *([] if listener == "enrolment" else [AUDIT, DIAGNOSIS])]
    assert grpcurl.lines(listener, "list") == sorted(expected)
    for service in SERVICES[listener]:
        methods = grpcurl.lines(listener, "list", service)
        assert methods
        described = "\n".join(grpcurl.lines(listener, "describe", service))
        for method in methods:
            assert f"rpc {method.rpartition('.')[2]} (" in described
            request = described.split(f"rpc {method.rpartition('.')[2]} (")[1].split(")")[0].strip().lstrip(".")
            assert "message" in "\n".join(grpcurl.lines(listener, "describe", request))


@pytest.mark.parametrize("listener", SERVICES)
def test_health(grpcurl: Grpcurl, listener: str) -> None:
    assert grpcurl.call(listener, "grpc.health.v1.Health/Check") == {"status": "SERVING"}


def test_reading_calls_of_the_cm_proxy(grpcurl: Grpcurl, running_lab: RunningLab, enrolled: Enrolled) -> None:
    service = "nftrust.api.cmproxy.v1.ProvisioningService"
    listed = grpcurl.call("cmproxy", f"{service}/ListNetworkFunctions", page_size=1000)["network_functions"]
    for nf in nfs(running_lab):
        name = f"networkFunctions/{nf.nf_instance_id}"
        shown = grpcurl.call("cmproxy", f"{service}/GetNetworkFunction", name=name)
        assert shown in listed
        assert shown["fqdns"] == [nf.fqdn]
        enrolment = enrolled[nf.nf_instance_id]
        found = grpcurl.call("cmproxy", f"{service}/GetEnrolment", name=enrolment.name)
        assert found["state"] == "SUCCEEDED"
        assert found in grpcurl.call("cmproxy", f"{service}/ListEnrolments", parent=name)["enrolments"]
        watched = grpcurl.call("cmproxy", f"{service}/WatchEnrolment", name=enrolment.name)
        assert watched["enrolment"] == found


def test_reading_calls_of_the_ca_ra(grpcurl: Grpcurl, enrolled: Enrolled) -> None:
    certificates = "nftrust.api.ca_ra.v1.CertificateService"
    registrations = "nftrust.api.ca_ra.v1.RegistrationService"
    authority = grpcurl.call("ca_ra", f"{certificates}/GetCertificateAuthority")
    assert authority["issuing_ca_pem"].startswith("-----BEGIN CERTIFICATE-----")
    for nf_instance_id, enrolment in enrolled.items():
        shown = grpcurl.call("ca_ra", f"{certificates}/GetCertificate", name=enrolment.certificate)
        listed = grpcurl.call("ca_ra", f"{certificates}/ListCertificates", nf_instance_id=nf_instance_id)
        assert shown in listed["certificates"]
        found = grpcurl.call("ca_ra", f"{registrations}/GetRegistration", name=enrolment.registration)
        assert found["state"] == "CONFIRMED"
        every = grpcurl.call("ca_ra", f"{registrations}/ListRegistrations", nf_instance_id=nf_instance_id)
        assert found in every["registrations"]


def test_reading_calls_of_the_verifier(grpcurl: Grpcurl) -> None:
    service = "nftrust.api.verifier.v1.AttestationResultService"
    assert grpcurl.call("verifier", f"{service}/ListAttestationResults") == {}
    name = f"attestationResults/{uuid.uuid4()}"
    grpcurl.error("verifier", f"{service}/GetAttestationResult", Reason.ATTESTATION_RESULT_NOT_FOUND, name=name)


@pytest.mark.parametrize("listener", ["ca_ra", "cmproxy", "verifier"])
def test_reading_the_audit_log(grpcurl: Grpcurl, enrolled: Enrolled, listener: str) -> None:
    found = grpcurl.call(listener, f"{AUDIT}/ListAuditEvents", page_size=2).get("events", [])
    assert [event["sequence"] for event in found] == ["1", "2"][: len(found)]
    assert found or listener == "verifier"


def test_the_trust_bundle(grpcurl: Grpcurl) -> None:
    service = "nftrust.api.ca_ra.v1.EnrolmentService"
    answer = grpcurl.call("enrolment", f"{service}/GetTrustBundle", nonce="AAAAAAAAAAAAAAAAAAAAAA==")
    assert answer["signed_response"].count(".") == 2


def test_errors_name_their_reason(grpcurl: Grpcurl) -> None:
    service = "nftrust.api.cmproxy.v1.ProvisioningService"
    name = f"networkFunctions/{uuid.uuid4()}"
    grpcurl.error("cmproxy", f"{service}/GetNetworkFunction", Reason.NF_NOT_FOUND, name=name)
    info = grpcurl.error("cmproxy", f"{service}/GetNetworkFunction", Reason.INVALID_FIELD, name="nonsense")
    assert info["metadata"] == {"field": "name"}
    wrong = {"nf_instance_id": "amf-1", "nf_type": "AMF"}
    grpcurl.error(
        "cmproxy",
        f"{service}/CreateNetworkFunction",
        Reason.INVALID_NF_INSTANCE_ID,
        network_function=wrong | {"fqdns": ["a.amf.5gc.mnc001.mcc001.3gppnetwork.org"]},
    )
    enrolment = "nftrust.api.ca_ra.v1.EnrolmentService"
    grpcurl.error("enrolment", f"{enrolment}/EnrolCertificate", Reason.PROOF_MALFORMED, proof="x")


def test_the_nf_agent_is_not_open_to_oam(grpcurl: Grpcurl, running_lab: RunningLab) -> None:
    files = running_lab.description["pki"]
    nf = nfs(running_lab)[0]
    command = [grpcurl.program, "-insecure", "-cert", files["oam_cert"], "-key", files["oam_key"]]
    done = subprocess.run(
        [*command, f"localhost:{nf.port}", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "may not call" in done.stderr or "PermissionDenied" in done.stderr
