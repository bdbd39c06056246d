"""Compact JWS: each malformed shape, each algorithm, and what must not be crossed."""

from __future__ import annotations

import json

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from hypothesis import given
from hypothesis import strategies as st

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.messages import (
    CONFIRM_TYP,
    CONFIRM_URL,
    ENROL_TYP,
    ENROL_URL,
    STATEMENT_TYP,
    ConfirmProof,
    EnrolProof,
    NfStatement,
)
from tests.unit.support import NF_ID, ec_key, refusal, refused, rsa_key

ALL = frozenset({"HS256", "ES256", "ES384", "PS256"})
KEYS = {"ES256": ec_key("jose"), "ES384": ec_key("jose", "secp384r1"), "PS256": rsa_key()}
HASH = "A" * 43


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    number: int = 0


def raw(header: object, payload: bytes = b"{}", signature: bytes = b"\1\2\3") -> str:
    """A JWS of any header; bytes are taken as they are."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return ".".join(jose.b64url(part) for part in (encoded, payload, signature))


def split(text: str) -> jose.Jws:
    return jose.split(text, typ="t", url="/u", algorithms=ALL)


GOOD = {"alg": "ES256", "typ": "t", "url": "/u"}


def test_a_good_shape() -> None:
    jws = split(raw(GOOD, b"payload", b"signature"))
    assert (jws.header.alg, jws.payload, jws.signature) == ("ES256", b"payload", b"signature")
    assert jws.signing_input == raw(GOOD, b"payload").rpartition(".")[0].encode()


HEAD = jose.b64url(json.dumps(GOOD).encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        HEAD,
        f"{HEAD}.e30",
        f"{HEAD}.e30.AQ.AQ",
        f"{HEAD}.e30.AQ==",
        f"{HEAD}.e30.AQ=",
        f"{HEAD}.e30.AR",
        f"{HEAD}.e30.A",
        f"{HEAD}.e30.A+8_",
        f"{HEAD}.e30.A/8_",
        f"{HEAD}.e3 0.AQ",
        f"{HEAD}.e30.AQ\n",
        f" {HEAD}.e30.AQ",
        f"{HEAD}.e30.AQé",
        f"{HEAD}.e30.\ud800",
        f"{HEAD}.e30.AQ\0",
        f'{{"protected":"{HEAD}","payload":"e30","signature":"AQ"}}',
        raw(b""),
        raw(b"null"),
        raw(b"[]"),
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw(b"[" * 1000),
        raw(json.dumps(GOOD).encode() + b" x"),
        raw({"typ": "t", "url": "/u"}),
        raw({"alg": "ES256", "url": "/u"}),
        raw({**GOOD, "alg": "none"}),
        raw({**GOOD, "alg": "None"}),
        raw({**GOOD, "alg": "es256"}),
        raw({**GOOD, "alg": "RS256"}),
        raw({**GOOD, "alg": "HS512"}),
        raw({**GOOD, "alg": ["ES256"]}),
        raw({**GOOD, "alg": None}),
        raw({**GOOD, "typ": 1}),
        raw({**GOOD, "crit": ["b64"]}),
        raw({**GOOD, "b64": False}),
        raw({**GOOD, "jwk": {}}),
        raw({**GOOD, "x5c": []}),
        raw({**GOOD, "kid": "k" * 1024}),
    ],
)
def test_malformed_shape(text: str) -> None:
    with refused(Reason.PROOF_MALFORMED):
        split(text)


@pytest.mark.parametrize("change", [{"typ": "T"}, {"typ": ""}, {"url": "/U"}, {"url": ""}])
def test_other_header_values(change: dict[str, str]) -> None:
    with refused(Reason.PROOF_MALFORMED):
        split(raw({**GOOD, **change}))


@pytest.mark.parametrize("algorithm", sorted(ALL))
def test_only_the_allowed_algorithms(algorithm: str) -> None:
    text = raw({**GOOD, "alg": algorithm})
    assert jose.split(text, typ="t", url="/u", algorithms=frozenset({algorithm})).header.alg == algorithm
    with refused(Reason.PROOF_MALFORMED):
        jose.split(text, typ="t", url="/u", algorithms=ALL - {algorithm})


def test_size_limit() -> None:
    with refused(Reason.PROOF_MALFORMED) as caught:
        split(raw(GOOD, b"x" * jose.MAX_JWS_BYTES))
    assert str(jose.MAX_JWS_BYTES) in caught.value.message


@given(st.binary(max_size=200))
def test_base64url_round_trip(data: bytes) -> None:
    text = jose.b64url(data)
    assert set("=+/").isdisjoint(text)
    assert jose.b64url_decode(text) == data == jose.b64url_decode(text.encode())


@given(st.text(alphabet="ABCDwxyz0189-_+/=\n ", max_size=12))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        data = jose.b64url_decode(text)
    except ValueError:
        return
    assert jose.b64url(data) == text


def signed(algorithm: str, **header: str) -> str:
    values = {"typ": "t", "url": "/u", **header}
    return jose.sign(KEYS[algorithm], jose.Header(alg=algorithm, **values), Note("hello", 7))  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", KEYS)
def test_sign_and_verify(algorithm: str) -> None:
    public = KEYS[algorithm].public_key()
    assert jose.algorithm_for(public) == algorithm
    jws = split(signed(algorithm))
    jose.verify(public, jws)
    assert jose.parse_payload(jws, Note) == Note("hello", 7)


@pytest.mark.parametrize("algorithm", KEYS)
def test_signature_is_as_the_rfc_says(algorithm: str) -> None:
    jws = split(signed(algorithm))
    assert len(jws.signature) == {"ES256": 64, "ES384": 96, "PS256": 384}[algorithm]


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("other", ["ES256", "ES384", "PS256", "P-521", "nothing"])
def test_another_key(algorithm: str, other: str) -> None:
    keys = {"ES256": ec_key("x"), "ES384": ec_key("x", "secp384r1"), "PS256": rsa_key(2048)}
    key: object = None
    if other != "nothing":
        key = (keys.get(other) or ec_key("x", "secp521r1")).public_key()
    with refused(Reason.PROOF_INVALID):
        jose.verify(key, split(signed(algorithm)))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\0" * 64,
        b"\xff" * 64,
        b"\0" * 63,
        b"\0" * 65,
        b"\1" * 96,
        ec_key("jose").sign(b"x", ec.ECDSA(hashes.SHA256())),
    ],
)
def test_forged_signature(signature: bytes) -> None:
    jws = msgspec.structs.replace(split(signed("ES256")), signature=signature)
    with refused(Reason.PROOF_INVALID):
        jose.verify(KEYS["ES256"].public_key(), jws)


def test_der_signature_over_the_right_bytes_is_refused() -> None:
    jws = split(signed("ES256"))
    der = ec_key("jose").sign(jws.signing_input, ec.ECDSA(hashes.SHA256()))
    with refused(Reason.PROOF_INVALID):
        jose.verify(KEYS["ES256"].public_key(), msgspec.structs.replace(jws, signature=der))


def test_pkcs1v15_is_not_pss() -> None:
    jws = split(signed("PS256"))
    other = rsa_key().sign(jws.signing_input, padding.PKCS1v15(), hashes.SHA256())
    with refused(Reason.PROOF_INVALID):
        jose.verify(rsa_key().public_key(), msgspec.structs.replace(jws, signature=other))


def test_hmac_with_the_public_key_is_refused() -> None:
    text = raw({**GOOD, "alg": "HS256"}, b"{}", b"m" * 32)
    for key in KEYS.values():
        with refused(Reason.PROOF_INVALID):
            jose.verify(key.public_key(), split(text))


def test_keys_without_an_algorithm() -> None:
    with refused(Reason.CSR_KEY_REFUSED):
        jose.algorithm_for(ec_key("x", "secp521r1").public_key())


@pytest.mark.parametrize(
    ("typ", "url"),
    [(CONFIRM_TYP, ENROL_URL), (ENROL_TYP, CONFIRM_URL), (CONFIRM_TYP, CONFIRM_URL), (STATEMENT_TYP, ""), ("", "")],
)
def test_a_message_is_good_for_one_purpose(typ: str, url: str) -> None:
    text = signed("ES256", typ=ENROL_TYP, url=ENROL_URL)
    jose.split(text, typ=ENROL_TYP, url=ENROL_URL, algorithms=ALL)
    with refused(Reason.PROOF_MALFORMED):
        jose.split(text, typ=typ, url=url, algorithms=ALL)


PROOF = {"ca_id": HASH, "registration": "r", "nf_instance_id": NF_ID, "request_id": NF_ID, "csr": "AAAA"}


def payload(value: object) -> jose.Jws:
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return split(raw(GOOD, encoded))


def test_a_good_payload() -> None:
    assert jose.parse_payload(payload(PROOF), EnrolProof).csr == "AAAA"


@pytest.mark.parametrize(
    "change",
    [
        {"csr": "AA=="},
        {"csr": 1},
        {"csr": None},
        {"ca_id": HASH[:-1]},
        {"ca_id": HASH + "A"},
        {"ca_id": HASH + "\n"},
        {"nf_instance_id": NF_ID.upper()},
        {"nf_instance_id": NF_ID + "\n"},
        {"request_id": "x"},
        {"registration": "r" * 257},
        {"beyond": 1},
    ],
)
def test_payload_refused(change: dict[str, object]) -> None:
    with refused(Reason.PROOF_MALFORMED):
        jose.parse_payload(payload({**PROOF, **change}), EnrolProof)


@pytest.mark.parametrize("field", PROOF)
def test_payload_lacks_a_field(field: str) -> None:
    with refused(Reason.PROOF_MALFORMED):
        jose.parse_payload(payload({name: value for name, value in PROOF.items() if name != field}), EnrolProof)


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 40_000, b'{"a":' * 8_000])
def test_payload_that_is_no_object(text: bytes) -> None:
    for kind in (EnrolProof, ConfirmProof, NfStatement):
        with refused(Reason.PROOF_MALFORMED):
            jose.parse_payload(payload(text), kind)


@given(st.one_of(st.text(), st.lists(st.text(alphabet="ABCxyz019-_=", max_size=40)).map(".".join)))
def test_any_text_is_refused_by_type(text: str) -> None:
    with refused(Reason.PROOF_MALFORMED):
        split(text)


@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "url", "kid", "crit"]), st.sampled_from(["ES256", "t", "/u", 1, []]))
)
def test_any_header_is_refused_or_the_right_one(header: dict[str, object]) -> None:
    _, reason = refusal(lambda: split(raw(header)))
    assert reason in (None, Reason.PROOF_MALFORMED)
    if reason is None:
        assert {name: value for name, value in header.items() if name != "kid"} == GOOD


@given(st.binary(max_size=300))
def test_any_payload_is_refused_by_type(data: bytes) -> None:
    with refused(Reason.PROOF_MALFORMED):
        jose.parse_payload(payload(data), EnrolProof)


VALID = signed("ES256")


@given(st.integers(0, len(VALID) - 1), st.characters(max_codepoint=0x17F))
def test_one_changed_character_never_verifies(position: int, character: str) -> None:
    text = VALID[:position] + character + VALID[position + 1 :]
    if text == VALID:
        return
    with pytest.raises(NftrustError) as caught:
        jose.verify(KEYS["ES256"].public_key(), split(text))
    assert caught.value.reason in (Reason.PROOF_MALFORMED, Reason.PROOF_INVALID)
