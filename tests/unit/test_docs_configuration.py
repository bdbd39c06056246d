"""docs/configuration.md has a table for every configuration struct: all of its keys, no others, the right defaults."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ca_ra.config import CaRaConfig
from cmproxy.config import CmProxyConfig
from nf_agent import AgentConfig
from nftrust.cli.session import OperatorConfig
from nftrust.config import Section
from nftrust.identity import FQDN_FORMS
from nftrust.pki import PkiSettings
from nftrust.rpc.peer import AccessConfig
from verifier.config import VerifierConfig

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROOTS = (CaRaConfig, CmProxyConfig, VerifierConfig, AgentConfig, AccessConfig, OperatorConfig, PkiSettings)


def _sections(annotation: object) -> Iterator[type[Section]]:
    """The configuration structs inside a type, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for inner in typing.get_type_hints(annotation).values():
            yield from _sections(inner)
    for argument in typing.get_args(annotation):
        yield from _sections(argument)


STRUCTS = sorted({struct for root in ROOTS for struct in _sections(root)}, key=lambda struct: struct.__name__)


def _rows(struct: type[Section]) -> dict[str, str]:
    """Default by key, from the first table under the heading that names the struct."""
    match = re.search(rf"^#+ [^\n]*\(`{struct.__name__}`\)$(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, f"no heading names {struct.__name__}"
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", match[1], re.MULTILINE))


def _written(default: object) -> str | None:
    """How the page writes a default; None where it says it in words."""
    if default is None:
        return "none"
    if isinstance(default, bool | str | int | float | tuple | dict):
        plain = int(default) if isinstance(default, float) and default.is_integer() else default
        try:
            return f"`{json.dumps(plain)}`"
        except TypeError:
            return None  # structs
    return None


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_documented_with_its_default(struct: type[Section]) -> None:
    documented = _rows(struct)
    fields = msgspec.structs.fields(struct)
    assert list(documented) == [field.name for field in fields]
    for field in fields:
        if field.required:
            assert documented[field.name] == "required", field.name
            continue
        factory = field.default_factory
        default = field.default if factory is msgspec.NODEFAULT else factory()
        expected = _written(default)
        assert documented[field.name] != "required", field.name
        assert expected is None or documented[field.name] == expected, field.name


def test_no_struct_is_forgotten() -> None:
    assert len(STRUCTS) >= 19


@pytest.mark.parametrize("nf_type", FQDN_FORMS)
def test_every_built_in_fqdn_form_is_documented(nf_type: str) -> None:
    row = re.search(rf"^\| {nf_type} \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    assert len(row[1].split(", ")) == len(FQDN_FORMS[nf_type])
