"""OAM takes NFs out of service for good, through the CM proxy and at the CA/RA."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from cryptography import x509

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as ca_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.download import fetch
from nftrust.errors import Reason
from nftrust.lab.layout import TENANT
from tests.lab_kit import CALL_SECONDS, OTHER_TENANT, WAIT_SECONDS, RunningLab, refused
from tests.soft_nf import Iak, SoftNf

pytestmark = pytest.mark.process


def close(running_lab: RunningLab, nf_instance_id: str, caller: str = "lab", **changes: Any) -> Any:
    """RetireEndEntity as OAM."""
    fields = {"nf_instance_id": nf_instance_id, "tenant": TENANT, "nf_type": "AMF"} | changes
    request = ca_pb.RetireEndEntityRequest(**fields)
    return running_lab.caller("oam", caller).registrations.RetireEndEntity(request, timeout=CALL_SECONDS)


def holding_a_certificate(running_lab: RunningLab) -> tuple[Iak, bytes]:
    iak = running_lab.register()
    certificate = running_lab.redeem(iak)
    running_lab.confirm(iak.confirmation(certificate))
    return iak, certificate


def certificates_of(running_lab: RunningLab, nf_instance_id: str) -> list[Any]:
    request = certificate_pb.ListCertificatesRequest(nf_instance_id=nf_instance_id)
    return list(running_lab.oam.certificates.ListCertificates(request, timeout=CALL_SECONDS).certificates)


def retire(running_lab: RunningLab, name: str) -> Any:
    request = pb.RetireNetworkFunctionRequest(name=name)
    return running_lab.oam.provisioning.RetireNetworkFunction(request, timeout=CALL_SECONDS)


def wait_retired(running_lab: RunningLab, name: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        request = pb.GetNetworkFunctionRequest(name=name)
        found = running_lab.oam.provisioning.GetNetworkFunction(request, timeout=CALL_SECONDS)
        if found.state == pb.NetworkFunction.RETIRED:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.03)


# The CA/RA


def test_a_retired_end_entity_gets_nothing_more(running_lab: RunningLab) -> None:
    iak, _ = holding_a_certificate(running_lab)
    again = running_lab.register(iak.nf, allow_re_enrolment=True)  # a live registration, not yet redeemed
    first = close(running_lab, iak.nf.nf_instance_id)
    assert close(running_lab, iak.nf.nf_instance_id) == first  # again: nothing changes
    [revoked] = certificates_of(running_lab, iak.nf.nf_instance_id)
    assert revoked.revocation_reason == certificate_pb.CESSATION_OF_OPERATION
    with refused(Reason.IAK_REVOKED):
        running_lab.redeem(again)
    with refused(Reason.NF_RETIRED):
        running_lab.register(iak.nf, allow_re_enrolment=True)
    running_lab.oam.registrations.ReinstateEndEntity(
        ca_pb.ReinstateEndEntityRequest(nf_instance_id=iak.nf.nf_instance_id)
    )
    with refused(Reason.NF_RETIRED):  # that lifts a suspension, not this
        running_lab.register(iak.nf, allow_re_enrolment=True)


def test_the_crl_lists_what_a_retired_end_entity_held(running_lab: RunningLab) -> None:
    iak, encoded = holding_a_certificate(running_lab)
    certificate = x509.load_der_x509_certificate(encoded)
    close(running_lab, iak.nf.nf_instance_id)
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    url = points[0].full_name[0].value  # type: ignore[index]
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        crl = x509.load_der_x509_crl(fetch(url, CALL_SECONDS))
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.cessation_of_operation


def test_a_certificate_that_is_not_confirmed_yet_goes_too(running_lab: RunningLab) -> None:
    iak = running_lab.register()
    certificate = running_lab.redeem(iak)
    close(running_lab, iak.nf.nf_instance_id)
    [revoked] = certificates_of(running_lab, iak.nf.nf_instance_id)
    assert revoked.HasField("revoke_time")
    with refused(Reason.CERTIFICATE_REVOKED):
        running_lab.confirm(iak.confirmation(certificate))


def test_what_was_revoked_before_keeps_its_reason(running_lab: RunningLab) -> None:
    iak, _ = holding_a_certificate(running_lab)
    [held] = certificates_of(running_lab, iak.nf.nf_instance_id)
    running_lab.oam.certificates.RevokeCertificate(
        certificate_pb.RevokeCertificateRequest(name=held.name, reason=certificate_pb.KEY_COMPROMISE)
    )
    close(running_lab, iak.nf.nf_instance_id)
    [found] = certificates_of(running_lab, iak.nf.nf_instance_id)
    assert found.revocation_reason == certificate_pb.KEY_COMPROMISE


def test_an_end_entity_may_be_closed_before_it_is_known(running_lab: RunningLab) -> None:
    """A registration that was under way when its NF was retired finds the door closed."""
    nf = running_lab.soft_nf()
    close(running_lab, nf.nf_instance_id)
    with refused(Reason.NF_RETIRED):
        running_lab.register(nf)


def test_the_names_of_a_retired_nf_are_free_and_its_keys_are_not(running_lab: RunningLab) -> None:
    old, _ = holding_a_certificate(running_lab)
    new = running_lab.soft_nf()
    same_name = SoftNf(new.nf_instance_id, "AMF", old.nf.fqdn, new.day0_key, new.day0_certificate, new.transport_key)
    with refused(Reason.FQDN_TAKEN):
        running_lab.register(same_name)
    close(running_lab, old.nf.nf_instance_id)
    same_key = SoftNf(new.nf_instance_id, "AMF", old.nf.fqdn, new.day0_key, new.day0_certificate, old.nf.transport_key)
    with refused(Reason.KEY_TAKEN):
        running_lab.register(same_key)
    running_lab.register(same_name)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nf_instance_id": "amf-1"}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_type": "amf"}, Reason.INVALID_NF_TYPE),
        ({"tenant": ""}, Reason.INVALID_FIELD),
        ({"tenant": "t" * 65}, Reason.INVALID_FIELD),
        ({"tenant": OTHER_TENANT}, Reason.OUT_OF_SCOPE),
    ],
    ids=str,
)
def test_a_bad_request_closes_nothing(running_lab: RunningLab, changes: dict[str, str], reason: Reason) -> None:
    nf = running_lab.soft_nf()
    with refused(reason):
        close(running_lab, **({"nf_instance_id": nf.nf_instance_id} | changes))
    running_lab.register(nf)


def test_only_within_the_caller_s_scope(running_lab: RunningLab) -> None:
    iak, _ = holding_a_certificate(running_lab)
    with refused(Reason.END_ENTITY_NOT_FOUND):  # another tenant's looks like none
        close(running_lab, iak.nf.nf_instance_id, "other", tenant=OTHER_TENANT)
    with refused(Reason.OUT_OF_SCOPE):
        close(running_lab, iak.nf.nf_instance_id, "smf-only", nf_type="SMF")
    [held] = certificates_of(running_lab, iak.nf.nf_instance_id)
    assert not held.HasField("revoke_time")


# The CM proxy


def test_a_network_function_is_retired_through_the_cm_proxy(running_lab: RunningLab) -> None:
    iak, _ = holding_a_certificate(running_lab)
    wanted = running_lab.unborn(nf_instance_id=iak.nf.nf_instance_id, fqdns=[iak.nf.fqdn])
    created = running_lab.create_nf(wanted)
    assert created.state == pb.NetworkFunction.IN_SERVICE
    enrolment = running_lab.start(created.name)  # nobody answers at its endpoint: it is waiting
    assert retire(running_lab, created.name).state in (pb.NetworkFunction.RETIRING, pb.NetworkFunction.RETIRED)
    retired = wait_retired(running_lab, created.name)
    assert retire(running_lab, created.name) == retired
    assert running_lab.wait_ended(enrolment.name).state == pb.Enrolment.CANCELLED
    [revoked] = certificates_of(running_lab, iak.nf.nf_instance_id)
    assert revoked.revocation_reason == certificate_pb.CESSATION_OF_OPERATION
    with refused(Reason.NF_RETIRED):
        running_lab.start(created.name, allow_re_enrolment=True)
    with refused(Reason.NF_RETIRED):
        running_lab.oam.provisioning.UpdateNetworkFunction(
            pb.UpdateNetworkFunctionRequest(network_function=retired), timeout=CALL_SECONDS
        )
    # Its name is free, and the proxy may forget it; the CA/RA does not.
    successor = running_lab.create_nf(running_lab.unborn(fqdns=[iak.nf.fqdn]))
    for each in (successor, retired):
        running_lab.oam.provisioning.DeleteNetworkFunction(
            pb.DeleteNetworkFunctionRequest(name=each.name, etag=each.etag), timeout=CALL_SECONDS
        )
    with refused(Reason.NF_RETIRED):
        running_lab.register(iak.nf, allow_re_enrolment=True)


def test_only_what_the_caller_may_see_is_retired(running_lab: RunningLab) -> None:
    with running_lab.provisioned(running_lab.unborn()) as created:
        for caller, reason in (("other", Reason.NF_NOT_FOUND), ("smf-only", Reason.OUT_OF_SCOPE)):
            with refused(reason):
                running_lab.caller("oam", caller).provisioning.RetireNetworkFunction(
                    pb.RetireNetworkFunctionRequest(name=created.name), timeout=CALL_SECONDS
                )
        with refused(Reason.NF_NOT_FOUND):
            retire(running_lab, f"networkFunctions/{uuid.uuid4()}")
