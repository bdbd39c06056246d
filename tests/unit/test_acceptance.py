"""What the NF agent accepts of the CM proxy and of the CA/RA, check by check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from nf_agent.acceptance import AcceptedInfo, Expectations, accept_certificate, accept_enrolment_info, require_alive
from nftrust import jose
from nftrust.errors import Reason
from nftrust.identity import urn
from nftrust.messages import (
    CONFIRM_URL,
    ENROL_URL,
    ENROLMENT_INFO_TYP,
    RESPONSE_TYP,
    STATEMENT_TYP,
    ConfirmResponse,
    EnrolmentInfo,
    EnrolResponse,
)
from nftrust.x509.keys import spki_sha256
from nftrust.x509.names import NfIdentity
from nftrust.x509.path import der
from tests.pki import make_ca, service_leaf
from tests.unit.support import (
    AMF,
    DAY,
    HOME,
    NF_ID,
    NOW,
    OTHER_ID,
    NfCa,
    ec_key,
    nf_ca,
    rebuild,
    refusal,
    refused,
    rsa_key,
)

CA = nf_ca()
#: Another CA with the same names: what an attacker would set up.
EVIL = nf_ca("evil")
TRANSPORT = spki_sha256(rsa_key().public_key())
KEY = ec_key("nf")
REQUEST = jose.sha256(b"the request as sent")
EXPECTED = Expectations(NF_ID, TRANSPORT, "wrapped", (CA.root,))


def encoded(certificates: Sequence[x509.Certificate]) -> list[str]:
    return [jose.b64url(der(certificate)) for certificate in certificates]


def info(ca: NfCa = CA, **changes: object) -> EnrolmentInfo:
    """Good enrolment information but for ``changes``."""
    values = {
        "protocol": "grpc",
        "endpoints": ["localhost:1"],
        "tls_trust_anchors": ["pem"],
        "ca_certificates": encoded(ca.chain),
        "response_certificate": encoded([ca.response])[0],
        "ca_id": jose.b64url(spki_sha256(ca.issuing_key.public_key())),
        "ca_name": "ca",
        "registration": "registrations/1",
        "reference": "reference",
        "nf_instance_id": NF_ID,
        "nf_type": "AMF",
        "fqdns": list(AMF.fqdns),
        "certificate_profile": "nf",
        "transport_key_sha256": jose.b64url(TRANSPORT),
        "delivery_mode": "wrapped",
        "mac_algorithm": "HS256",
        "re_enrolment": False,
        "wrapped_iak": "AAAA",
        "expire_time": int(NOW.timestamp()) + 60,
        **changes,
    }
    return EnrolmentInfo(**values)  # type: ignore[arg-type]


def signed(
    payload: msgspec.Struct,
    key: ec.EllipticCurvePrivateKey = CA.response_key,
    typ: str = ENROLMENT_INFO_TYP,
    url: str = "",
) -> str:
    return jose.sign(key, jose.Header(alg=jose.algorithm_for(key.public_key()), typ=typ, url=url), payload)


def accept(
    text: str, expected: Expectations = EXPECTED, *, has_clear_iak: bool = False, now: datetime = NOW
) -> AcceptedInfo:
    return accept_enrolment_info(text, expected, has_clear_iak, now)


# Enrolment information


def test_good_information() -> None:
    accepted = accept(signed(info()))
    assert accepted.info == info()
    assert accepted.ca_chain == (CA.issuing, CA.root)
    assert accepted.response_key == CA.response_key.public_key()


def test_a_signer_that_was_good_once_is_judged_by_the_time_again() -> None:
    text = signed(info())
    accept(text)
    for wrong in (NOW - 14600 * DAY, NOW + 14600 * DAY):
        with refused(Reason.ENROLMENT_INFO_INVALID):
            accept(text, now=wrong)
    accept(text)


def test_delivered_anchor_where_none_is_preconfigured() -> None:
    accept(signed(info()), replace(EXPECTED, trust_anchors=()))


def test_preconfigured_anchor_wins() -> None:
    text = signed(info(EVIL), EVIL.response_key)
    accept(text, replace(EXPECTED, trust_anchors=()))
    with refused(Reason.ENROLMENT_INFO_INVALID) as caught:
        accept(text)
    assert "preconfigured" in caught.value.message


def test_preconfigured_anchor_behind_another_chain() -> None:
    """The right root at the end does not make the wrong issuing CA good."""
    mixed = info(EVIL, ca_certificates=encoded([EVIL.issuing, CA.root]))
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(signed(mixed, EVIL.response_key))


SERVICES = make_ca("services")


def stolen_tls_key() -> str:
    """Signed by the CA/RA's TLS key, with its services certificate in the place of the response certificate."""
    leaf = service_leaf(SERVICES, "ca-ra")
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    return signed(info(response_certificate=encoded([leaf.certificate])[0]), leaf.key)


def stolen_tls_key_with_its_chain() -> str:
    leaf = service_leaf(SERVICES, "ca-ra")
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    chain = encoded([SERVICES.certificate])
    return signed(info(response_certificate=encoded([leaf.certificate])[0], ca_certificates=chain), leaf.key)


def by_an_nf() -> str:
    """An NF of the same CA plays CA/RA: its certificate lacks the usage of a response key."""
    return signed(info(response_certificate=encoded([CA.issue()])[0]), KEY)


def expired_response_certificate() -> str:
    old = rebuild(CA.response, CA.issuing_key, not_after=NOW - timedelta(seconds=1))
    return signed(info(response_certificate=encoded([old])[0]))


@pytest.mark.parametrize(
    "make",
    [
        stolen_tls_key,
        stolen_tls_key_with_its_chain,
        by_an_nf,
        expired_response_certificate,
        lambda: signed(info(), EVIL.response_key),
        lambda: signed(info(), CA.issuing_key),
        lambda: signed(info(EVIL), EVIL.response_key),
        lambda: signed(info(response_certificate=encoded([EVIL.response])[0]), EVIL.response_key),
        lambda: signed(info(), typ=STATEMENT_TYP),
        lambda: signed(info(), typ=RESPONSE_TYP),
        lambda: signed(info(), url=ENROL_URL),
        lambda: signed(info(), ec_key("x", "secp384r1")),
        lambda: signed(info(ca_certificates=encoded([CA.issuing]))),
        lambda: signed(info(ca_certificates=encoded([CA.root]))),
        lambda: signed(info(ca_certificates=encoded([CA.root, CA.issuing]))),
        lambda: signed(info(ca_certificates=[])),
        lambda: signed(info(ca_certificates=["AAAA"])),
        lambda: signed(info(ca_certificates=encoded([CA.root] * 5))),
        lambda: signed(info(response_certificate="AAAA")),
        lambda: signed(info(response_certificate="")),
        lambda: signed(info(response_certificate="A" * 12_000)),
        lambda: signed(info()).rpartition(".")[0] + ".",
        lambda: "",
        lambda: "é",
    ],
)
def test_information_that_does_not_verify(make: object) -> None:
    text = make()  # type: ignore[operator]
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(text)


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("another CA", {"ca_id": jose.b64url(spki_sha256(CA.root_key.public_key()))}),
        ("another CA", {"ca_id": "A" * 43}),
        ("another NF", {"nf_instance_id": OTHER_ID}),
        ("another transport key", {"transport_key_sha256": jose.b64url(jose.sha256(b"other"))}),
        ("below the NF's minimum", {"delivery_mode": "tls-only", "wrapped_iak": ""}),
        ("below the NF's minimum", {"delivery_mode": "tls-only"}),
        ("not delivered as the mode says", {"wrapped_iak": ""}),
    ],
)
def test_information_for_something_else(why: str, change: dict[str, object]) -> None:
    with refused(Reason.ENROLMENT_INFO_INVALID) as caught:
        accept(signed(info(**change)))  # type: ignore[arg-type]
    assert why in caught.value.message


def test_tls_only_where_the_nf_allows_it() -> None:
    expected = replace(EXPECTED, minimum_delivery_mode="tls-only")
    clear = info(delivery_mode="tls-only", wrapped_iak="")
    assert accept(signed(clear), expected, has_clear_iak=True).info.delivery_mode == "tls-only"
    assert accept(signed(info()), expected).info.delivery_mode == "wrapped"


@pytest.mark.parametrize(
    ("mode", "wrapped", "has_clear_iak"),
    [
        ("tls-only", "", False),
        ("tls-only", "AAAA", False),
        ("tls-only", "AAAA", True),
        ("wrapped", "AAAA", True),
        ("wrapped", "", True),
        ("wrapped", "", False),
    ],
)
def test_iak_that_is_not_delivered_as_the_mode_says(mode: str, wrapped: str, has_clear_iak: bool) -> None:
    expected = replace(EXPECTED, minimum_delivery_mode="tls-only")
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(signed(info(delivery_mode=mode, wrapped_iak=wrapped)), expected, has_clear_iak=has_clear_iak)


def test_a_clear_iak_below_the_minimum() -> None:
    with refused(Reason.ENROLMENT_INFO_INVALID) as caught:
        accept(signed(info(delivery_mode="tls-only", wrapped_iak="")), has_clear_iak=True)
    assert "minimum" in caught.value.message


def tampered(**changes: object) -> str:
    """Signed as it should be, then changed by the one who carries it."""
    head, _, signature = signed(info()).split(".")
    return f"{head}.{jose.b64url(msgspec.json.encode(info(**changes)))}.{signature}"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"delivery_mode": "tls-only", "wrapped_iak": ""},
        {"re_enrolment": True},
        {"endpoints": ["evil.example.org:1"]},
        {"tls_trust_anchors": ["evil"]},
        {"wrapped_iak": "BBBB"},
        {"nf_type": "SMF"},
        {"fqdns": [f"two.amf.{HOME}"]},
        {"expire_time": int(NOW.timestamp()) + 3600},
        {"certificate_profile": "weaker"},
        {"response_certificate": encoded([EVIL.response])[0]},
        {"ca_certificates": encoded(EVIL.chain)},
    ],
)
def test_stripped_or_changed_on_the_way(change: dict[str, object]) -> None:
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(tampered(**change), replace(EXPECTED, trust_anchors=(), minimum_delivery_mode="tls-only"))


@pytest.mark.parametrize(
    "change",
    [
        {"mac_algorithm": "none"},
        {"mac_algorithm": "HS1"},
        {"protocol": "cmp"},
        {"delivery_mode": "clear"},
        {"endpoints": []},
        {"fqdns": []},
        {"tls_trust_anchors": []},
        {"expire_time": "never"},
        {"nf_instance_id": NF_ID.upper()},
        {"beyond": 1},
    ],
)
def test_capabilities_that_are_not_known(change: dict[str, object]) -> None:
    payload = msgspec.json.encode({**msgspec.to_builtins(info()), **change})
    header = jose.Header(alg="ES256", typ=ENROLMENT_INFO_TYP)
    data = f"{jose.b64url(msgspec.json.encode(header))}.{jose.b64url(payload)}".encode()
    signature = jose.sign(CA.response_key, header, info()).rpartition(".")[2]
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(jose.join(data, jose.b64url_decode(signature)))


def test_expired_information() -> None:
    accepted = accept(signed(info()))
    end = datetime.fromtimestamp(accepted.info.expire_time, NOW.tzinfo)
    require_alive(accepted, end - timedelta(seconds=1))
    for now in (end, end + DAY):
        with refused(Reason.IAK_EXPIRED):
            require_alive(accepted, now)


@given(st.text(max_size=80))
def test_any_text_is_refused(text: str) -> None:
    with refused(Reason.ENROLMENT_INFO_INVALID):
        accept(text)


GOOD = signed(info())


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("Aaz09-_.= "))
def test_one_changed_character_is_refused(position: int, character: str) -> None:
    text = GOOD[:position] + character + GOOD[position + 1 :]
    if text != GOOD:
        with refused(Reason.ENROLMENT_INFO_INVALID):
            accept(text)


# Responses

ACCEPTED = accept(GOOD)


def response(issued: x509.Certificate | None = None, **changes: object) -> EnrolResponse:
    values = {
        "request_sha256": jose.b64url(REQUEST),
        "registration": "registrations/1",
        "certificate": encoded([issued or CA.issue()])[0],
        "ca_certificates": encoded(CA.chain),
        **changes,
    }
    return EnrolResponse(**values)  # type: ignore[arg-type]


def read(text: str) -> EnrolResponse:
    return ACCEPTED.read_response(text, ENROL_URL, EnrolResponse)


def take(answer: EnrolResponse, request: bytes = REQUEST) -> Sequence[bytes]:
    return accept_certificate(answer, ACCEPTED, request, KEY.public_key(), NOW)


def test_a_good_response() -> None:
    text = signed(response(), typ=RESPONSE_TYP, url=ENROL_URL)
    answer = read(text)
    assert take(answer) == [jose.b64url_decode(answer.certificate), der(CA.issuing), der(CA.root)]


def by_a_stolen_tls_key() -> str:
    leaf = service_leaf(SERVICES, "ca-ra")
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    return signed(response(), leaf.key, RESPONSE_TYP, ENROL_URL)


@pytest.mark.parametrize(
    "make",
    [
        by_a_stolen_tls_key,
        lambda: signed(response(), CA.issuing_key, RESPONSE_TYP, ENROL_URL),
        lambda: signed(response(), KEY, RESPONSE_TYP, ENROL_URL),
        lambda: signed(response(), EVIL.response_key, RESPONSE_TYP, ENROL_URL),
        lambda: signed(response(), typ=RESPONSE_TYP, url=CONFIRM_URL),
        lambda: signed(response(), typ=RESPONSE_TYP),
        lambda: signed(response(), typ=ENROLMENT_INFO_TYP, url=ENROL_URL),
        lambda: signed(info(), typ=RESPONSE_TYP, url=ENROL_URL),
        lambda: signed(
            ConfirmResponse(request_sha256="A" * 43, registration="r", certificate="certificates/1", confirm_time_us=1),
            typ=RESPONSE_TYP,
            url=ENROL_URL,
        ),
        lambda: "",
        lambda: "garbage",
    ],
)
def test_response_that_does_not_verify(make: object) -> None:
    text = make()  # type: ignore[operator]
    with refused(Reason.RESPONSE_INVALID):
        read(text)


def test_replayed_response_for_another_request() -> None:
    with refused(Reason.RESPONSE_INVALID) as caught:
        take(response(), jose.sha256(b"a later request"))
    assert "another request" in caught.value.message


def test_response_for_another_registration() -> None:
    with refused(Reason.RESPONSE_INVALID) as caught:
        take(response(registration="registrations/2"))
    assert "another request" in caught.value.message


def names(*items: x509.GeneralName) -> x509.Certificate:
    return rebuild(CA.issue(), CA.issuing_key, put=((x509.SubjectAlternativeName(items), True),))


URN, DNS = x509.UniformResourceIdentifier(urn(NF_ID)), x509.DNSName(AMF.fqdns[0])


@pytest.mark.parametrize(
    ("why", "make"),
    [
        ("another key", lambda: CA.issue(key=ec_key("other").public_key())),
        ("another key", lambda: CA.issue(key=rsa_key().public_key())),
        ("other names", lambda: CA.issue(NfIdentity(OTHER_ID, "AMF", AMF.fqdns))),
        ("other names", lambda: CA.issue(NfIdentity(NF_ID, "AMF", (f"two.amf.{HOME}",)))),
        ("other names", lambda: CA.issue(NfIdentity(NF_ID, "AMF", (*AMF.fqdns, f"two.amf.{HOME}")))),
        ("other names", lambda: names(URN)),
        ("other names", lambda: names(DNS)),
        ("other names", lambda: names(x509.DNSName(urn(NF_ID)), DNS)),
        ("another NF type", lambda: CA.issue(NfIdentity(NF_ID, "SMF", AMF.fqdns))),
        ("does not verify", lambda: EVIL.issue()),
        ("does not verify", lambda: rebuild(CA.issue(), EVIL.issuing_key)),
        ("does not verify", lambda: rebuild(CA.issue(), CA.issuing_key, not_after=NOW - timedelta(seconds=1))),
        ("does not verify", lambda: rebuild(CA.issue(), CA.issuing_key, not_before=NOW + DAY)),
        ("does not verify", lambda: rebuild(CA.issue(), CA.issuing_key, drop=(x509.SubjectAlternativeName.oid,))),
        (
            "does not verify",
            lambda: rebuild(CA.issue(), CA.issuing_key, drop=(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.34"),)),
        ),
    ],
)
def test_refused_certificate(why: str, make: object) -> None:
    certificate = make()  # type: ignore[operator]
    with refused(Reason.RESPONSE_INVALID) as caught:
        take(response(certificate))
    assert why in caught.value.message


@pytest.mark.parametrize("certificate", ["", "AAAA", "A" * 12_000, "A"])
def test_certificate_that_is_none(certificate: str) -> None:
    with refused(Reason.RESPONSE_INVALID):
        take(response(certificate=certificate))


def test_the_chain_leads_to_the_anchor_of_step_7() -> None:
    """A successor of the issuing CA may have issued it, under an anchor that is trusted."""
    assert take(response())[1:] == [der(CA.issuing), der(CA.root)]
    for chain in (EVIL.chain, [CA.issuing, EVIL.root], [EVIL.issuing, CA.root], [CA.issuing], [CA.root]):
        with refused(Reason.RESPONSE_INVALID):
            take(response(ca_certificates=encoded(chain)))
    for text in ([], ["AAAA"], encoded([CA.issuing] * 4 + [CA.root])):
        with refused(Reason.RESPONSE_INVALID):
            take(response(ca_certificates=text))


ISSUED = CA.issue()
ISSUED_DER = der(ISSUED)


@given(st.integers(0, len(ISSUED_DER) - 1), st.integers(1, 255))
def test_one_changed_octet_of_the_certificate_changes_nothing_that_counts(position: int, flip: int) -> None:
    changed = bytearray(ISSUED_DER)
    changed[position] ^= flip
    chain, reason = refusal(lambda: take(response(ISSUED, certificate=jose.b64url(bytes(changed)))))
    if reason is None:  # the count of unused bits of the signature is not signed
        assert chain is not None
        assert x509.load_der_x509_certificate(chain[0]).tbs_certificate_bytes == ISSUED.tbs_certificate_bytes
    else:
        assert reason is Reason.RESPONSE_INVALID
