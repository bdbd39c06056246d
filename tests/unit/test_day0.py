"""Security rule 1: who an NF is by its day-0 certificate; and rule 2: what it states by its key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.identity import day0_name, urn
from nftrust.messages import ENROLMENT_INFO_TYP, STATEMENT_TYP, NfStatement
from nftrust.x509.day0 import VerifiedStatement, check_day0_chain, check_statement
from tests.pki import CLIENT, SERVER, Authority, Leaf, make_ca
from tests.unit.support import DAY, ENROLMENT, HOME, NF_ID, NOW, OTHER_ID, ec_key, refusal, refused, rsa_key, spki

ROOT = make_ca("day-0 root", key=ec_key("day-0 root"))
KEY = ec_key("day-0")
NAME = day0_name(NF_ID, HOME)
DNS = [NAME]
URIS = [urn(NF_ID)]


def day0(ca: Authority = ROOT, **options: object) -> Leaf:
    """A good day-0 certificate but for ``options``."""
    values = {"uri_sans": URIS, "dns_sans": DNS, "eku": [SERVER], "key": KEY, **options}
    return ca.issue(**values)  # type: ignore[arg-type]


def chain_of(leaf: Leaf) -> list[bytes]:
    return [item.public_bytes(serialization.Encoding.DER) for item in (leaf.certificate, *leaf.intermediates)]


def check(leaf: Leaf | Sequence[bytes], root: Authority = ROOT, now: datetime = NOW) -> x509.Certificate:
    chain = chain_of(leaf) if isinstance(leaf, Leaf) else leaf
    return check_day0_chain(chain, root.certificate, NF_ID, HOME, now)


def test_a_good_certificate() -> None:
    leaf = day0()
    assert check(leaf) == leaf.certificate


def test_more_names_of_the_nf_do_no_harm() -> None:
    check(day0(dns_sans=["localhost", NAME], ip_sans=["127.0.0.1"], eku=[CLIENT, SERVER]))


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        (Reason.DAY0_CERTIFICATE_INVALID, {"dns_sans": [f"*.day0.{HOME}"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"dns_sans": [NAME, f"*.day0.{HOME}"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"dns_sans": [NAME, "*"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [urn(NF_ID), urn(OTHER_ID)]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [urn(NF_ID), "https://x.example.org"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [urn(NF_ID), urn(NF_ID)]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": []}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [], "dns_sans": [NAME, urn(NF_ID)]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [f"https://{NAME}"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": ["urn:nftrust:ca-ra:one"]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [urn(NF_ID).upper()]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"uri_sans": [], "dns_sans": [], "common_name": urn(NF_ID)}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"eku": [CLIENT]}),
        (Reason.DAY0_CERTIFICATE_INVALID, {"eku": []}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"uri_sans": [urn(OTHER_ID)]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"uri_sans": [urn(OTHER_ID)], "common_name": urn(NF_ID)}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"uri_sans": [urn(OTHER_ID)], "dns_sans": [NAME, urn(NF_ID)]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"uri_sans": [urn(NF_ID) + "0"]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"uri_sans": [urn(NF_ID.upper())]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"dns_sans": [day0_name(OTHER_ID, HOME)]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"dns_sans": [day0_name(NF_ID, "5gc.mnc002.mcc001.3gppnetwork.org")]}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"dns_sans": [], "common_name": NF_ID}),
        (Reason.DAY0_IDENTITY_MISMATCH, {"dns_sans": ["x" + NAME]}),
        (Reason.DAY0_CERTIFICATE_EXPIRED, {"lifetime": -DAY / 24}),
        (Reason.DAY0_CERTIFICATE_EXPIRED, {"not_before": NOW + DAY / 24}),
    ],
)
def test_refused_certificate(reason: Reason, options: dict[str, object]) -> None:
    leaf = day0(**options)
    with refused(reason):
        check(leaf)


def test_another_root() -> None:
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(day0(make_ca("another root")))


def test_another_root_of_the_same_name() -> None:
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(day0(make_ca("day-0 root")))


def test_another_root_that_is_sent_along() -> None:
    other = make_ca("another root")
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check([*chain_of(day0(other)), other.certificate.public_bytes(serialization.Encoding.DER)])


def test_self_signed() -> None:
    subject = make_ca(urn(NF_ID))
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check([subject.certificate.public_bytes(serialization.Encoding.DER)])


def test_intermediate() -> None:
    leaf = day0(ROOT.intermediate("vendor"))
    assert check(leaf) == leaf.certificate


def test_intermediate_that_is_not_sent() -> None:
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(chain_of(day0(ROOT.intermediate("vendor")))[:1])


def test_intermediate_that_has_expired() -> None:
    leaf = day0(ROOT.intermediate("vendor"), lifetime=10 * DAY)
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(leaf, now=NOW + 2 * DAY)


def test_leaf_that_plays_the_intermediate() -> None:
    leaf = day0(uri_sans=[urn(OTHER_ID)])
    forger = Authority(leaf.certificate, leaf.key, (leaf.certificate,))
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(day0(forger, key=ec_key("forged")))


def test_order_of_the_chain() -> None:
    leaf = day0(ROOT.intermediate("vendor"))
    with pytest.raises(NftrustError):
        check(list(reversed(chain_of(leaf))))


GOOD = chain_of(day0())


@pytest.mark.parametrize(
    "chain",
    [
        [],
        [b""],
        [b"garbage"],
        [GOOD[0][:-1]],
        [GOOD[0] + b"\0"],
        [b"\0" * 9000],
        [GOOD[0], b"garbage"],
        [GOOD[0]] * 5,
    ],
)
def test_chain_that_is_none(chain: list[bytes]) -> None:
    with refused(Reason.DAY0_CHAIN_UNTRUSTED):
        check(chain)


@given(st.integers(0, len(GOOD[0]) - 1), st.integers(1, 255))
def test_one_changed_octet_is_refused(position: int, flip: int) -> None:
    der = bytearray(GOOD[0])
    der[position] ^= flip
    leaf, reason = refusal(lambda: check([bytes(der)]))
    if leaf is not None:  # the count of unused bits of the signature is not signed
        assert leaf.tbs_certificate_bytes == x509.load_der_x509_certificate(GOOD[0]).tbs_certificate_bytes
    else:
        assert reason in (Reason.DAY0_CHAIN_UNTRUSTED, Reason.DAY0_CERTIFICATE_EXPIRED)


# The statement

LEAF = day0().certificate
TRANSPORT = spki(rsa_key().public_key())
NONCE = b"n" * 16


def statement(key: object = KEY, typ: str = STATEMENT_TYP, **changes: object) -> str:
    """A good statement but for ``changes``."""
    values = {
        "nf_instance_id": NF_ID,
        "transport_key": jose.b64url(TRANSPORT),
        "enrolment": ENROLMENT,
        "nonce": jose.b64url(NONCE),
        **changes,
    }
    algorithm = jose.algorithm_for(key.public_key())  # type: ignore[attr-defined]
    return jose.sign(key, jose.Header(alg=algorithm, typ=typ), NfStatement(**values))  # type: ignore[arg-type]


def read(text: str) -> VerifiedStatement:
    return check_statement(text, LEAF, NF_ID, ENROLMENT)


def test_a_good_statement() -> None:
    verified = read(statement())
    assert verified.transport_key == rsa_key().public_key()
    assert verified.transport_key_sha256 == jose.sha256(TRANSPORT)
    assert verified.nonce == NONCE


@pytest.mark.parametrize(
    "change",
    [
        {"key": ec_key("other")},
        {"key": ec_key("day-0", "secp384r1")},
        {"key": rsa_key()},
        {"typ": ENROLMENT_INFO_TYP},
        {"nf_instance_id": OTHER_ID},
        {"nf_instance_id": NF_ID.upper()},
        {"enrolment": OTHER_ID},
        {"enrolment": ""},
        {"enrolment": "ünrolment"},
        {"nonce": ""},
        {"nonce": jose.b64url(b"n" * 15)},
        {"nonce": jose.b64url(b"n" * 65)},
        {"nonce": "AB"},
        {"transport_key": "AB"},
    ],
)
def test_refused_statement(change: dict[str, object]) -> None:
    with refused(Reason.NF_STATEMENT_INVALID):
        read(statement(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"garbage",
        TRANSPORT + b"\0",
        TRANSPORT[:-1],
        b"\0" * 1025,
        spki(rsa_key(2048).public_key()),
        spki(rsa_key(3072, 3).public_key()),
        spki(ec_key("x").public_key()),
    ],
    ids=["empty", "garbage", "trailing", "truncated", "large", "rsa-2048", "exponent 3", "ec"],
)
def test_unusable_transport_key(key: bytes) -> None:
    with refused(Reason.TRANSPORT_KEY_UNUSABLE):
        read(statement(transport_key=jose.b64url(key)))


def test_unsigned_statement() -> None:
    head, _, _ = statement().rpartition(".")
    for text in (head, head + ".", "", "é", statement() + "."):
        with refused(Reason.NF_STATEMENT_INVALID):
            read(text)


@given(st.text(max_size=100))
def test_any_text_is_refused(text: str) -> None:
    with refused(Reason.NF_STATEMENT_INVALID):
        read(text)
