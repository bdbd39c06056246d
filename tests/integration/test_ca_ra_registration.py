"""Steps 5 and 6 at the CA/RA: what it refuses to register, whoever asks."""

from __future__ import annotations

import uuid

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from nftrust import jose
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.lab.layout import HOME_DOMAIN
from nftrust.x509.keys import spki
from nftrust.x509.path import der
from tests.lab_kit import OTHER_ROOT, OTHER_TENANT, RunningLab, refused
from tests.soft_nf import SoftNf, new_key

pytestmark = pytest.mark.process


def registrations_of(running_lab: RunningLab, nf: SoftNf) -> list[pb.Registration]:
    request = pb.ListRegistrationsRequest(nf_instance_id=nf.nf_instance_id)
    return list(running_lab.oam.registrations.ListRegistrations(request).registrations)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nf_instance_id": "no-uuid"}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_instance_id": str(uuid.uuid1())}, Reason.INVALID_NF_INSTANCE_ID),
        ({"nf_type": "amf"}, Reason.INVALID_NF_TYPE),
        ({"fqdns": []}, Reason.INVALID_FIELD),
        ({"fqdns": ["x.amf.example.org"]}, Reason.FQDN_OUTSIDE_HOME_DOMAIN),
        ({"fqdns": [f"x.smf.{HOME_DOMAIN}"]}, Reason.FQDN_FORM_MISMATCH),
        ({"tenant": OTHER_TENANT}, Reason.OUT_OF_SCOPE),
        ({"certificate_profile": "unheard-of"}, Reason.PROFILE_UNKNOWN),
        ({"iak_delivery_mode": pb.IAK_DELIVERY_MODE_UNSPECIFIED}, Reason.INVALID_FIELD),
        ({"iak_delivery_mode": pb.IAK_DELIVERY_MODE_TLS_ONLY}, Reason.DELIVERY_MODE_NOT_ALLOWED),
        ({"day0_root": "unheard-of"}, Reason.DAY0_ROOT_UNKNOWN),
        ({"day0_chain": []}, Reason.DAY0_CHAIN_UNTRUSTED),
        ({"day0_chain": [b"\x30\x03garbage"]}, Reason.DAY0_CHAIN_UNTRUSTED),
        ({"nf_statement": "a.b.c"}, Reason.NF_STATEMENT_INVALID),
        ({"nf_statement": ""}, Reason.NF_STATEMENT_INVALID),
    ],
    ids=str,
)
def test_a_bad_field_is_refused_and_nothing_is_registered(
    running_lab: RunningLab, changes: dict[str, object], reason: Reason
) -> None:
    nf = running_lab.soft_nf()
    with refused(reason):
        running_lab.send_registration(nf.request(**changes))
    assert registrations_of(running_lab, nf) == []
    running_lab.register(nf)


def test_a_request_id_must_be_a_uuid_and_serves_one_body(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    request = nf.request()
    first = running_lab.send_registration(request)
    assert running_lab.send_registration(request) == first
    changed = pb.RegisterEndEntityRequest()
    changed.CopyFrom(request)
    changed.allow_re_enrolment = True
    with refused(Reason.REQUEST_ID_REUSED):
        running_lab.send_registration(changed)
    other = running_lab.soft_nf().request()
    other.request_id = "seven"
    with refused(Reason.INVALID_FIELD) as refusal:
        running_lab.send_registration(other)
    assert refusal.remote.metadata["field"] == "request_id"
    assert len(registrations_of(running_lab, nf)) == 1


def test_one_live_registration_per_nf(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    first = running_lab.register(nf)
    with refused(Reason.REGISTRATION_OPEN):
        running_lab.register(nf)
    running_lab.oam.registrations.RevokeRegistration(pb.RevokeRegistrationRequest(name=first.info.registration))
    second = running_lab.register(nf)
    assert second.value != first.value
    assert second.info.reference != first.info.reference


def test_an_nf_with_a_confirmed_certificate_needs_permission_for_another(running_lab: RunningLab) -> None:
    iak = running_lab.register()
    running_lab.confirm(iak.confirmation(running_lab.redeem(iak)))
    with refused(Reason.ALREADY_ENROLLED):
        running_lab.register(iak.nf)
    again = running_lab.register(iak.nf, allow_re_enrolment=True)
    assert again.info.re_enrolment
    running_lab.redeem(again)


# The statement (security rule 2)


def test_a_statement_serves_one_request(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    used = nf.request()
    registration = running_lab.send_registration(used).registration
    running_lab.oam.registrations.RevokeRegistration(pb.RevokeRegistrationRequest(name=registration.name))
    with refused(Reason.NF_STATEMENT_INVALID):  # names another enrolment
        running_lab.send_registration(nf.request(nf_statement=used.nf_statement))


def test_a_nonce_serves_one_request(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    nonce = jose.b64url(bytes(range(32)) + nf.nf_instance_id.encode()[:8])
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    answer = running_lab.send_registration(nf.request(request_id=first, nf_statement=nf.statement(first, nonce=nonce)))
    request = pb.RevokeRegistrationRequest(name=answer.registration.name)
    running_lab.oam.registrations.RevokeRegistration(request)
    with refused(Reason.NF_STATEMENT_INVALID):
        running_lab.send_registration(nf.request(request_id=second, nf_statement=nf.statement(second, nonce=nonce)))


def test_a_proxy_cannot_put_its_own_transport_key_into_the_statement(running_lab: RunningLab) -> None:
    nf, attacker = running_lab.soft_nf(), running_lab.soft_nf()
    request_id = str(uuid.uuid4())
    substituted = jose.b64url(spki(attacker.transport_key.public_key()))
    forged = nf.statement(request_id, signer=attacker.day0_key, transport_key=substituted)
    with refused(Reason.NF_STATEMENT_INVALID):
        running_lab.send_registration(nf.request(request_id=request_id, nf_statement=forged))
    header, _, signature = nf.statement(request_id).split(".")
    spliced = ".".join([header, forged.split(".")[1], signature])
    with refused(Reason.NF_STATEMENT_INVALID):
        running_lab.send_registration(nf.request(request_id=request_id, nf_statement=spliced))
    # With the attacker's own chain the statement verifies, but it is another NF's.
    with refused(Reason.DAY0_IDENTITY_MISMATCH):
        running_lab.send_registration(
            nf.request(request_id=request_id, nf_statement=forged, day0_chain=[der(attacker.day0_certificate)])
        )


@pytest.mark.parametrize(
    "changes",
    [{"enrolment": "another"}, {"nonce": "AAAA"}, {"nonce": "*"}, {"extra": 1}, {"transport_key": "%"}],
    ids=str,
)
def test_a_statement_must_say_exactly_what_it_has_to(running_lab: RunningLab, changes: dict[str, object]) -> None:
    nf, request_id = running_lab.soft_nf(), str(uuid.uuid4())
    with refused(Reason.NF_STATEMENT_INVALID):
        running_lab.send_registration(
            nf.request(request_id=request_id, nf_statement=nf.statement(request_id, **changes))
        )


def test_a_weak_transport_key_is_refused(running_lab: RunningLab) -> None:
    nf, request_id = running_lab.soft_nf(), str(uuid.uuid4())
    weak = jose.b64url(spki(rsa.generate_private_key(65537, 2048).public_key()))
    with refused(Reason.TRANSPORT_KEY_UNUSABLE):
        running_lab.send_registration(
            nf.request(request_id=request_id, nf_statement=nf.statement(request_id, transport_key=weak))
        )


# One key, one NF (security rule 3)


def test_a_transport_key_belongs_to_one_nf(running_lab: RunningLab) -> None:
    first, second = running_lab.soft_nf(), running_lab.soft_nf()
    running_lab.register(first)
    request_id = str(uuid.uuid4())
    same = jose.b64url(spki(first.transport_key.public_key()))
    with refused(Reason.KEY_TAKEN):
        running_lab.send_registration(
            second.request(request_id=request_id, nf_statement=second.statement(request_id, transport_key=same))
        )


def test_a_certificate_key_belongs_to_one_nf(running_lab: RunningLab) -> None:
    first, second = running_lab.register(), running_lab.register()
    running_lab.redeem(first)
    with refused(Reason.KEY_TAKEN):
        running_lab.enrol(second.proof(csr=second.csr(key=first.key)))
    running_lab.redeem(second)


# Scopes (security rule 16)


def test_another_tenants_proxy_is_out_of_scope(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    with refused(Reason.OUT_OF_SCOPE) as refusal:
        running_lab.send_registration(nf.request(), running_lab.caller("cm-proxy", "other"))
    assert refusal.remote.metadata["field"] == "tenant"


def test_a_narrow_principal_is_held_to_its_nf_types_and_names(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    for name, field in (("smf-only", "nf_type"), ("west", "fqdns")):
        with refused(Reason.OUT_OF_SCOPE) as refusal:
            running_lab.send_registration(nf.request(), running_lab.caller("oam", name))
        assert refusal.remote.metadata["field"] == field


def test_another_tenants_root_cannot_vouch(running_lab: RunningLab) -> None:
    def issue(key: object, nf_instance_id: str) -> object:
        names = {"uri_sans": [f"urn:uuid:{nf_instance_id}"], "dns_sans": [f"{nf_instance_id}.day0.{HOME_DOMAIN}"]}
        return running_lab.other_root.issue(key=key, **names).certificate  # type: ignore[arg-type]

    nf = SoftNf.make(issue)  # type: ignore[arg-type]
    with refused(Reason.OUT_OF_SCOPE):
        running_lab.send_registration(nf.request(day0_root=OTHER_ROOT))
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        running_lab.send_registration(nf.request())
    # Within its own tenant the root is good.
    other = running_lab.caller("cm-proxy", "other")
    answer = running_lab.send_registration(nf.request(day0_root=OTHER_ROOT, tenant=OTHER_TENANT), other)
    # And a registration of another tenant looks like none.
    with refused(Reason.REGISTRATION_NOT_FOUND):
        running_lab.oam.registrations.GetRegistration(pb.GetRegistrationRequest(name=answer.registration.name))
    with refused(Reason.REGISTRATION_NOT_FOUND):
        running_lab.oam.registrations.RevokeRegistration(pb.RevokeRegistrationRequest(name=answer.registration.name))
    with refused(Reason.END_ENTITY_NOT_FOUND):
        running_lab.oam.registrations.ReinstateEndEntity(pb.ReinstateEndEntityRequest(nf_instance_id=nf.nf_instance_id))
    assert registrations_of(running_lab, nf) == []


def test_an_fqdn_belongs_to_one_nf_unless_its_profile_shares_it(running_lab: RunningLab) -> None:
    first, second, third = (running_lab.soft_nf() for _ in range(3))
    running_lab.register(first)
    with refused(Reason.FQDN_TAKEN):
        running_lab.register(second, fqdns=[first.fqdn])
    with refused(Reason.FQDN_TAKEN):
        running_lab.register(second, fqdns=[first.fqdn], certificate_profile="nf-set")
    running_lab.register(second, certificate_profile="nf-set")
    running_lab.register(third, fqdns=[second.fqdn], certificate_profile="nf-set")


def test_a_day0_certificate_of_a_stranger_is_refused(running_lab: RunningLab) -> None:
    nf = running_lab.soft_nf()
    foreign = running_lab.soft_nf()
    with refused(Reason.DAY0_IDENTITY_MISMATCH):
        running_lab.send_registration(nf.request(day0_chain=[der(foreign.day0_certificate)]))
    key = new_key()
    service = running_lab.pki.service_certificate(key.public_key(), "oam", "lab", [])
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        running_lab.send_registration(nf.request(day0_chain=[der(service)]))


def test_a_registration_that_does_not_exist(running_lab: RunningLab) -> None:
    stub = running_lab.oam.registrations
    with refused(Reason.REGISTRATION_NOT_FOUND):
        stub.GetRegistration(pb.GetRegistrationRequest(name=f"registrations/{uuid.uuid4().hex}"))
    with refused(Reason.REGISTRATION_NOT_FOUND):
        stub.RevokeRegistration(pb.RevokeRegistrationRequest(name=f"registrations/{uuid.uuid4().hex}"))
    with refused(Reason.INVALID_FIELD):
        stub.GetRegistration(pb.GetRegistrationRequest(name="../registrations"))
    with refused(Reason.INVALID_PAGE_TOKEN):
        stub.ListRegistrations(pb.ListRegistrationsRequest(page_token="nonsense"))
