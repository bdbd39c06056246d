"""nf_agent: gives a 5G network function its operator certificate. Embeddable; see ``examples/embed``."""

import os

# gRPC looks at it once, when it is imported: else every connection of a stranger writes a line that is no JSON.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from nf_agent.agent import NfAgent
from nf_agent.config import AgentConfig
from nf_agent.credential import Credential

__all__ = ["AgentConfig", "Credential", "NfAgent"]
