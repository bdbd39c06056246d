"""An NF instance goes on with another token, once and by OAM's leave; what the old one got ends."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from nftrust.api.audit.v1 import audit_service_pb2 as audit_pb
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason
from tests.lab_kit import CALL_SECONDS, RunningLab, SecondCa, SpareAgent, refused
from tests.soft_nf import Iak, SoftNf, new_key, new_transport_key

pytestmark = [pytest.mark.process, pytest.mark.token]


def certificates_of(running_lab: RunningLab, nf_instance_id: str) -> list[certificate_pb.Certificate]:
    """The newest first."""
    request = certificate_pb.ListCertificatesRequest(nf_instance_id=nf_instance_id)
    return list(running_lab.oam.certificates.ListCertificates(request, timeout=CALL_SECONDS).certificates)


def enrolled(running_lab: RunningLab, nf: SoftNf, **changes: Any) -> tuple[Iak, bytes]:
    iak = running_lab.register(nf, **changes)
    certificate = running_lab.redeem(iak)
    running_lab.confirm(iak.confirmation(certificate))
    return iak, certificate


def with_another_token(nf: SoftNf) -> SoftNf:
    return replace(nf, transport_key=new_transport_key())


# The CA/RA


def test_the_old_certificates_are_good_until_the_new_one_is_confirmed(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    old, certificate = enrolled(running_lab, nf)
    successor = new_key()
    proof = old.renewal(certificate, successor)
    running_lab.renew(proof)
    iak = running_lab.register(with_another_token(nf), replaces_instance=True)
    new = running_lab.redeem(iak)
    assert not any(each.HasField("revoke_time") for each in certificates_of(running_lab, nf.nf_instance_id))
    running_lab.confirm(iak.confirmation(new))
    latest, *others = certificates_of(running_lab, nf.nf_instance_id)
    assert latest.name == f"certificates/{x509.load_der_x509_certificate(new).serial_number:x}"
    assert not latest.HasField("revoke_time")
    assert [each.revocation_reason for each in others] == [certificate_pb.SUPERSEDED] * 2
    # The old token's keys lead nowhere any more, and that is no alarm.
    with refused(Reason.CERTIFICATE_REVOKED):
        running_lab.renew(old.renewal(certificate, new_key()))
    proof = iak.renewal(new, new_key())
    iak.renewed(running_lab.renew(proof), proof)


def test_another_enrolment_alone_revokes_nothing(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    enrolled(running_lab, nf)
    enrolled(running_lab, nf, allow_re_enrolment=True)
    assert not any(each.HasField("revoke_time") for each in certificates_of(running_lab, nf.nf_instance_id))


def test_the_permission_cannot_be_written_into_the_database(running_lab: RunningLab, second_ca: SecondCa) -> None:
    iak = second_ca.register(running_lab.soft_nf())
    name = iak.info.registration.removeprefix("registrations/")
    second_ca.execute("UPDATE registration SET replaces_instance = 1 WHERE id = ?", name)
    with refused(Reason.STORED_ROW_TAMPERED):
        second_ca.enrol(iak.proof())


# The CM proxy, with real agents


@pytest.fixture(scope="module")
def first(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> SpareAgent:
    return SpareAgent.make(running_lab, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(running_lab: RunningLab, first: SpareAgent, tmp_path_factory: pytest.TempPathFactory) -> SpareAgent:
    """The same NF instance with another token."""
    return SpareAgent.make(running_lab, tmp_path_factory.mktemp("second"), first.nf_instance_id)


@pytest.fixture
def nf(running_lab: RunningLab, first: SpareAgent, tmp_path: Path) -> Iterator[pb.NetworkFunction]:
    """Enrolled with the first token, whose agent is gone."""
    with first.serving(directory(tmp_path, "first"), first.leaf()) as endpoint:
        wanted = first.network_function(endpoint)
        with running_lab.provisioned(wanted) as created:
            running_lab.enrol_and_wait(created.name, allow_re_enrolment=True)
            yield created


def directory(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def reinstantiate(running_lab: RunningLab, name: str, key: bytes, request_id: str = "") -> Any:
    request = pb.ReinstantiateNetworkFunctionRequest(
        name=name, transport_key_sha256=key, request_id=request_id or str(uuid.uuid4())
    )
    return running_lab.oam.provisioning.ReinstantiateNetworkFunction(request, timeout=CALL_SECONDS)


def test_an_nf_goes_on_with_another_token_by_oams_leave_alone(
    running_lab: RunningLab, nf: pb.NetworkFunction, second: SpareAgent, tmp_path: Path
) -> None:
    [before, *_] = certificates_of(running_lab, nf.nf_instance_id)
    stub = running_lab.oam.provisioning
    with second.serving(directory(tmp_path, "second"), second.leaf()) as endpoint:
        known = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=nf.name), timeout=CALL_SECONDS)
        known.agent_endpoint = endpoint
        update = pb.UpdateNetworkFunctionRequest(network_function=known)
        update.update_mask.paths.append("agent_endpoint")
        stub.UpdateNetworkFunction(update, timeout=CALL_SECONDS)

        refused_one = running_lab.wait_ended(running_lab.start(nf.name, allow_re_enrolment=True).name)
        assert refused_one.error.reason == Reason.TRANSPORT_KEY_MISMATCH.name

        request_id = str(uuid.uuid4())
        started = reinstantiate(running_lab, nf.name, second.transport_key_sha256, request_id)
        ended = running_lab.wait_for(started.name, pb.Enrolment.SUCCEEDED)
        again = reinstantiate(running_lab, nf.name, second.transport_key_sha256, request_id)
        assert again.name == started.name

    latest, *others = certificates_of(running_lab, nf.nf_instance_id)
    assert latest.name == ended.certificate
    [revoked] = [each for each in others if each.name == before.name]
    assert revoked.revocation_reason == certificate_pb.SUPERSEDED
    after = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=nf.name), timeout=CALL_SECONDS)
    assert after.pinned_transport_key_sha256 == second.transport_key_sha256
    assert "networkfunction.reinstantiate" in actions(running_lab, nf.name)


def actions(running_lab: RunningLab, subject: str) -> set[str]:
    """In the CM proxy's audit log."""
    seen: set[str] = set()
    token = ""
    while True:
        request = audit_pb.ListAuditEventsRequest(page_size=1000, page_token=token)
        page = running_lab.oam.audit("cmproxy").ListAuditEvents(request, timeout=CALL_SECONDS)
        seen |= {event.action for event in page.events if event.subject == subject}
        token = page.next_page_token
        if not token:
            return seen


def test_what_oam_may_not_ask_for(running_lab: RunningLab) -> None:
    with refused(Reason.NF_NOT_FOUND):
        reinstantiate(running_lab, f"networkFunctions/{uuid.uuid4()}", bytes(32))
    with running_lab.provisioned(running_lab.unborn()) as nf:
        with refused(Reason.INVALID_FIELD):
            reinstantiate(running_lab, nf.name, b"too short")
        with refused(Reason.NF_NOT_FOUND):  # another tenant's
            request = pb.ReinstantiateNetworkFunctionRequest(name=nf.name, transport_key_sha256=bytes(32))
            running_lab.caller("oam", "other").provisioning.ReinstantiateNetworkFunction(request, timeout=CALL_SECONDS)


def test_an_enrolment_under_way_gives_way(running_lab: RunningLab) -> None:
    """Of an agent that nobody serves: with the key that is seen first, for once."""
    with running_lab.provisioned(running_lab.unborn()) as nf:
        under_way = running_lab.start(nf.name)
        started = reinstantiate(running_lab, nf.name, b"")
        assert running_lab.wait_ended(under_way.name).state == pb.Enrolment.CANCELLED
        assert started.name != under_way.name
        stub = running_lab.oam.provisioning
        after = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=nf.name), timeout=CALL_SECONDS)
        assert after.pin_transport_key_on_first_contact
        assert after.pinned_transport_key_sha256 == b""
