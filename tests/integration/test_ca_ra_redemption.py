"""Steps 9 and 10 at the CA/RA: one IAK, one certificate, and every refusal with its reason."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.errors import Reason
from nftrust.identity import urn
from nftrust.lab.layout import HOME_DOMAIN
from nftrust.messages import CONFIRM_TYP, CONFIRM_URL, ENROL_TYP, ENROL_URL
from tests.lab_kit import CALL_SECONDS, RunningLab, refused, remote_error
from tests.soft_nf import Iak, es256, hs256, jws, new_key

pytestmark = pytest.mark.process

#: How many wrong proofs the flood has; 10 000 in a long run.
FLOOD = int(os.environ.get("NFTRUST_FLOOD", "2000"))


def certificates_of(running_lab: RunningLab, iak: Iak) -> list[certificate_pb.Certificate]:
    request = certificate_pb.ListCertificatesRequest(nf_instance_id=iak.nf.nf_instance_id)
    return list(running_lab.oam.certificates.ListCertificates(request).certificates)


def registration_of(running_lab: RunningLab, iak: Iak) -> pb.Registration:
    request = pb.GetRegistrationRequest(name=iak.info.registration)
    found: pb.Registration = running_lab.oam.registrations.GetRegistration(request)
    return found


def enrol_all(running_lab: RunningLab, proofs: list[str]) -> list[str | Reason]:
    """All at once: the response, or the reason of the refusal."""
    stub = running_lab.nobody.enrolments
    requests = [enrolment_pb.EnrolCertificateRequest(proof=proof) for proof in proofs]
    calls = [stub.EnrolCertificate.future(request, timeout=60) for request in requests]
    outcomes: list[str | Reason] = []
    for call in calls:
        try:
            outcomes.append(call.result().signed_response)
        except grpc.RpcError as error:
            refusal = remote_error(error)
            assert refusal.remote_reason, refusal
            outcomes.append(refusal.reason)
    return outcomes


@pytest.fixture
def iak(running_lab: RunningLab) -> Iak:
    """A freshly registered NF's."""
    return running_lab.register()


def test_the_certificate_is_for_the_registered_names_and_the_csrs_key(running_lab: RunningLab, iak: Iak) -> None:
    certificate = x509.load_der_x509_certificate(running_lab.redeem(iak))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [iak.nf.fqdn]
    assert urn(iak.nf.nf_instance_id) in names.get_values_for_type(x509.UniformResourceIdentifier)
    assert certificate.public_key() == iak.key.public_key()
    assert registration_of(running_lab, iak).state == pb.Registration.ISSUED


# Wrong, unknown, expired, used, revoked, another NF's


def test_wrong_and_unknown_look_alike(running_lab: RunningLab, iak: Iak) -> None:
    seen = []
    for proof in (
        iak.proof(secret=bytes(32)),
        iak.proof(header={"kid": uuid.uuid4().hex}),
        iak.proof(header={"kid": ""}),
        iak.proof(secret=bytes(32), header={"kid": "x" * 200}),
    ):
        with refused(Reason.PROOF_INVALID) as refusal:
            running_lab.enrol(proof)
        seen.append((refusal.remote.code, refusal.remote.message, refusal.remote.metadata, refusal.remote.retry_after))
    assert len({str(each) for each in seen}) == 1
    running_lab.redeem(iak)


def test_an_expired_iak_is_refused(running_lab: RunningLab, tmp_path: Path) -> None:
    with running_lab.second_ca(tmp_path, iak_lifetime_minutes=1 / 60) as short_lived:
        iak = short_lived.register(running_lab.soft_nf())
        while time.time() <= iak.info.expire_time:
            time.sleep(0.05)
        with refused(Reason.PROOF_INVALID):  # that it has expired is told to its holder only
            short_lived.enrol(iak.proof(secret=bytes(32)))
        with refused(Reason.IAK_EXPIRED):
            short_lived.enrol(iak.proof())
        request = pb.GetRegistrationRequest(name=iak.info.registration)
        assert short_lived.oam.registrations.GetRegistration(request).state == pb.Registration.EXPIRED


def test_a_used_iak_is_refused_before_and_after_the_confirmation(running_lab: RunningLab, iak: Iak) -> None:
    certificate = running_lab.redeem(iak)
    with refused(Reason.IAK_USED):
        running_lab.enrol(iak.proof())
    running_lab.confirm(iak.confirmation(certificate))
    with refused(Reason.IAK_USED):
        running_lab.enrol(iak.proof())
    assert len(certificates_of(running_lab, iak)) == 1
    assert registration_of(running_lab, iak).state == pb.Registration.CONFIRMED


def test_a_revoked_iak_is_refused(running_lab: RunningLab, iak: Iak) -> None:
    request = pb.RevokeRegistrationRequest(name=iak.info.registration)
    assert running_lab.oam.registrations.RevokeRegistration(request).state == pb.Registration.REVOKED
    with refused(Reason.IAK_REVOKED):
        running_lab.enrol(iak.proof())
    assert certificates_of(running_lab, iak) == []


def test_a_certificate_of_a_revoked_registration_cannot_be_confirmed(running_lab: RunningLab, iak: Iak) -> None:
    certificate = running_lab.redeem(iak)
    request = pb.RevokeRegistrationRequest(name=iak.info.registration)
    running_lab.oam.registrations.RevokeRegistration(request)
    with refused(Reason.IAK_REVOKED):
        running_lab.confirm(iak.confirmation(certificate))


def test_a_confirmed_registration_cannot_be_revoked(running_lab: RunningLab, iak: Iak) -> None:
    running_lab.confirm(iak.confirmation(running_lab.redeem(iak)))
    with refused(Reason.REGISTRATION_ENDED):
        running_lab.oam.registrations.RevokeRegistration(pb.RevokeRegistrationRequest(name=iak.info.registration))


def test_the_iak_of_another_nf_is_refused(running_lab: RunningLab, iak: Iak) -> None:
    other = running_lab.register()
    with refused(Reason.IAK_FOR_OTHER_NF):  # its holder claims to be another NF
        running_lab.enrol(iak.proof(nf_instance_id=other.nf.nf_instance_id, csr=other.csr()))
    with refused(Reason.PROOF_INVALID):  # another NF's reference under one's own IAK
        running_lab.enrol(other.proof(secret=iak.value))
    with refused(Reason.PROOF_INVALID):  # another NF's registration
        running_lab.enrol(iak.proof(registration=other.info.registration))
    with refused(Reason.PROOF_INVALID):  # another CA
        running_lab.enrol(iak.proof(ca_id=jose.b64url(bytes(32))))
    for each in (iak, other):
        assert certificates_of(running_lab, each) == []
        running_lab.redeem(each)


# The form of the proof (security rule 10)


@pytest.mark.parametrize(
    "header",
    [
        {"url": CONFIRM_URL},
        {"url": ""},
        {"url": ENROL_URL + "/"},
        {"typ": CONFIRM_TYP},
        {"typ": "JWT"},
        {"alg": "none"},
        {"alg": "HS512"},
        {"alg": "ES256"},
        {"crit": ["exp"]},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"b64": False},
        {"kid": 7},
        {"kid": "x" * 2000},
    ],
    ids=str,
)
def test_a_crossed_header_is_refused(running_lab: RunningLab, iak: Iak, header: dict[str, object]) -> None:
    with refused(Reason.PROOF_MALFORMED):
        running_lab.enrol(iak.proof(header=header))
    assert certificates_of(running_lab, iak) == []


@pytest.mark.parametrize(
    "proof",
    ["", ".", "..", "a.b.c", "e30.e30.", "é.é.é", "A" * 70_000, "e30.e30.e30.e30.e30", "eyJhbGciOiJIUzI1NiJ9.e30.AA=="],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_jws_is_refused(running_lab: RunningLab, proof: str) -> None:
    for call in (running_lab.enrol, running_lab.confirm):
        with refused(Reason.PROOF_MALFORMED):
            call(proof)


@pytest.mark.parametrize("field", ["ca_id", "registration", "nf_instance_id", "request_id", "csr"])
def test_a_field_flipped_after_signing_is_refused(running_lab: RunningLab, iak: Iak, field: str) -> None:
    header, _, signature = iak.proof().split(".")
    other: dict[str, object] = {
        "ca_id": jose.b64url(bytes(32)),
        "registration": "registrations/0",
        "nf_instance_id": str(uuid.uuid4()),
        "request_id": str(uuid.uuid4()),
        "csr": jose.b64url(iak.csr(key=new_key())),
    }
    changed = jose.b64url(json.dumps(iak.payload() | {field: other[field]}).encode())
    with refused(Reason.PROOF_INVALID):
        running_lab.enrol(".".join([header, changed, signature]))
    assert certificates_of(running_lab, iak) == []


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_mac_of_another_length_is_refused(running_lab: RunningLab, iak: Iak, length: int) -> None:
    signing_input, _, signature = iak.proof().rpartition(".")
    mac = (jose.b64url_decode(signature) * 2)[:length]
    with refused(Reason.PROOF_INVALID):
        running_lab.enrol(f"{signing_input}.{jose.b64url(mac)}")


@pytest.mark.parametrize(
    "payload",
    [{"extra": 1}, {"request_id": "7"}, {"request_id": None}, {"nf_instance_id": "x"}, {"csr": 7}, {"ca_id": "short"}],
    ids=str,
)
def test_a_proved_payload_of_another_form_is_refused(
    running_lab: RunningLab, iak: Iak, payload: dict[str, object]
) -> None:
    with refused(Reason.PROOF_MALFORMED):
        running_lab.enrol(jws(iak.header(), iak.payload() | payload, hs256(iak.value)))
    running_lab.redeem(iak)


def test_a_client_credentials_assertion_by_the_same_key_is_no_proof(running_lab: RunningLab, iak: Iak) -> None:
    claims = {
        "iss": iak.nf.nf_instance_id,
        "sub": iak.nf.nf_instance_id,
        "aud": ["NRF"],
        "iat": int(time.time()),
        "exp": int(time.time()) + 60,
    }
    for header in ({"alg": "HS256", "typ": "JWT", "kid": iak.info.reference}, iak.header()):
        with refused(Reason.PROOF_MALFORMED):
            running_lab.enrol(jws(header, claims, hs256(iak.value)))
    # And one by the certificate's key confirms nothing.
    certificate = running_lab.redeem(iak)
    fingerprint = jose.b64url(jose.sha256(certificate))
    assert isinstance(iak.key, ec.EllipticCurvePrivateKey)
    for header in (
        {"alg": "ES256", "typ": "JWT", "kid": fingerprint},
        {"alg": "ES256", "typ": CONFIRM_TYP, "kid": fingerprint, "url": CONFIRM_URL},
    ):
        with refused(Reason.PROOF_MALFORMED):
            running_lab.confirm(jws(header, claims, es256(iak.key)))
    assert registration_of(running_lab, iak).state == pb.Registration.ISSUED


def test_the_methods_do_not_take_each_others_proofs(running_lab: RunningLab, iak: Iak) -> None:
    proof = iak.proof()
    with refused(Reason.PROOF_MALFORMED):
        running_lab.confirm(proof)
    certificate = iak.certificate(running_lab.enrol(proof), proof)
    confirmation = iak.confirmation(certificate)
    with refused(Reason.PROOF_MALFORMED):
        running_lab.enrol(confirmation)
    running_lab.confirm(confirmation)


# The CSR in a valid proof (security rule 11)


def rsa_1024(iak: Iak) -> bytes:
    return iak.csr(key=rsa.generate_private_key(65537, 1024))


def stronger_than_the_ca(iak: Iak) -> bytes:
    return iak.csr(key=ec.generate_private_key(ec.SECP384R1()))


def wrongly_signed(iak: Iak) -> bytes:
    """The signature's last byte flipped."""
    good = iak.csr()
    return good[:-1] + bytes([good[-1] ^ 1])


def with_subject(iak: Iak) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn(iak.nf.nf_instance_id))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(names, critical=True)
    return builder.sign(iak.key, hashes.SHA256()).public_bytes(Encoding.DER)


def with_names(*further: x509.GeneralName) -> Callable[[Iak], bytes]:
    return lambda iak: iak.csr(names=[x509.UniformResourceIdentifier(urn(iak.nf.nf_instance_id)), *further])


BAD_CSRS: list[tuple[str, Callable[[Iak], bytes], Reason]] = [
    ("empty", lambda iak: b"", Reason.CSR_MALFORMED),
    ("garbage", lambda iak: b"\x30\x82garbage" * 20, Reason.CSR_MALFORMED),
    ("truncated", lambda iak: iak.csr()[:-20], Reason.CSR_MALFORMED),
    ("trailing bytes", lambda iak: iak.csr() + b"\0", Reason.CSR_MALFORMED),
    ("a certificate", lambda iak: iak.nf.day0_certificate.public_bytes(Encoding.DER), Reason.CSR_MALFORMED),
    ("larger than allowed", lambda iak: iak.csr() + bytes(8 * 1024), Reason.CSR_TOO_LARGE),
    ("wrongly signed", wrongly_signed, Reason.CSR_SIGNATURE_INVALID),
    ("RSA-1024", rsa_1024, Reason.CSR_KEY_REFUSED),
    ("a key stronger than the CA's", stronger_than_the_ca, Reason.CSR_KEY_REFUSED),
    ("no names", lambda iak: iak.csr(names=[]), Reason.CSR_IDENTITY_MISSING),
    (
        "another NF's identity",
        lambda iak: iak.csr(names=[x509.UniformResourceIdentifier(urn(str(uuid.uuid4())))]),
        Reason.CSR_IDENTITY_MISSING,
    ),
    (
        "a further FQDN",
        with_names(x509.DNSName(f"further.amf.{HOME_DOMAIN}")),
        Reason.CSR_IDENTITY_MISMATCH,
    ),
    ("a wildcard", with_names(x509.DNSName(f"*.amf.{HOME_DOMAIN}")), Reason.CSR_IDENTITY_MISMATCH),
    (
        "a service's role",
        with_names(x509.UniformResourceIdentifier("urn:nftrust:oam:lab")),
        Reason.CSR_IDENTITY_MISMATCH,
    ),
    ("a foreign subject", with_subject, Reason.CSR_IDENTITY_MISMATCH),
    (
        "basic constraints",
        lambda iak: iak.csr(extensions=[x509.BasicConstraints(ca=True, path_length=None)]),
        Reason.CSR_EXTENSION_REFUSED,
    ),
    (
        "an extended key usage",
        lambda iak: iak.csr(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])]),
        Reason.CSR_EXTENSION_REFUSED,
    ),
]


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in BAD_CSRS], ids=[case[0] for case in BAD_CSRS])
def test_a_bad_csr_is_refused_and_the_iak_is_still_good(
    running_lab: RunningLab, iak: Iak, make: Callable[[Iak], bytes], reason: Reason
) -> None:
    with refused(reason):
        running_lab.enrol(iak.proof(csr=make(iak)))
    assert certificates_of(running_lab, iak) == []
    running_lab.redeem(iak)


def test_a_csr_of_a_megabyte_does_not_reach_the_parser(running_lab: RunningLab, iak: Iak) -> None:
    request = enrolment_pb.EnrolCertificateRequest(proof=iak.proof(csr=bytes(1024 * 1024)))
    with pytest.raises(grpc.RpcError) as refusal:
        running_lab.nobody.enrolments.EnrolCertificate(request, timeout=CALL_SECONDS)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # the transport's own limit
    with refused(Reason.PROOF_MALFORMED):
        running_lab.enrol(iak.proof(csr=bytes(100 * 1024)))
    running_lab.redeem(iak)


def test_a_captured_csr_of_another_nf_is_not_certified(running_lab: RunningLab, iak: Iak) -> None:
    victim = running_lab.register()
    with refused(Reason.CSR_IDENTITY_MISSING):
        running_lab.enrol(iak.proof(csr=victim.csr()))
    running_lab.redeem(victim)
    with refused(Reason.CSR_IDENTITY_MISSING):
        running_lab.enrol(iak.proof(csr=victim.csr()))


# Repetition and theft (security rules 6, 7, 13)


def test_the_same_request_gets_the_same_bytes_also_after_the_iak_is_gone(running_lab: RunningLab, iak: Iak) -> None:
    proof = iak.proof()
    first = running_lab.enrol(proof)
    assert running_lab.enrol(proof) == first
    running_lab.confirm(iak.confirmation(iak.certificate(first, proof)))
    assert running_lab.enrol(proof) == first


def test_a_request_id_with_another_body_is_refused(running_lab: RunningLab, iak: Iak) -> None:
    request_id = str(uuid.uuid4())
    running_lab.enrol(iak.proof(request_id=request_id))
    with refused(Reason.REQUEST_ID_REUSED):
        running_lab.enrol(iak.proof(request_id=request_id))
    assert len(certificates_of(running_lab, iak)) == 1


def test_a_stranger_cannot_squat_a_request_id(running_lab: RunningLab, iak: Iak) -> None:
    request_id = str(uuid.uuid4())
    with refused(Reason.PROOF_INVALID):
        running_lab.enrol(iak.proof(secret=bytes(32), request_id=request_id))
    stranger = running_lab.register()
    running_lab.enrol(stranger.proof(request_id=request_id))
    running_lab.enrol(iak.proof(request_id=request_id))


def test_a_hundred_parallel_redemptions_by_different_keys(running_lab: RunningLab, iak: Iak) -> None:
    keys = [new_key() for _ in range(100)]
    proofs = [iak.proof(csr=iak.csr(key=key)) for key in keys]
    outcomes = enrol_all(running_lab, proofs)
    issued = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert len(issued) == 1
    # The first refusal ends the registration, as below.
    assert {outcome for outcome in outcomes if isinstance(outcome, Reason)} <= {Reason.IAK_USED, Reason.IAK_REVOKED}
    assert Reason.IAK_USED in outcomes
    assert len(certificates_of(running_lab, iak)) == 1

    # Another key on a spent IAK is a theft signal: the NF is suspended until OAM lifts it.
    [(index, response)] = issued
    certificate = iak.certificate(response, proofs[index])
    confirmation = iak.confirmation(certificate, signer=es256(keys[index]))
    with refused(Reason.CERTIFICATE_REVOKED):
        running_lab.confirm(confirmation)
    with refused(Reason.END_ENTITY_SUSPENDED):
        running_lab.register(iak.nf)
    request = pb.ReinstateEndEntityRequest(nf_instance_id=iak.nf.nf_instance_id)
    with refused(Reason.METHOD_NOT_ALLOWED):  # not the CM proxy
        running_lab.caller("cm-proxy", "lab").registrations.ReinstateEndEntity(request)
    running_lab.oam.registrations.ReinstateEndEntity(request)

    # Whose key it is nobody knows: the certificate is revoked, and the NF has to be registered anew.
    [revoked] = certificates_of(running_lab, iak)
    assert revoked.revocation_reason == certificate_pb.KEY_COMPROMISE
    with refused(Reason.CERTIFICATE_REVOKED):
        running_lab.confirm(confirmation)
    running_lab.redeem(running_lab.register(iak.nf))


def test_a_hundred_parallel_repetitions_of_one_request(running_lab: RunningLab, iak: Iak) -> None:
    proof = iak.proof()
    outcomes = enrol_all(running_lab, [proof] * 100)
    assert len(set(outcomes)) == 1
    [response] = set(outcomes)
    assert isinstance(response, str)
    certificate = iak.certificate(response, proof)
    assert len(certificates_of(running_lab, iak)) == 1
    running_lab.confirm(iak.confirmation(certificate))  # nobody was suspended


def test_a_hundred_parallel_redemptions_by_one_key_suspend_nobody(running_lab: RunningLab, iak: Iak) -> None:
    proofs = [iak.proof() for _ in range(100)]
    outcomes = enrol_all(running_lab, proofs)
    issued = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert len(issued) == 1
    assert {outcome for outcome in outcomes if isinstance(outcome, Reason)} == {Reason.IAK_USED}
    [(index, response)] = issued
    running_lab.confirm(iak.confirmation(iak.certificate(response, proofs[index])))


def test_an_nf_still_enrols_after_a_flood_of_wrong_proofs(running_lab: RunningLab, iak: Iak) -> None:
    wrong = [iak.proof(secret=bytes(32)), iak.proof(header={"kid": uuid.uuid4().hex})]
    allowed = {Reason.PROOF_INVALID, Reason.RATE_LIMITED}
    seen: set[Any] = set()
    for _ in range(0, FLOOD, 100):
        seen |= set(enrol_all(running_lab, wrong * 50))
    assert seen <= allowed
    assert Reason.PROOF_INVALID in seen
    running_lab.redeem(iak)


# The confirmation (security rule 11)


def test_a_confirmation_by_another_key_is_refused(running_lab: RunningLab, iak: Iak) -> None:
    certificate = running_lab.redeem(iak)
    with refused(Reason.PROOF_INVALID):
        running_lab.confirm(iak.confirmation(certificate, signer=es256(new_key())))
    with refused(Reason.PROOF_MALFORMED):  # the IAK alone does not confirm
        running_lab.confirm(iak.confirmation(certificate, signer=hs256(iak.value), header={"alg": "HS256"}))
    with refused(Reason.PROOF_INVALID):
        running_lab.confirm(iak.confirmation(certificate, header={"kid": jose.b64url(bytes(32))}))
    with refused(Reason.PROOF_INVALID):
        running_lab.confirm(iak.confirmation(certificate, header={"kid": "no certificate"}))
    assert registration_of(running_lab, iak).state == pb.Registration.ISSUED
    running_lab.confirm(iak.confirmation(certificate))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"certificate_sha256": jose.b64url(bytes(32))}, Reason.CONFIRMATION_MISMATCH),
        ({"registration": "registrations/0"}, Reason.PROOF_INVALID),
        ({"ca_id": jose.b64url(bytes(32))}, Reason.PROOF_INVALID),
        ({"nf_instance_id": "00000000-0000-4000-8000-000000000000"}, Reason.IAK_FOR_OTHER_NF),
        ({"extra": 1}, Reason.PROOF_MALFORMED),
    ],
    ids=str,
)
def test_a_confirmation_of_something_else_is_refused(
    running_lab: RunningLab, iak: Iak, payload: dict[str, object], reason: Reason
) -> None:
    certificate = running_lab.redeem(iak)
    with refused(reason):
        running_lab.confirm(iak.confirmation(certificate, **payload))  # type: ignore[arg-type]
    assert registration_of(running_lab, iak).state == pb.Registration.ISSUED


def test_a_confirmation_may_be_repeated(running_lab: RunningLab, iak: Iak) -> None:
    certificate = running_lab.redeem(iak)
    confirmation = iak.confirmation(certificate)
    first = running_lab.confirm(confirmation)
    iak.confirmed(first, confirmation)
    assert running_lab.confirm(confirmation) == first
    confirmed = registration_of(running_lab, iak)
    again = iak.confirmation(certificate)  # other bytes, the same meaning
    iak.confirmed(running_lab.confirm(again), again)
    assert registration_of(running_lab, iak) == confirmed


def test_the_trust_bundle_is_signed_over_the_nonce(running_lab: RunningLab) -> None:
    stub = running_lab.nobody.enrolments
    for length in (0, 15, 65):
        with refused(Reason.INVALID_FIELD):
            stub.GetTrustBundle(enrolment_pb.GetTrustBundleRequest(nonce=bytes(length)), timeout=CALL_SECONDS)
    nonce = uuid.uuid4().bytes
    answer = stub.GetTrustBundle(enrolment_pb.GetTrustBundleRequest(nonce=nonce), timeout=CALL_SECONDS)
    header, payload, _ = answer.signed_response.split(".")
    assert jose.b64url(jose.sha256(nonce)).encode() in jose.b64url_decode(payload)
    assert ENROL_TYP.encode() not in jose.b64url_decode(header)
