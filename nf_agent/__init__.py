"""nf_agent: gives a 5G network function its operator certificate. Embeddable; see ``examples/embed``."""

from nf_agent.agent import Credential, NfAgent
from nf_agent.config import AgentConfig

__all__ = ["AgentConfig", "Credential", "NfAgent"]
