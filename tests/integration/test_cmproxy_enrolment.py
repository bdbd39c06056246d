"""Steps 4 to 7 at the CM proxy: which NFs it does not enrol, and why."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nftrust.api.ca_ra.v1 import registration_service_pb2 as registration_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.identity import day0_name, urn
from nftrust.lab.layout import HOME_DOMAIN, NfSettings
from tests.lab_fixture import ENROLLED, nfs
from tests.lab_kit import RunningLab, SpareAgent, refused
from tests.pki import SERVER, Authority, Leaf

pytestmark = pytest.mark.process


@pytest.fixture
def free_nf(running_lab: RunningLab) -> NfSettings:
    """The lab's NF that is not enrolled."""
    return running_lab.lab.settings.nfs[ENROLLED]


def registered(running_lab: RunningLab, nf_instance_id: str) -> list[registration_pb.Registration]:
    request = registration_pb.ListRegistrationsRequest(nf_instance_id=nf_instance_id)
    return list(running_lab.oam.registrations.ListRegistrations(request).registrations)


def numbers(enrolment: pb.Enrolment) -> list[int]:
    return [step.number for step in enrolment.steps]


# Attestation (step 4)


def test_where_attestation_is_required_and_missing_nothing_is_registered(running_lab: RunningLab) -> None:
    stub = running_lab.oam.provisioning
    wanted = running_lab.unborn(attestation=pb.ATTESTATION_REQUIREMENT_REQUIRED)
    with running_lab.provisioned(wanted) as nf:
        name = running_lab.start(nf.name).name
        waiting = running_lab.wait_for(name, pb.Enrolment.WAITING, reason=Reason.ATTESTATION_RESULT_MISSING)
        assert waiting.error.remedy
        assert numbers(waiting) == []
        with refused(Reason.ENROLMENT_ACTIVE):
            running_lab.start(nf.name)
        with refused(Reason.ENROLMENT_ACTIVE):
            stub.UpdateNetworkFunction(pb.UpdateNetworkFunctionRequest(network_function=nf))
        with refused(Reason.ENROLMENT_ACTIVE):
            stub.DeleteNetworkFunction(pb.DeleteNetworkFunctionRequest(name=nf.name, etag=nf.etag))
        cancelled = stub.CancelEnrolment(pb.CancelEnrolmentRequest(name=name))
        assert cancelled.state == pb.Enrolment.CANCELLED
        with refused(Reason.ENROLMENT_ENDED):
            stub.CancelEnrolment(pb.CancelEnrolmentRequest(name=name))
        assert running_lab.wait_for(name, pb.Enrolment.CANCELLED).HasField("end_time")
        assert registered(running_lab, nf.nf_instance_id) == []


def test_start_is_idempotent_by_its_request_id(running_lab: RunningLab) -> None:
    wanted = running_lab.unborn(attestation=pb.ATTESTATION_REQUIREMENT_REQUIRED)
    with running_lab.provisioned(wanted) as nf:
        stub, request_id = running_lab.oam.provisioning, str(uuid.uuid4())
        first = stub.StartEnrolment(pb.StartEnrolmentRequest(parent=nf.name, request_id=request_id))
        again = stub.StartEnrolment(pb.StartEnrolmentRequest(parent=nf.name, request_id=request_id))
        assert again.name == first.name
        with refused(Reason.REQUEST_ID_REUSED):
            stub.StartEnrolment(
                pb.StartEnrolmentRequest(parent=nf.name, request_id=request_id, allow_re_enrolment=True)
            )


def test_another_tenant_does_not_see_the_enrolment(running_lab: RunningLab) -> None:
    stub = running_lab.caller("oam", "other").provisioning
    wanted = running_lab.unborn(attestation=pb.ATTESTATION_REQUIREMENT_REQUIRED)
    with running_lab.provisioned(wanted) as nf:
        name = running_lab.start(nf.name).name
        with refused(Reason.ENROLMENT_NOT_FOUND):
            stub.GetEnrolment(pb.GetEnrolmentRequest(name=name))
        with refused(Reason.ENROLMENT_NOT_FOUND):
            stub.CancelEnrolment(pb.CancelEnrolmentRequest(name=name))
        with refused(Reason.ENROLMENT_NOT_FOUND):
            list(stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=name)))
        listed = stub.ListEnrolments(pb.ListEnrolmentsRequest(parent="networkFunctions/-")).enrolments
        assert name not in {item.name for item in listed}


# The day-0 channel (security rule 1)


def test_an_nf_that_nobody_serves_is_waited_for(running_lab: RunningLab) -> None:
    with running_lab.provisioned(running_lab.unborn()) as nf:
        name = running_lab.start(nf.name).name
        waiting = running_lab.wait_for(name, pb.Enrolment.WAITING, reason=Reason.NF_UNREACHABLE)
        assert numbers(waiting) == [3, 4]


def fails(running_lab: RunningLab, nf: pb.NetworkFunction, reason: Reason) -> None:
    """The enrolment fails with the reason before anything is registered."""
    before = registered(running_lab, nf.nf_instance_id)
    with running_lab.provisioned(nf) as created:
        failed = running_lab.wait_for(running_lab.start(created.name).name, pb.Enrolment.FAILED, reason=reason)
        assert numbers(failed) == [3, 4]
        assert failed.HasField("end_time")
        assert failed.error.remedy
        assert registered(running_lab, nf.nf_instance_id) == before


def unlisted_root(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    names = [urn(spare.nf_instance_id)]
    return running_lab.other_root.issue(
        uri_sans=names, dns_sans=[day0_name(spare.nf_instance_id, HOME_DOMAIN)], eku=[SERVER], lab=True
    )


def expired(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return spare.leaf(now=datetime.now(UTC) - timedelta(days=3), lifetime=timedelta(days=1))


def not_yet_valid(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return spare.leaf(now=datetime.now(UTC) + timedelta(days=3), lifetime=timedelta(days=1))


def another_nfs(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return spare.leaf(str(uuid.uuid4()))


def by_the_day0_root(running_lab: RunningLab, **options: Any) -> Leaf:
    """Under the lab's root, but not as `nftrust pki day0` would issue it."""
    return Authority(running_lab.pki.day0.certificate, running_lab.pki.day0.key).issue(lab=True, **options)


def matching_common_name_only(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return by_the_day0_root(
        running_lab,
        common_name=urn(spare.nf_instance_id),
        uri_sans=[urn(str(uuid.uuid4()))],
        eku=[SERVER],
    )


def wildcard(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return by_the_day0_root(
        running_lab, uri_sans=[urn(spare.nf_instance_id)], dns_sans=[f"*.day0.{HOME_DOMAIN}"], eku=[SERVER]
    )


def two_identities(running_lab: RunningLab, spare: SpareAgent) -> Leaf:
    return by_the_day0_root(
        running_lab,
        uri_sans=[urn(spare.nf_instance_id), urn(str(uuid.uuid4()))],
        dns_sans=[day0_name(spare.nf_instance_id, HOME_DOMAIN)],
        eku=[SERVER],
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unlisted_root, Reason.DAY0_CHAIN_UNTRUSTED),
        (expired, Reason.DAY0_CERTIFICATE_EXPIRED),
        (not_yet_valid, Reason.DAY0_CERTIFICATE_EXPIRED),
        (another_nfs, Reason.DAY0_IDENTITY_MISMATCH),
        (matching_common_name_only, Reason.DAY0_IDENTITY_MISMATCH),
        (wildcard, Reason.DAY0_CERTIFICATE_INVALID),
        (two_identities, Reason.DAY0_CERTIFICATE_INVALID),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_day0_certificate_that_is_not_this_nfs_is_refused(
    running_lab: RunningLab, spare_agent: SpareAgent, tmp_path: Path, make: Any, reason: Reason
) -> None:
    with spare_agent.serving(tmp_path, make(running_lab, spare_agent)) as endpoint:
        nf = running_lab.unborn(
            nf_instance_id=spare_agent.nf_instance_id,
            agent_endpoint=endpoint,
            transport_key_sha256=spare_agent.transport_key_sha256,
        )
        fails(running_lab, nf, reason)


def test_a_peer_that_speaks_no_tls_is_unreachable(running_lab: RunningLab) -> None:
    port = running_lab.description["ca_ra"]["crl"].split(":")[2].split("/")[0]
    with running_lab.provisioned(running_lab.unborn(agent_endpoint=f"localhost:{port}")) as nf:
        running_lab.wait_for(running_lab.start(nf.name).name, pb.Enrolment.WAITING, reason=Reason.NF_UNREACHABLE)


# The transport key (security rule 2)


def test_another_transport_key_than_the_provisioned_one_is_refused(
    running_lab: RunningLab, free_nf: NfSettings
) -> None:
    nf = running_lab.network_function(free_nf)
    nf.transport_key_sha256 = bytes(32)
    fails(running_lab, nf, Reason.TRANSPORT_KEY_MISMATCH)


def test_a_key_pinned_at_first_contact_stays_pinned_and_a_re_enrolment_needs_permission(
    running_lab: RunningLab, free_nf: NfSettings, spare_agent: SpareAgent, tmp_path: Path
) -> None:
    """One NF through its life: pinned, enrolled, refused again, allowed again; then a stolen day-0 key."""
    wanted = running_lab.network_function(free_nf)
    fingerprint, wanted.transport_key_sha256 = wanted.transport_key_sha256, b""
    wanted.pin_transport_key_on_first_contact = True
    stub = running_lab.oam.provisioning
    with running_lab.provisioned(wanted) as nf:
        assert nf.pinned_transport_key_sha256 == b""
        first = running_lab.enrol_and_wait(nf.name, allow_re_enrolment=True)  # whatever other tests did
        known = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=nf.name))
        assert known.pinned_transport_key_sha256 == fingerprint

        refused_again = running_lab.start(nf.name)
        running_lab.wait_for(refused_again.name, pb.Enrolment.FAILED, reason=Reason.ALREADY_ENROLLED)

        second = running_lab.enrol_and_wait(nf.name, allow_re_enrolment=True)
        assert second.certificate != first.certificate
        assert second.registration != first.registration

        # Whoever has the day-0 identity but another token shows another transport key.
        with spare_agent.serving(tmp_path, spare_agent.leaf(free_nf.nf_instance_id)) as endpoint:
            known.agent_endpoint = endpoint
            moved = stub.UpdateNetworkFunction(pb.UpdateNetworkFunctionRequest(network_function=known))
            assert moved.pinned_transport_key_sha256 == fingerprint
            stolen = running_lab.start(nf.name, allow_re_enrolment=True)
            ended = running_lab.wait_for(stolen.name, pb.Enrolment.FAILED)
            assert ended.error.reason in (Reason.TRANSPORT_KEY_MISMATCH.name, Reason.NF_STATEMENT_INVALID.name)


def test_a_replayed_enrolment_of_a_confirmed_nf_fails(running_lab: RunningLab, enrolled: dict[str, Any]) -> None:
    nf = nfs(running_lab)[0]
    started = running_lab.start(f"networkFunctions/{nf.nf_instance_id}")
    failed = running_lab.wait_for(started.name, pb.Enrolment.FAILED, reason=Reason.ALREADY_ENROLLED)
    assert failed.certificate == ""
