"""docs/metrics.md, the dashboard and the alert rules name the metrics that there are, with their labels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import Gauge, MetricWrapperBase

from cmproxy.model import State
from nf_agent.metrics import exposition
from nf_agent.state import AgentState
from nf_agent.validity import Condition
from nftrust.errors import Reason
from nftrust.role import metrics
from nftrust.role.metrics_files import KINDS, LIVE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = ROOT / "deploy" / "grafana" / "nftrust.json"
RULES = ROOT / "deploy" / "prometheus" / "nftrust-rules.yml"
SUFFIX = re.compile(r"_(bucket|sum|count)\Z")


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels by name."""
    rows = re.findall(r"^\| `(nftrust_\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels.partition(":")[0]))) for name, kind, labels in rows}


def defined() -> dict[str, tuple[str, set[str]]]:
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            suffix = "_total" if metric._type == "counter" else ""
            found[metric._name + suffix] = (metric._type, set(metric._labelnames))
    return found


def test_the_page_has_the_metrics_of_the_server_roles() -> None:
    page = {name: entry for name, entry in documented().items() if not name.startswith("nftrust_agent_")}
    assert page == defined()


def test_the_page_has_the_metrics_of_the_agent() -> None:
    text = exposition(AgentState(nf_instance_id="x", instantiate_time=0.0), 3, {"command": 2}, {"command"})
    names = set(re.findall(r"^(nftrust_\w+)", text, re.MULTILINE))
    page = {name for name in documented() if name.startswith("nftrust_agent_")}
    assert page - names == {"nftrust_agent_certificate_not_after_timestamp_seconds"}, "there is no certificate yet"
    assert names <= page
    assert 'nftrust_agent_phase{phase="armed"} 1\n' in text
    assert "nftrust_agent_attempt_failures_total 3\n" in text
    assert 'nftrust_agent_certificate{condition="none"} 1\n' in text
    assert 'nftrust_agent_hook_failures_total{hook="command"} 2\n' in text
    assert 'nftrust_agent_hook_pending{hook="command"} 1\n' in text


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
def test_nothing_else_is_asked_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    asked = {SUFFIX.sub("", name) for name in re.findall(r"\b(nftrust_\w+)", text)}
    assert asked
    assert asked <= set(documented())


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
def test_reasons_and_states_that_are_asked_for_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace('\\"', '"')
    assert set(re.findall(r'reason="(\w+)"', text)) <= set(Reason.__members__)
    assert set(re.findall(r'state="(\w+)"', text)) <= {state.value for state in State}
    assert set(re.findall(r'condition="([\w-]+)"', text)) <= {condition.value for condition in Condition}


def test_the_dashboard_shows_every_metric() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = json.dumps([panel["targets"] for panel in dashboard["panels"]])
    assert {name for name in documented() if name not in shown} == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_supervisor_makes_files_for_every_kind_of_metric() -> None:
    gauges = [metric for metric in vars(metrics).values() if isinstance(metric, Gauge)]
    assert {f"gauge_{gauge._multiprocess_mode}" for gauge in gauges} == set(LIVE)
    assert {kind for kind, _ in defined().values()} - {"gauge"} == set(KINDS) - set(LIVE)
