"""Instance ids, NF types, FQDN forms, home domains and scopes."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftrust.errors import Code, Reason
from nftrust.identity import (
    MAX_FQDNS,
    FqdnRules,
    Scope,
    day0_name,
    is_home_domain,
    parse_nf_instance_id,
    parse_nf_type,
    parse_uuid,
    urn,
)
from tests.unit.support import HOME, NF_ID, refusal, refused

RULES = FqdnRules(HOME)


@given(st.uuids(version=4))
def test_instance_id_is_lowered(value: uuid.UUID) -> None:
    assert parse_nf_instance_id(str(value).upper()) == str(value)


NOT_CANONICAL = [
    "",
    NF_ID[:-1],
    NF_ID + "0",
    NF_ID + "\n",
    "{" + NF_ID[:-2] + "}",
    NF_ID.replace("-", ""),
    "0f8fad5bd-9cb-469f-a165-70867728950e",
    "+f8fad5b-d9cb-469f-a165-70867728950e",
    "0_8fad5b-d9cb-469f-a165-70867728950e",
    "٠f8fad5b-d9cb-469f-a165-70867728950e",
    " f8fad5b-d9cb-469f-a165-70867728950e",
    "gf8fad5b-d9cb-469f-a165-70867728950e",
]


@pytest.mark.parametrize(
    "text",
    [
        *NOT_CANONICAL,
        "0f8fad5b-d9cb-169f-a165-70867728950e",
        "0f8fad5b-d9cb-769f-a165-70867728950e",
        "0f8fad5b-d9cb-469f-c165-70867728950e",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_instance_id_refused(text: str) -> None:
    with refused(Reason.INVALID_NF_INSTANCE_ID):
        parse_nf_instance_id(text)


@given(st.uuids())
def test_request_id_of_any_version(value: uuid.UUID) -> None:
    assert parse_uuid(str(value).upper(), "request_id") == str(value)


@pytest.mark.parametrize("text", NOT_CANONICAL)
def test_request_id_refused_with_its_field(text: str) -> None:
    with refused(Reason.INVALID_FIELD) as caught:
        parse_uuid(text, "request_id")
    assert caught.value.metadata == {"field": "request_id"}


@given(st.text(max_size=40))
def test_ids_raise_nothing_else(text: str) -> None:
    for parse in (parse_nf_instance_id, lambda value: parse_uuid(value, "id"), parse_nf_type):
        value, reason = refusal(lambda parse=parse: parse(text))
        assert value == text.lower() or value == text or reason.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["AMF", "5G_EIR", "N", "CUSTOM_TYPE_9", "A" * 32])
def test_nf_types_are_open(text: str) -> None:
    assert parse_nf_type(text) == text


@pytest.mark.parametrize("text", ["", "amf", "A" * 33, "_AMF", "A-B", "AMF\n", "AMF ", "ÄMF", "AMF\0"])
def test_nf_type_refused(text: str) -> None:
    with refused(Reason.INVALID_NF_TYPE):
        parse_nf_type(text)


@pytest.mark.parametrize("text", [HOME, "5gc.nid000007ed9d5.mnc012.mcc345.3gppnetwork.org"])
def test_home_domain(text: str) -> None:
    assert is_home_domain(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org",
        HOME.upper(),
        HOME + ".",
        HOME + "\n",
        "x." + HOME,
        "5gc.mnc01.mcc001.3gppnetwork.org",
        "5gcXmnc001.mcc001.3gppnetwork.org",
        "5gc.nid7ed9d5.mnc012.mcc345.3gppnetwork.org",
    ],
)
def test_not_a_home_domain(text: str) -> None:
    assert not is_home_domain(text)


def test_names_made_from_an_id() -> None:
    assert urn(NF_ID) == f"urn:uuid:{NF_ID}"
    assert day0_name(NF_ID, HOME) == f"{NF_ID}.day0.{HOME}"


@pytest.mark.parametrize(
    ("nf_type", "name"),
    [
        ("NRF", "nrf"),
        ("NSSF", "nssf"),
        ("AMF", "amf1.amf"),
        ("AMF", "set001.region48.amfset"),
        ("AMF", "pt12.set001.region48.amfi"),
        ("SMF", "smf1.smf"),
        ("SMF", "set12.smfset"),
        ("SMSF", "smsf1.smsf"),
        ("AUSF", "one.ausf"),
        ("5G_EIR", "one.5g-eir"),
        ("CUSTOM_9", "a-b.custom-9"),
    ],
)
def test_fqdn_form_of_each_type(nf_type: str, name: str) -> None:
    fqdn = f"{name}.{HOME}"
    assert RULES.check(nf_type, [fqdn.upper(), fqdn]) == (fqdn,)


@pytest.mark.parametrize(
    ("nf_type", "name"),
    [
        ("NRF", "one.nrf"),
        ("NRF", "nssf"),
        ("NSSF", "x.nssf"),
        ("AMF", "amf"),
        ("AMF", "a.b.amf"),
        ("AMF", "one.smf"),
        ("AMF", "set1.amfset"),
        ("AMF", "region1.set1.amfset"),
        ("AMF", "set1.region1.amfi"),
        ("SMF", "set1.region1.smfset"),
        ("SMF", "set.smfset"),
        ("SMSF", "smsf"),
        ("AUSF", "one.udm"),
        ("AUSF", "ausf"),
        ("5G_EIR", "one.5geir"),
    ],
)
def test_fqdn_of_another_form(nf_type: str, name: str) -> None:
    with refused(Reason.FQDN_FORM_MISMATCH):
        RULES.check(nf_type, [f"{name}.{HOME}"])


@pytest.mark.parametrize(
    "name",
    [f"one.amf.x{HOME}", HOME, "one.amf.5gc.mnc002.mcc001.3gppnetwork.org", "localhost", f"one.amf.{HOME}.evil.org"],
)
def test_fqdn_outside_the_home_domain(name: str) -> None:
    with refused(Reason.FQDN_OUTSIDE_HOME_DOMAIN):
        RULES.check("AMF", [name])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        f"*.amf.{HOME}",
        f"one.amf.{HOME}.",
        f"-one.amf.{HOME}",
        f"one-.amf.{HOME}",
        f"one..amf.{HOME}",
        f"o_e.amf.{HOME}",
        f"öne.amf.{HOME}",
        f"one.amf.{HOME}\n",
        f"{'a' * 64}.amf.{HOME}",
        f"{'a.' * 120}amf.{HOME}",
        f"one\0.amf.{HOME}",
        f"\u212aone.amf.{HOME}\u0307",
    ],
)
def test_not_a_domain_name(name: str) -> None:
    with refused(Reason.INVALID_FIELD) as caught:
        RULES.check("AMF", [name])
    assert caught.value.metadata == {"field": "fqdns"}


def test_one_bad_name_refuses_all() -> None:
    with refused(Reason.FQDN_FORM_MISMATCH):
        RULES.check("AMF", [f"one.amf.{HOME}", f"one.smf.{HOME}"])


@pytest.mark.parametrize("count", [0, MAX_FQDNS + 1])
def test_number_of_fqdns_is_bounded(count: int) -> None:
    with refused(Reason.INVALID_FIELD):
        RULES.check("AMF", [f"n{number}.amf.{HOME}" for number in range(count)])


def test_the_most_fqdns() -> None:
    names = [f"n{number}.amf.{HOME}" for number in range(MAX_FQDNS)]
    assert RULES.check("AMF", names) == tuple(names)


def test_configured_form_replaces_the_built_in_one() -> None:
    rules = FqdnRules(HOME, {"AMF": (r"core\d+",)})
    assert rules.check("AMF", [f"core7.{HOME}"]) == (f"core7.{HOME}",)
    for other in ("one.amf", "core7.x", "xcore7"):
        with refused(Reason.FQDN_FORM_MISMATCH):
            rules.check("AMF", [f"{other}.{HOME}"])
    assert rules.check("SMF", [f"one.smf.{HOME}"])


SCOPE = Scope(("north",), ("AMF",), (f"amf.{HOME}",))


def test_scope_covers() -> None:
    SCOPE.require(tenant="north", nf_type="AMF", fqdns=[f"one.amf.{HOME}", f"amf.{HOME}"])
    Scope(("*",), ("*",), ("*",)).require(tenant="any", nf_type="ANY", fqdns=["any"])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("tenant", {"tenant": "south"}),
        ("tenant", {"tenant": ""}),
        ("tenant", {"tenant": "*"}),
        ("nf_type", {"nf_type": "SMF"}),
        ("fqdns", {"fqdns": [f"one.smf.{HOME}"]}),
        ("fqdns", {"fqdns": [f"oneamf.{HOME}"]}),
        ("fqdns", {"fqdns": [f"one.amf.{HOME}", f"one.smf.{HOME}"]}),
    ],
)
def test_outside_the_scope(field: str, change: dict[str, object]) -> None:
    wanted: dict[str, object] = {"tenant": "north", "nf_type": "AMF", "fqdns": [f"one.amf.{HOME}"]}
    with refused(Reason.OUT_OF_SCOPE) as caught:
        SCOPE.require(**{**wanted, **change})  # type: ignore[arg-type]
    assert caught.value.metadata == {"field": field}


def test_empty_scope_covers_nothing() -> None:
    assert not Scope().covers_tenant("north")
    with refused(Reason.OUT_OF_SCOPE):
        Scope(("*",), ("*",)).require(tenant="north", nf_type="AMF", fqdns=[f"one.amf.{HOME}"])
