"""The CA/RA's configuration (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from nftrust.config import (
    Day0RootConfig,
    Deployment,
    FqdnConfig,
    HttpConfig,
    ListenerConfig,
    LogConfig,
    ProbeConfig,
    Section,
    StoreConfig,
    TokenConfig,
)
from nftrust.identity import is_home_domain
from nftrust.messages import DeliveryMode

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class EnrolmentListenerConfig(ListenerConfig, frozen=True, kw_only=True):
    """The listener for NFs that have no certificate yet: anybody may connect, so nobody stays long."""

    max_connection_age_seconds: float = 120.0


class ProfileConfig(Section, frozen=True, kw_only=True):
    """A certificate profile."""

    name: Name
    validity_hours: Annotated[float, msgspec.Meta(gt=0, le=3 * 365 * 24)] = 90 * 24.0
    shared_fqdns: bool = False


class CaConfig(Section, frozen=True, kw_only=True):
    """The issuing CA. Its keys have fixed labels in the token."""

    #: Issuing CA first, root last; PEM. Written by ``ca-ra init`` or ``ca-ra import``.
    chain: Path
    response_certificate: Path
    country: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{2}$")]
    crl_lifetime_hours: Annotated[float, msgspec.Meta(gt=0, le=24 * 31)] = 24.0


class RegistrationConfig(Section, frozen=True, kw_only=True):
    """Policy for registrations."""

    #: A certificate that the NF has not confirmed by then is revoked (security rule 13).
    confirm_within_minutes: Annotated[float, msgspec.Meta(gt=0, le=7 * 24 * 60)] = 24 * 60.0
    #: Certificates that are near their end not counted; none: as fast as it goes.
    renewals_per_hour: Annotated[float, msgspec.Meta(gt=0)] | None = None
    iak_lifetime_minutes: Annotated[float, msgspec.Meta(gt=0, le=24 * 60)] = 60.0
    delivery_modes: tuple[DeliveryMode, ...] = ("wrapped",)
    #: ``host:port`` under which NFs reach the enrolment listener.
    endpoints: tuple[str, ...]
    #: PEM: anchors for the TLS of the endpoints.
    tls_trust_anchors: Path


class CaRaConfig(Section, frozen=True, kw_only=True):
    """The CA/RA."""

    deployment: Deployment = "production"
    home_domain: str
    token: TokenConfig
    store: StoreConfig
    management: ListenerConfig
    enrolment: EnrolmentListenerConfig
    http: HttpConfig
    #: Principals, scopes and deny lists; reloaded when it changes.
    access_file: Path
    ca: CaConfig
    registration: RegistrationConfig
    profiles: tuple[ProfileConfig, ...] = (ProfileConfig(name="nf"),)
    day0_roots: tuple[Day0RootConfig, ...]
    fqdn_forms: tuple[FqdnConfig, ...] = ()
    #: Fronts behind one port; at most two on SQLite.
    fronts: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    #: Plaintext /livez, /readyz and /metrics; none: not served.
    probe: ProbeConfig | None = None
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if not is_home_domain(self.home_domain):
            raise ValueError("home_domain is not one of TS 23.003 clause 28.2")
        if self.store.url.startswith("sqlite") and self.fronts > 2:
            raise ValueError("at most two fronts on SQLite")
        if self.management.tls.client_ca is None:
            raise ValueError("management.tls.client_ca is required")
        if self.enrolment.tls.client_ca is not None:
            raise ValueError("enrolment.tls.client_ca: NFs have no certificate yet")
