"""The verifier's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nftrust.config import Deployment, ListenerConfig, LogConfig, ProbeConfig, Section, StoreConfig


class VerifierConfig(Section, frozen=True, kw_only=True):
    """The verifier."""

    deployment: Deployment = "production"
    store: StoreConfig
    management: ListenerConfig
    #: Principals, scopes and deny lists; reloaded when it changes.
    access_file: Path
    fronts: Literal[1] = 1
    #: Plaintext /livez, /readyz and /metrics; none: not served.
    probe: ProbeConfig | None = None
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.management.tls.client_ca is None:
            raise ValueError("management.tls.client_ca is required")
