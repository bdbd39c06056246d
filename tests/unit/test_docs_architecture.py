"""docs/architecture.md shows the authorisation tables and the audit actions that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ca_ra.app import ENROLMENT_TABLE, MANAGEMENT_TABLE
from cmproxy.app import TABLE as CMPROXY_TABLE
from nf_agent.service import TABLE as AGENT_TABLE
from nftrust.rpc.authz import AuthorisationTable
from verifier.app import TABLE as VERIFIER_TABLE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TABLES = {
    "CA/RA management": MANAGEMENT_TABLE,
    "CA/RA enrolment": ENROLMENT_TABLE,
    "CM proxy management": CMPROXY_TABLE,
    "verifier management": VERIFIER_TABLE,
    "NF agent": AGENT_TABLE,
}


def _documented() -> dict[str, dict[str, set[str]]]:
    """Roles by listener and ``Service/Method``."""
    found: dict[str, dict[str, set[str]]] = {}
    listener = ""
    for row in PAGE.partition("## Authorisation")[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(cells) != 3 or cells[0] in ("listener", "---"):
            continue
        listener = cells[0] or listener
        method = re.fullmatch(r"`(\w+/\w+)`", cells[1])
        if method:
            named = re.split(r"[;(]", cells[2])[0]
            found.setdefault(listener, {})[method[1]] = {role.strip() for role in named.split(",")}
    return found


@pytest.mark.parametrize("listener", TABLES)
def test_the_authorisation_table_is_the_one_in_the_code(listener: str) -> None:
    table: AuthorisationTable = TABLES[listener]
    expected = {
        method.rpartition(".")[2]: set(roles) for method, roles in table.items() if method.startswith("/nftrust.")
    }
    assert _documented()[listener] == expected


def test_every_audit_action_is_named() -> None:
    sources = [path for role in ("ca_ra", "cmproxy", "verifier", "nftrust/role") for path in (ROOT / role).glob("*.py")]
    actions = {action for path in sources for action in re.findall(r'action="([a-z.]+)"', path.read_text("utf-8"))}
    assert actions
    assert {action for action in actions if f"`{action}`" not in PAGE} == set()
