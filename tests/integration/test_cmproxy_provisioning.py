"""Step 3 at the CM proxy: what OAM may provision, and what it is refused."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.lab.layout import DAY0_ROOT, HOME_DOMAIN, TENANT
from tests.lab_kit import OTHER_ROOT, OTHER_TENANT, RunningLab, refused

pytestmark = pytest.mark.process


def get(running_lab: RunningLab, nf_instance_id: str) -> Any:
    request = pb.GetNetworkFunctionRequest(name=f"networkFunctions/{nf_instance_id}")
    return running_lab.oam.provisioning.GetNetworkFunction(request)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nf_instance_id": ""}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_instance_id": "amf-1"}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_instance_id": "0f0e0d0c-0b0a-1908-8706-050403020100"}, Reason.INVALID_NF_INSTANCE_ID),  # version 1
        ({"nf_instance_id": "0f0e0d0c-0b0a-4908-c706-050403020100"}, Reason.INVALID_NF_INSTANCE_ID),  # variant
        ({"nf_instance_id": "{0f0e0d0c-0b0a-4908-8706-05040302010}"}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_instance_id": "0f0e0d0c0b0a490887060504030201000000"}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_type": ""}, Reason.INVALID_NF_TYPE),
        ({"nf_type": "amf"}, Reason.INVALID_NF_TYPE),
        ({"nf_type": "AMF SMF"}, Reason.INVALID_NF_TYPE),
        ({"nf_type": "A" * 33}, Reason.INVALID_NF_TYPE),
        ({"fqdns": []}, Reason.INVALID_FIELD),
        ({"fqdns": ["-x.amf." + HOME_DOMAIN]}, Reason.INVALID_FIELD),
        ({"fqdns": [f"x{n}.amf.{HOME_DOMAIN}" for n in range(17)]}, Reason.INVALID_FIELD),
        ({"fqdns": ["x.amf.5gc.mnc999.mcc999.3gppnetwork.org"]}, Reason.FQDN_OUTSIDE_HOME_DOMAIN),
        ({"fqdns": ["x.amf.evil" + HOME_DOMAIN]}, Reason.FQDN_OUTSIDE_HOME_DOMAIN),
        ({"fqdns": [f"x.smf.{HOME_DOMAIN}"]}, Reason.FQDN_FORM_MISMATCH),
        ({"fqdns": [f"a.b.amf.{HOME_DOMAIN}"]}, Reason.FQDN_FORM_MISMATCH),
        ({"nf_type": "NRF", "fqdns": [f"my.nrf.{HOME_DOMAIN}"]}, Reason.FQDN_FORM_MISMATCH),
        ({"agent_endpoint": ""}, Reason.INVALID_FIELD),
        ({"agent_endpoint": "localhost"}, Reason.INVALID_FIELD),
        ({"agent_endpoint": "localhost:0"}, Reason.INVALID_FIELD),
        ({"agent_endpoint": "localhost:99999"}, Reason.INVALID_FIELD),
        ({"agent_endpoint": "unix:/run/x:1"}, Reason.INVALID_FIELD),
        ({"transport_key_sha256": b"short"}, Reason.INVALID_FIELD),
        ({"transport_key_sha256": b""}, Reason.INVALID_FIELD),
        ({"day0_root": "unheard-of"}, Reason.DAY0_ROOT_UNKNOWN),
        ({"day0_root": ""}, Reason.DAY0_ROOT_UNKNOWN),
        ({"tenant": "Upper Case"}, Reason.INVALID_FIELD),
        ({"certificate_profile": "p" * 65}, Reason.INVALID_FIELD),
        ({"iak_delivery_mode": pb.IAK_DELIVERY_MODE_TLS_ONLY}, Reason.DELIVERY_MODE_NOT_ALLOWED),
        ({"iak_delivery_mode": 77}, Reason.INVALID_FIELD),
        ({"attestation": 77}, Reason.INVALID_FIELD),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_field_is_refused_and_nothing_is_stored(
    running_lab: RunningLab, changes: dict[str, Any], reason: Reason
) -> None:
    nf = running_lab.unborn(**changes)
    with refused(reason):
        running_lab.create_nf(nf)
    request = pb.ListNetworkFunctionsRequest(page_size=1000)
    stored = running_lab.oam.provisioning.ListNetworkFunctions(request).network_functions
    assert nf.nf_instance_id not in {item.nf_instance_id for item in stored}


def test_a_created_network_function_is_as_wanted_in_lower_case(running_lab: RunningLab) -> None:
    nf = running_lab.unborn(tenant="")
    nf.nf_instance_id = nf.nf_instance_id.upper()
    wanted_fqdn = nf.fqdns[0]
    nf.fqdns[0] = wanted_fqdn.upper()
    with running_lab.provisioned(nf) as created:
        assert created.nf_instance_id == nf.nf_instance_id.lower()
        assert created.name == f"networkFunctions/{created.nf_instance_id}"
        assert list(created.fqdns) == [wanted_fqdn]
        assert created.tenant == TENANT
        assert created.certificate_profile == "nf"
        assert created.attestation == pb.ATTESTATION_REQUIREMENT_OFF
        assert created.iak_delivery_mode == pb.IAK_DELIVERY_MODE_WRAPPED
        assert created == get(running_lab, created.nf_instance_id)


def test_a_duplicate_is_refused(running_lab: RunningLab) -> None:
    nf = running_lab.unborn()
    with running_lab.provisioned(nf) as created:
        with refused(Reason.NF_ALREADY_EXISTS):
            running_lab.create_nf(nf)
        other = running_lab.unborn(fqdns=list(nf.fqdns))
        with refused(Reason.FQDN_TAKEN):
            running_lab.create_nf(other)
        with refused(Reason.NF_NOT_FOUND):
            get(running_lab, other.nf_instance_id)
        assert get(running_lab, nf.nf_instance_id) == created


def test_network_functions_of_a_set_may_share_a_name(running_lab: RunningLab) -> None:
    name = f"set{uuid.uuid4().hex[:8]}.region1.amfset.{HOME_DOMAIN}"
    first = running_lab.unborn(fqdns=[name], certificate_profile="nf-set")
    second = running_lab.unborn(fqdns=[name], certificate_profile="nf-set")
    alone = running_lab.unborn(fqdns=[name])
    with running_lab.provisioned(first), running_lab.provisioned(second), refused(Reason.FQDN_TAKEN):
        running_lab.create_nf(alone)


def test_a_request_id_serves_one_body(running_lab: RunningLab) -> None:
    nf, request_id = running_lab.unborn(), str(uuid.uuid4())
    created = running_lab.create_nf(nf, request_id=request_id)
    assert running_lab.create_nf(nf, request_id=request_id) == created
    with refused(Reason.REQUEST_ID_REUSED):
        running_lab.create_nf(running_lab.unborn(), request_id=request_id)
    with refused(Reason.INVALID_FIELD):
        running_lab.create_nf(running_lab.unborn(), request_id="seven")


def test_a_stale_etag_is_refused(running_lab: RunningLab) -> None:
    stub = running_lab.oam.provisioning
    with running_lab.provisioned(running_lab.unborn()) as created:
        changed = pb.NetworkFunction()
        changed.CopyFrom(created)
        changed.agent_endpoint = "localhost:10"
        mask = FieldMask(paths=["agent_endpoint"])
        update = pb.UpdateNetworkFunctionRequest(network_function=changed, update_mask=mask)
        updated = stub.UpdateNetworkFunction(update)
        assert updated.agent_endpoint == "localhost:10"
        assert updated.etag != created.etag
        with refused(Reason.STALE_ETAG):
            stub.UpdateNetworkFunction(update)
        with refused(Reason.STALE_ETAG):
            stub.DeleteNetworkFunction(pb.DeleteNetworkFunctionRequest(name=created.name, etag=created.etag))
        for etag, reason in (("", Reason.INVALID_FIELD), ("other", Reason.STALE_ETAG)):
            with refused(reason):
                stub.DeleteNetworkFunction(pb.DeleteNetworkFunctionRequest(name=created.name, etag=etag))
        assert get(running_lab, created.nf_instance_id) == updated


def test_an_update_changes_what_the_mask_names_and_checks_it(running_lab: RunningLab) -> None:
    stub = running_lab.oam.provisioning
    with running_lab.provisioned(running_lab.unborn()) as created:
        changed = pb.NetworkFunction()
        changed.CopyFrom(created)
        changed.agent_endpoint, changed.nf_type = "localhost:11", "SMF"
        mask = FieldMask(paths=["agent_endpoint"])
        updated = stub.UpdateNetworkFunction(
            pb.UpdateNetworkFunctionRequest(network_function=changed, update_mask=mask)
        )
        assert (updated.agent_endpoint, updated.nf_type) == ("localhost:11", "AMF")
        for path, reason in (("nf_type", Reason.FQDN_FORM_MISMATCH), ("tenant", Reason.INVALID_FIELD)):
            changed.etag = updated.etag
            with refused(reason):
                stub.UpdateNetworkFunction(
                    pb.UpdateNetworkFunctionRequest(network_function=changed, update_mask=FieldMask(paths=[path]))
                )
        assert get(running_lab, created.nf_instance_id) == updated


# Scopes (security rule 16)


def test_another_tenant_neither_creates_nor_sees(running_lab: RunningLab) -> None:
    other = running_lab.caller("oam", "other")
    with refused(Reason.OUT_OF_SCOPE) as refusal:
        running_lab.create_nf(running_lab.unborn(), other)
    assert refusal.remote.metadata["field"] == "tenant"
    with running_lab.provisioned(running_lab.unborn()) as created:
        stub = other.provisioning
        with refused(Reason.NF_NOT_FOUND):
            stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=created.name))
        with refused(Reason.NF_NOT_FOUND):
            stub.UpdateNetworkFunction(pb.UpdateNetworkFunctionRequest(network_function=created))
        with refused(Reason.NF_NOT_FOUND):
            stub.DeleteNetworkFunction(pb.DeleteNetworkFunctionRequest(name=created.name, etag=created.etag))
        with refused(Reason.NF_NOT_FOUND):
            stub.StartEnrolment(pb.StartEnrolmentRequest(parent=created.name))
        listed = stub.ListNetworkFunctions(pb.ListNetworkFunctionsRequest(page_size=1000)).network_functions
        assert {item.tenant for item in listed} <= {OTHER_TENANT}


def test_a_root_vouches_for_its_tenant_only(running_lab: RunningLab) -> None:
    with refused(Reason.OUT_OF_SCOPE):  # vendor B's root for vendor A's NF
        running_lab.create_nf(running_lab.unborn(day0_root=OTHER_ROOT))
    other = running_lab.caller("oam", "other")
    with refused(Reason.OUT_OF_SCOPE):
        running_lab.create_nf(running_lab.unborn(tenant=OTHER_TENANT, day0_root=DAY0_ROOT), other)
    created = running_lab.create_nf(running_lab.unborn(tenant="", day0_root=OTHER_ROOT), other)
    assert created.tenant == OTHER_TENANT
    with refused(Reason.NF_NOT_FOUND):
        get(running_lab, created.nf_instance_id)


def test_a_narrow_principal_is_held_to_its_nf_types_and_names(running_lab: RunningLab) -> None:
    with refused(Reason.OUT_OF_SCOPE) as refusal:
        running_lab.create_nf(running_lab.unborn(), running_lab.caller("oam", "smf-only"))
    assert refusal.remote.metadata["field"] == "nf_type"
    west = running_lab.caller("oam", "west")
    with refused(Reason.OUT_OF_SCOPE) as refusal:
        running_lab.create_nf(running_lab.unborn(), west)
    assert refusal.remote.metadata["field"] == "fqdns"
    inside = f"set{uuid.uuid4().hex[:8]}.regionwest.amfset.{HOME_DOMAIN}"
    assert running_lab.create_nf(running_lab.unborn(fqdns=[inside]), west).fqdns == [inside]


# Paging and names


def test_paging_reaches_everything_once(running_lab: RunningLab) -> None:
    stub = running_lab.oam.provisioning
    names = {running_lab.create_nf(running_lab.unborn()).name for _ in range(5)}
    seen: list[str] = []
    token = ""
    while True:
        page = stub.ListNetworkFunctions(pb.ListNetworkFunctionsRequest(page_size=2, page_token=token))
        assert len(page.network_functions) <= 2
        seen += [item.name for item in page.network_functions]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    for request in (pb.ListNetworkFunctionsRequest(page_token="x"), pb.ListNetworkFunctionsRequest(page_token="\0")):
        with refused(Reason.INVALID_PAGE_TOKEN):
            stub.ListNetworkFunctions(request)
    with refused(Reason.INVALID_FIELD):
        stub.ListNetworkFunctions(pb.ListNetworkFunctionsRequest(page_size=-1))


@pytest.mark.parametrize(
    "name",
    ["", "networkFunctions/", "networkFunctions", "other/1", "networkFunctions/a/b", "networkFunctions/" + "x" * 300],
)
def test_a_bad_resource_name_is_refused(running_lab: RunningLab, name: str) -> None:
    stub = running_lab.oam.provisioning
    with refused(Reason.INVALID_FIELD):
        stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=name))
    with refused(Reason.INVALID_FIELD):
        stub.StartEnrolment(pb.StartEnrolmentRequest(parent=name))
    for call, kind in (
        (stub.GetEnrolment, pb.GetEnrolmentRequest),
        (stub.CancelEnrolment, pb.CancelEnrolmentRequest),
    ):
        with refused(Reason.INVALID_FIELD):
            call(kind(name=name))
    with refused(Reason.INVALID_FIELD):
        list(stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=name)))


def test_an_enrolment_that_does_not_exist(running_lab: RunningLab) -> None:
    stub = running_lab.oam.provisioning
    with refused(Reason.NF_NOT_FOUND):
        stub.StartEnrolment(pb.StartEnrolmentRequest(parent=f"networkFunctions/{uuid.uuid4()}"))
    name = f"networkFunctions/{uuid.uuid4()}/enrolments/{uuid.uuid4()}"
    with refused(Reason.ENROLMENT_NOT_FOUND):
        stub.GetEnrolment(pb.GetEnrolmentRequest(name=name))
    with refused(Reason.ENROLMENT_NOT_FOUND):
        list(stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=name)))
