"""The CM proxy's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from nftrust.config import (
    Day0RootConfig,
    Deployment,
    FqdnConfig,
    ListenerConfig,
    LogConfig,
    ProbeConfig,
    Section,
    StoreConfig,
    TokenConfig,
)
from nftrust.identity import is_home_domain
from nftrust.messages import CmpMac, DeliveryMode

Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 3600)]


class PeerConfig(Section, frozen=True, kw_only=True):
    """A service that the proxy calls."""

    target: str
    #: PEM: anchors for the service's TLS; the services CA.
    trust_anchors: Path
    timeout_seconds: Seconds = 10.0


class CaRaPeerConfig(PeerConfig, frozen=True, kw_only=True):
    """The CA/RA that the proxy registers at."""

    #: PEM of the operator's root, or of several: what the CA/RA answers has to be signed under it (security rule 12).
    trust_anchor: Path


class ForeignCaRaConfig(Section, frozen=True, kw_only=True):
    """A CA/RA that is not nftrust's (docs/foreign-ca.md)."""

    #: The NFs of these certificate profiles belong to it.
    certificate_profiles: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    #: URLs of its CMP service; told the NF.
    endpoints: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=8)]
    #: PEM: its issuing CA first, its root last; told the NF.
    ca_certificates: Path
    #: What protects the NF's CMP request.
    mac_algorithm: CmpMac = "PBMAC1"
    credential_lifetime_seconds: Seconds = 86400.0
    #: `ejbca`, or an entry point of `nftrust.registrars`; none: OAM hands in reference value and secret.
    registrar: str | None = None
    #: For the registrar.
    settings: dict[str, str] = {}


class RunnerConfig(Section, frozen=True, kw_only=True):
    """How enrolments are driven."""

    #: Names this instance; a restarted instance takes over its own leases at once.
    instance: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")] = "cmproxy-1"
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    lease_seconds: Seconds = 30.0
    retry_cap_seconds: Seconds = 30.0
    #: An enrolment that is not through by then has failed.
    enrolment_lifetime_seconds: Seconds = 3600.0
    #: How long an NF whose certificate has ended is left alone before it is enrolled, and then enrolled again.
    recovery_seconds: Seconds = 300.0
    #: For calls to NF agents.
    nf_timeout_seconds: Seconds = 5.0


class CmProxyConfig(Section, frozen=True, kw_only=True):
    """The CM proxy."""

    deployment: Deployment = "production"
    home_domain: str
    #: Holds the TLS client key.
    token: TokenConfig
    #: PEM chain of the TLS client key.
    client_certificate: Path
    store: StoreConfig
    management: ListenerConfig
    #: Principals, scopes and deny lists; reloaded when it changes.
    access_file: Path
    ca_ra: CaRaPeerConfig
    foreign_ca_ra: ForeignCaRaConfig | None = None
    verifier: PeerConfig | None = None
    day0_roots: tuple[Day0RootConfig, ...]
    delivery_modes: tuple[DeliveryMode, ...] = ("wrapped",)
    #: Certificate profiles whose NFs may share FQDNs.
    shared_fqdn_profiles: tuple[str, ...] = ()
    fqdn_forms: tuple[FqdnConfig, ...] = ()
    runner: RunnerConfig = RunnerConfig()
    fronts: Literal[1] = 1
    #: Plaintext /livez, /readyz and /metrics; none: not served.
    probe: ProbeConfig | None = None
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if not is_home_domain(self.home_domain):
            raise ValueError("home_domain is not one of TS 23.003 clause 28.2")
        if self.management.tls.client_ca is None:
            raise ValueError("management.tls.client_ca is required")
