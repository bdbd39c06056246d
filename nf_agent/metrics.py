"""What an NF agent tells a monitoring system: a text file for the node exporter's textfile collector.

An NF image gets no further listener and no further dependency for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import get_args

from nf_agent.state import AgentState, Phase
from nf_agent.validity import Condition, condition_of, lifetime_of

PHASE = "nftrust_agent_phase"
CERTIFICATE = "nftrust_agent_certificate"
NOT_AFTER = "nftrust_agent_certificate_not_after_timestamp_seconds"
FAILURES = "nftrust_agent_attempt_failures_total"
HOOK_FAILURES = "nftrust_agent_hook_failures_total"
HOOK_PENDING = "nftrust_agent_hook_pending"


def exposition(state: AgentState, failures: int, hook_failures: Mapping[str, int], pending: Set[str]) -> str:
    """The agent's metrics in Prometheus's text format.

    ``failures`` of attempts, and of hooks by their names, are those of this
    process so far; ``pending`` are the hooks that have yet to tell the NF.
    """
    condition, lifetime = condition_of(state), lifetime_of(state)
    lines = [f"# TYPE {PHASE} gauge"]
    lines += [f'{PHASE}{{phase="{phase}"}} {int(phase == state.phase)}' for phase in get_args(Phase)]
    lines += [f"# TYPE {CERTIFICATE} gauge"]
    lines += [f'{CERTIFICATE}{{condition="{each.value}"}} {int(each is condition)}' for each in Condition]
    lines += [f"# TYPE {FAILURES} counter", f"{FAILURES} {failures}"]
    lines += [f"# TYPE {HOOK_FAILURES} counter"]
    lines += [f'{HOOK_FAILURES}{{hook="{name}"}} {count}' for name, count in hook_failures.items()]
    lines += [f"# TYPE {HOOK_PENDING} gauge"]
    lines += [f'{HOOK_PENDING}{{hook="{name}"}} {int(name in pending)}' for name in hook_failures]
    if lifetime is not None:
        lines += [f"# TYPE {NOT_AFTER} gauge", f"{NOT_AFTER} {lifetime.not_after.timestamp():.0f}"]
    return "\n".join(lines) + "\n"
