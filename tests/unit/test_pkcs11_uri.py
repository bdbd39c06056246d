"""PKCS#11 URIs are those of RFC 7512, and hold no PIN."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from nftrust.config import TokenConfig
from nftrust.pkcs11.uri import key_name, key_uri

# RFC 7512, clause 2.3, for the attributes that we write.
_PCT = r"%[0-9A-F]{2}"
_PATH = rf"(?:[A-Za-z0-9_.~:\[\]@!$'()*+,=&-]|{_PCT})"
_QUERY = rf"(?:[A-Za-z0-9_.~:\[\]@!$'()*+,=/?|-]|{_PCT})"
GRAMMAR = re.compile(
    rf"pkcs11:token=(?P<token>{_PATH}*);object=(?P<object>{_PATH}*);type=private"
    rf"\?(?:pin-source=(?P<pin>{_QUERY}*)&)?module-path=(?P<module>{_QUERY}*)"
)


def config(label: str = "nf", pin_file: str | None = "/run/nf/pin", module: str = "/usr/lib/m.so") -> TokenConfig:
    descriptor = 3 if pin_file is None else None
    return TokenConfig(
        module=Path(module), label=label, pin_file=Path(pin_file) if pin_file else None, pin_fd=descriptor
    )


def test_all_of_it() -> None:
    assert key_uri(config(), "nf-1") == (
        "pkcs11:token=nf;object=nf-1;type=private?pin-source=file:/run/nf/pin&module-path=/usr/lib/m.so"
    )
    assert key_name(config(), "nf-1") == "pkcs11:token=nf;object=nf-1;type=private"


@pytest.mark.parametrize(
    "awkward", ["a b", "a;type=cert", "a?pin-value=1", "50%", "a&b=c", "ü/#", '"$x"', "a\\b", "|rm"]
)
def test_whatever_the_names(awkward: str) -> None:
    uri = key_uri(config(awkward, f"/run/{awkward}", f"/lib/{awkward}.so"), awkward)
    match = GRAMMAR.fullmatch(uri)
    assert match is not None, uri
    found = {name: unquote(value) for name, value in match.groupdict().items()}
    expected = {"token": awkward, "object": awkward, "pin": f"file:/run/{awkward}", "module": f"/lib/{awkward}.so"}
    assert found == expected


def test_a_pin_by_descriptor_has_no_source() -> None:
    assert key_uri(config(pin_file=None), "k") == "pkcs11:token=nf;object=k;type=private?module-path=/usr/lib/m.so"


def test_relative_paths_are_made_absolute() -> None:
    match = GRAMMAR.fullmatch(key_uri(config(pin_file="pin", module="m.so"), "k"))
    assert match is not None
    assert match["pin"] == f"file:{Path.cwd()}/pin"
    assert match["module"] == f"{Path.cwd()}/m.so"
