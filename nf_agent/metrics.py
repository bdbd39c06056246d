"""What an NF agent tells a monitoring system: a text file for the node exporter's textfile collector.

An NF image gets no further listener and no further dependency for it.
"""

from __future__ import annotations

from typing import get_args

from cryptography import x509

from nf_agent.state import AgentState, Phase

PHASE = "nftrust_agent_phase"
NOT_AFTER = "nftrust_agent_certificate_not_after_timestamp_seconds"
FAILURES = "nftrust_agent_attempt_failures_total"


def exposition(state: AgentState, failures: int) -> str:
    """The agent's metrics in Prometheus's text format; ``failures`` are those of this process so far."""
    lines = [f"# TYPE {PHASE} gauge"]
    lines += [f'{PHASE}{{phase="{phase}"}} {int(phase == state.phase)}' for phase in get_args(Phase)]
    lines += [f"# TYPE {FAILURES} counter", f"{FAILURES} {failures}"]
    if state.current is not None:
        certificate = x509.load_der_x509_certificate(bytes.fromhex(state.current.chain[0]))
        end = certificate.not_valid_after_utc.timestamp()
        lines += [f"# TYPE {NOT_AFTER} gauge", f"{NOT_AFTER} {end:.0f}"]
    return "\n".join(lines) + "\n"
