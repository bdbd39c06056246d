"""The NFTypes extension of RFC 9310."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftrust.x509 import nftypes


def test_bytes_of_one_type() -> None:
    extension = nftypes.encode(["AMF"])
    assert extension.oid.dotted_string == "1.3.6.1.5.5.7.1.34"
    assert extension.value == bytes.fromhex("3005 1603") + b"AMF"


def test_ascending_and_without_duplicates() -> None:
    value = nftypes.encode(["SMF", "AMF", "SMF"]).value
    assert value == bytes.fromhex("300a 1603") + b"AMF" + b"\x16\x03SMF"
    assert nftypes.decode(value) == ["AMF", "SMF"]


@given(st.sets(st.from_regex(r"[A-Z0-9][A-Z0-9_]{0,31}", fullmatch=True), min_size=1, max_size=3))
def test_round_trip(names: set[str]) -> None:
    assert nftypes.decode(nftypes.encode(names).value) == sorted(names)


@pytest.mark.parametrize("names", [[], [""], ["A" * 33], ["Ä"], ["AMF", ""], [f"{n:032}" for n in range(4)]])
def test_sizes_are_bounded(names: list[str]) -> None:
    with pytest.raises(ValueError):
        nftypes.encode(names)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "30",
        "3000",
        "3001",
        "30051603414d",
        "30051603414d4600",
        "31051603414d46",
        "30050c03414d46",
        "30051604414d46",
        "30051602414d46",
        "30021600",
        "300516 03ffffff",
        "300a1603534d461603414d46",
        "300a1603414d461603414d46",
        "3081051603414d46",
        "30801603414d460000",
    ],
)
def test_not_nf_types(value: str) -> None:
    with pytest.raises(ValueError):
        nftypes.decode(bytes.fromhex(value))


@given(st.binary(max_size=40))
def test_what_decodes_is_what_was_encoded(value: bytes) -> None:
    try:
        names = nftypes.decode(value)
    except ValueError:
        return
    assert nftypes.encode(names).value == value
