"""The NF agent's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from nf_agent.schedule import RenewalPolicy
from nftrust.config import Deployment, ListenerConfig, LogConfig, Section, TokenConfig, load
from nftrust.identity import parse_nf_instance_id
from nftrust.messages import DeliveryMode


class ForeignTrustConfig(Section, frozen=True, kw_only=True):
    """Allows the CM proxy to deliver for a CA/RA that is not nftrust's (docs/foreign-ca.md)."""

    #: PEM of the foreign CA/RA's root.
    trust_anchor: Path


#: One argument, or one value of the environment.
Argument = Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*$")]
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class HooksConfig(Section, frozen=True, kw_only=True):
    """How the NF is told of its certificate (docs/hooks.md)."""

    #: Where the NF finds its credential as files; None: the agent's state_dir.
    directory: Path | None = None
    #: Run after each new certificate; empty: nothing is.
    command: Annotated[tuple[Argument, ...], msgspec.Meta(max_length=64)] = ()
    #: For the command, beside what the agent sets.
    environment: Annotated[dict[VariableName, Argument], msgspec.Meta(max_length=64)] = {}
    #: For the command, and for a callback that is a coroutine function.
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0

    def __post_init__(self) -> None:
        if self.command and not self.command[0].startswith("/"):
            raise ValueError("command does not start with an absolute path")
        if any(name.startswith("NFTRUST_") for name in self.environment):
            raise ValueError("environment: names that start with NFTRUST_ are the agent's own")


_DEFAULT = RenewalPolicy()


class RenewalConfig(Section, frozen=True, kw_only=True):
    """When the certificate is renewed (docs/renewal.md)."""

    #: Shares of the validity: the renewal falls between these two.
    earliest: float = _DEFAULT.earliest
    latest: float = _DEFAULT.latest
    #: Ceiling of the first wait after a failure.
    retry_seconds: Annotated[float, msgspec.Meta(le=3600)] = _DEFAULT.retry_seconds
    #: No wait takes more than this share of what is left until the certificate's end.
    retry_share: float = _DEFAULT.retry_share

    def __post_init__(self) -> None:
        _ = self.policy

    @property
    def policy(self) -> RenewalPolicy:
        return RenewalPolicy(self.earliest, self.latest, self.retry_seconds, self.retry_share)


class AgentConfig(Section, frozen=True, kw_only=True):
    """One NF instance.

    ``listener.tls`` is the day-0 credential; its ``client_ca`` is the anchor
    by which the NF knows the CM proxy.
    """

    nf_instance_id: str
    #: State and certificates; belongs to this instance alone.
    state_dir: Path
    token: TokenConfig
    listener: ListenerConfig
    deployment: Deployment = "production"
    #: The NF's own minimum (security rule 5): what it is offered may fail, never weaken it.
    minimum_delivery_mode: DeliveryMode = "wrapped"
    key_type: Literal["ec-p256", "ec-p384"] = "ec-p256"
    #: PEM of the operator's root, or of several; wins over what step 7 and trust bundles deliver (security rule 12).
    trust_anchor: Path | None = None
    #: How often the trust bundle is fetched, on average.
    trust_refresh_seconds: Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 3600)] = 6 * 3600.0
    #: None: no foreign CA/RA is accepted.
    foreign_ca_ra: ForeignTrustConfig | None = None
    #: URIs of the CM proxies that may deliver; empty: any of the services CA.
    cm_proxies: tuple[str, ...] = ()
    hooks: HooksConfig = HooksConfig()
    renewal: RenewalConfig = RenewalConfig()
    request_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0
    retry_cap_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    #: Metrics for the node exporter's textfile collector, written anew at each change; none: not written.
    metrics_file: Path | None = None
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if parse_nf_instance_id(self.nf_instance_id) != self.nf_instance_id:
            raise ValueError("nf_instance_id is not in lower case")

    @classmethod
    def from_file(cls, path: Path) -> AgentConfig:
        """Raises NftrustError(CONFIG_INVALID)."""
        return load(cls, path)
