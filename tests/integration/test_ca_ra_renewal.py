"""Renewal at the CA/RA: one successor per certificate, and every refusal with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca_ra.pace import LEAST_BURST
from nftrust import jose
from nftrust.api.audit.v1 import audit_service_pb2 as audit_pb
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as pb_enrolment
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.lab.layout import TENANT
from nftrust.messages import CONFIRM_TYP, CONFIRM_URL, ENROL_URL
from tests.lab_kit import CALL_SECONDS, RunningLab, SecondCa, refused
from tests.soft_nf import Iak, es256, hs256, new_key

pytestmark = pytest.mark.process


class CaRa(Protocol):
    """A CA/RA as a software NF uses it: the lab's, or a second one."""

    def enrol(self, proof: str) -> str: ...

    def renew(self, proof: str) -> str: ...

    def confirm(self, proof: str) -> str: ...


@dataclass
class Holder:
    """An NF with a confirmed certificate, DER, and its key."""

    ca: CaRa
    iak: Iak
    certificate: bytes
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def enrolled(cls, ca: CaRa, iak: Iak) -> Holder:
        proof = iak.proof()
        certificate = iak.certificate(ca.enrol(proof), proof)
        ca.confirm(iak.confirmation(certificate))
        assert isinstance(iak.key, ec.EllipticCurvePrivateKey)
        return cls(ca, iak, certificate, iak.key)

    def proof(self, new: ec.EllipticCurvePrivateKey, **changes: object) -> str:
        options = {"signer": es256(self.key)} | changes
        return self.iak.renewal(self.certificate, new, **options)  # type: ignore[arg-type]

    def renewed(self, new: ec.EllipticCurvePrivateKey) -> bytes:
        """The successor, unconfirmed."""
        proof = self.proof(new)
        return self.iak.renewed(self.ca.renew(proof), proof)

    def confirm(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> None:
        self.ca.confirm(self.iak.confirmation(certificate, signer=es256(key)))

    def succeeded(self) -> Holder:
        """Its successor, confirmed."""
        new = new_key()
        certificate = self.renewed(new)
        self.confirm(certificate, new)
        return Holder(self.ca, self.iak, certificate, new)

    @property
    def name(self) -> str:
        return f"certificates/{x509.load_der_x509_certificate(self.certificate).serial_number:x}"


@pytest.fixture
def holder(running_lab: RunningLab) -> Holder:
    return Holder.enrolled(running_lab, running_lab.register())


def certificates_of(running_lab: RunningLab, holder: Holder) -> list[certificate_pb.Certificate]:
    request = certificate_pb.ListCertificatesRequest(nf_instance_id=holder.iak.nf.nf_instance_id)
    return list(running_lab.oam.certificates.ListCertificates(request, timeout=CALL_SECONDS).certificates)


def test_a_renewed_certificate_has_the_same_names_and_its_own_key(running_lab: RunningLab, holder: Holder) -> None:
    new = new_key()
    der = holder.renewed(new)
    old, fresh = (x509.load_der_x509_certificate(each) for each in (holder.certificate, der))
    assert fresh.public_key() == new.public_key()
    for extension in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage, x509.CRLDistributionPoints):
        values = {str(each.extensions.get_extension_for_class(extension).value) for each in (old, fresh)}
        assert len(values) == 1
    holder.confirm(der, new)
    renewed, first = certificates_of(running_lab, holder)
    assert renewed.predecessor == first.name == holder.name
    assert renewed.HasField("confirm_time")
    assert first.predecessor == ""
    assert not first.HasField("revoke_time")  # left to run out


def test_a_line_of_certificates_goes_on(running_lab: RunningLab, holder: Holder) -> None:
    third = holder.succeeded().succeeded()
    names = [each.name for each in certificates_of(running_lab, holder)]
    assert len(names) == 3
    assert names[0] == third.name


# One successor


def test_the_same_bytes_get_the_same_answer_also_when_all_is_over(holder: Holder) -> None:
    new = new_key()
    proof = holder.proof(new)
    first = holder.ca.renew(proof)
    assert holder.ca.renew(proof) == first
    holder.confirm(holder.iak.renewed(first, proof), new)
    assert holder.ca.renew(proof) == first


def test_a_lost_response_is_no_alarm(running_lab: RunningLab, holder: Holder) -> None:
    """The NF asks again for the same key, in another request."""
    new = new_key()
    first = holder.renewed(new)
    assert holder.renewed(new) == first
    holder.confirm(first, new)
    assert holder.renewed(new) == first
    assert len(certificates_of(running_lab, holder)) == 2


def test_a_second_successor_freezes_the_nf(running_lab: RunningLab, holder: Holder) -> None:
    new = new_key()
    successor = holder.renewed(new)
    with refused(Reason.CERTIFICATE_SUPERSEDED):
        holder.renewed(new_key())
    assert {each.revocation_reason for each in certificates_of(running_lab, holder)} == {certificate_pb.KEY_COMPROMISE}
    with refused(Reason.CERTIFICATE_REVOKED):
        holder.confirm(successor, new)
    with refused(Reason.END_ENTITY_SUSPENDED):
        holder.renewed(new)
    # OAM looks at it; then the NF has to be enrolled again.
    request = pb.ReinstateEndEntityRequest(nf_instance_id=holder.iak.nf.nf_instance_id)
    running_lab.oam.registrations.ReinstateEndEntity(request, timeout=CALL_SECONDS)
    with refused(Reason.CERTIFICATE_REVOKED):
        holder.renewed(new)
    Holder.enrolled(running_lab, running_lab.register(holder.iak.nf, allow_re_enrolment=True)).succeeded()


def test_a_clone_that_renews_a_superseded_certificate_freezes_the_nf(running_lab: RunningLab, holder: Holder) -> None:
    successor = holder.succeeded()
    with refused(Reason.CERTIFICATE_SUPERSEDED):
        holder.renewed(new_key())
    with refused(Reason.END_ENTITY_SUSPENDED):
        successor.renewed(new_key())
    assert all(each.HasField("revoke_time") for each in certificates_of(running_lab, holder))


def test_after_another_enrolment_the_old_line_ends_without_an_alarm(running_lab: RunningLab, holder: Holder) -> None:
    again = Holder.enrolled(running_lab, running_lab.register(holder.iak.nf, allow_re_enrolment=True))
    with refused(Reason.CERTIFICATE_SUPERSEDED):
        holder.renewed(new_key())
    again.succeeded()


def test_a_successor_revoked_before_its_confirmation_makes_room(running_lab: RunningLab, holder: Holder) -> None:
    new = new_key()
    lapsed = holder.renewed(new)
    name = f"certificates/{x509.load_der_x509_certificate(lapsed).serial_number:x}"
    request = certificate_pb.RevokeCertificateRequest(name=name, reason=certificate_pb.CESSATION_OF_OPERATION)
    running_lab.oam.certificates.RevokeCertificate(request, timeout=CALL_SECONDS)
    with refused(Reason.CERTIFICATE_REVOKED):
        holder.confirm(lapsed, new)
    with refused(Reason.CERTIFICATE_KEY_REUSED):
        holder.renewed(new)
    holder.succeeded().succeeded()


# What may be renewed


def test_a_revoked_certificate_is_not_renewed(running_lab: RunningLab, holder: Holder) -> None:
    request = certificate_pb.RevokeCertificateRequest(name=holder.name, reason=certificate_pb.SUPERSEDED)
    running_lab.oam.certificates.RevokeCertificate(request, timeout=CALL_SECONDS)
    with refused(Reason.CERTIFICATE_REVOKED):
        holder.renewed(new_key())


def test_an_unconfirmed_certificate_is_not_renewed(running_lab: RunningLab) -> None:
    iak = running_lab.register()
    certificate = running_lab.redeem(iak)
    assert isinstance(iak.key, ec.EllipticCurvePrivateKey)
    unconfirmed = Holder(running_lab, iak, certificate, iak.key)
    with refused(Reason.CERTIFICATE_UNCONFIRMED):
        unconfirmed.renewed(new_key())


def test_an_expired_certificate_is_not_renewed(running_lab: RunningLab, second_ca: SecondCa) -> None:
    holder = Holder.enrolled(second_ca, second_ca.register(running_lab.soft_nf()))
    past = int((datetime.now(UTC) - timedelta(seconds=1)).timestamp() * 1_000_000)
    fingerprint = jose.sha256(holder.certificate)
    second_ca.execute("UPDATE certificate SET not_after = ? WHERE sha256 = ?", past, fingerprint)
    with refused(Reason.CERTIFICATE_EXPIRED):
        holder.renewed(new_key())


def test_a_retired_nf_renews_nothing(running_lab: RunningLab, holder: Holder) -> None:
    nf = holder.iak.nf
    request = pb.RetireEndEntityRequest(nf_instance_id=nf.nf_instance_id, tenant=TENANT, nf_type=nf.nf_type)
    running_lab.oam.registrations.RetireEndEntity(request, timeout=CALL_SECONDS)
    with refused(Reason.NF_RETIRED):
        holder.renewed(new_key())


# The proof


def test_a_foreign_certificate_proves_nothing(running_lab: RunningLab, holder: Holder) -> None:
    other = running_lab.redeem(running_lab.register())
    new = new_key()
    with refused(Reason.PROOF_INVALID):  # of another CA: the day-0 root's
        holder.ca.renew(holder.proof(new, header={"kid": jose.b64url(jose.sha256(b"none of this CA"))}))
    with refused(Reason.PROOF_INVALID):
        holder.ca.renew(holder.proof(new, header={"kid": "no hash"}))
    with refused(Reason.PROOF_INVALID):  # another NF's, which this key did not get
        holder.ca.renew(holder.proof(new, header={"kid": jose.b64url(jose.sha256(other))}))
    holder.succeeded()


def test_only_the_key_of_the_certificate_proves(running_lab: RunningLab, holder: Holder) -> None:
    new = new_key()
    with refused(Reason.PROOF_INVALID):
        holder.ca.renew(holder.proof(new, signer=es256(new)))
    with refused(Reason.PROOF_MALFORMED):
        holder.ca.renew(holder.proof(new, signer=hs256(holder.iak.value), header={"alg": "HS256"}))
    for header in ({"url": ENROL_URL}, {"url": CONFIRM_URL}, {"typ": CONFIRM_TYP}, {"typ": "JWT"}):
        with refused(Reason.PROOF_MALFORMED):
            holder.ca.renew(holder.proof(new, header=header))
    with refused(Reason.PROOF_MALFORMED):
        running_lab.confirm(holder.proof(new))
    holder.succeeded()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"registration": "registrations/0"}, Reason.PROOF_INVALID),
        ({"ca_id": jose.b64url(bytes(32))}, Reason.PROOF_INVALID),
        ({"nf_instance_id": "00000000-0000-4000-8000-000000000000"}, Reason.IAK_FOR_OTHER_NF),
        ({"extra": 1}, Reason.PROOF_MALFORMED),
        ({"request_id": "1"}, Reason.PROOF_MALFORMED),
    ],
    ids=str,
)
def test_a_renewal_of_something_else_is_refused(holder: Holder, payload: dict[str, object], reason: Reason) -> None:
    with refused(reason):
        holder.ca.renew(holder.proof(new_key(), **payload))
    holder.succeeded()


def test_a_proof_with_a_flipped_bit_is_refused(holder: Holder) -> None:
    header, payload, signature = holder.proof(new_key()).split(".")
    flipped = jose.b64url_decode(payload).replace(b'"request_id": "', b'"request_id": "0', 1)
    with refused(Reason.PROOF_INVALID):
        holder.ca.renew(".".join((header, jose.b64url(flipped), signature)))
    holder.succeeded()


def test_a_key_is_certified_once(running_lab: RunningLab, holder: Holder) -> None:
    stranger = Holder.enrolled(running_lab, running_lab.register())
    with refused(Reason.CERTIFICATE_KEY_REUSED):
        holder.renewed(holder.key)
    with refused(Reason.KEY_TAKEN):
        holder.renewed(stranger.key)
    successor = holder.succeeded()
    with refused(Reason.CERTIFICATE_KEY_REUSED):
        successor.renewed(holder.key)
    successor.succeeded()


def test_a_captured_csr_of_another_nf_is_not_certified(running_lab: RunningLab, holder: Holder) -> None:
    victim = running_lab.register()
    with refused(Reason.CSR_IDENTITY_MISSING):
        holder.ca.renew(holder.proof(new_key(), csr=victim.csr()))
    holder.succeeded()


def test_the_audit_log_tells_of_a_renewal_and_of_the_alarm(running_lab: RunningLab, holder: Holder) -> None:
    new = new_key()
    holder.confirm(holder.renewed(new), new)
    with refused(Reason.CERTIFICATE_SUPERSEDED):
        holder.renewed(new_key())
    nf_instance_id = holder.iak.nf.nf_instance_id
    seen: list[str] = []
    token = ""
    while True:
        request = audit_pb.ListAuditEventsRequest(page_size=1000, page_token=token)
        page = running_lab.oam.audit("ca_ra").ListAuditEvents(request, timeout=CALL_SECONDS)
        seen += [event.action for event in page.events if nf_instance_id in event.actor + event.subject]
        token = page.next_page_token
        if not token:
            break
    assert "certificate.renew" in seen
    assert "endentity.suspend" in seen


def test_more_renewals_than_there_may_be_in_an_hour_are_told_when_to_come_again(
    running_lab: RunningLab, tmp_path: Path
) -> None:
    with running_lab.second_ca(tmp_path, renewals_per_hour=1.0) as second:
        holder = Holder.enrolled(second, second.register(running_lab.soft_nf()))
        for _ in range(int(LEAST_BURST)):
            last, holder = holder, holder.succeeded()
        request = pb_enrolment.RenewCertificateRequest(proof=holder.proof(new_key()))
        with refused(Reason.RATE_LIMITED) as seen:
            second.oam.enrolments.RenewCertificate(request, timeout=CALL_SECONDS)
        assert seen.remote.retry_after is not None
        assert 0 < seen.remote.retry_after <= 3600
        # What was issued is given again, whatever the pace.
        assert last.renewed(holder.key) == holder.certificate
