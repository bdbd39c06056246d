"""Steps 5 and 6: register an end entity and mint its IAK."""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from ca_ra.authority import Authorities, Authority
from ca_ra.custody import Custody
from ca_ra.model import NewRegistration, Registered, Registration, RegistrationState, RegistrationStore
from nftrust import jose
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError, Reason
from nftrust.identity import FqdnRules, Scope, parse_nf_instance_id, parse_nf_type, parse_uuid
from nftrust.messages import DeliveryMode, EnrolmentInfo
from nftrust.x509.day0 import VerifiedStatement, check_day0_chain, check_statement
from nftrust.x509.names import NfIdentity
from nftrust.x509.path import der
from nftrust.x509.profile import CertificateProfile

log = logging.getLogger("ca_ra.registration")

#: The one MAC of a gRPC registration (security rule 5).
MAC_ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRequest:
    """RegisterEndEntity as received; nothing of it is checked yet."""

    nf_instance_id: str
    nf_type: str
    fqdns: tuple[str, ...]
    tenant: str
    profile: str
    delivery_mode: DeliveryMode
    nf_statement: str
    day0_chain: tuple[bytes, ...]
    day0_root: str
    request_id: str
    allow_re_enrolment: bool
    #: The NF goes on with another token: what it got with the old one ends.
    replaces_instance: bool
    #: SHA-256 of the request in deterministic encoding.
    request_sha256: bytes

    @property
    def re_enrols(self) -> bool:
        """Whether an NF that holds a certificate may have a further one."""
        return self.allow_re_enrolment or self.replaces_instance


@dataclass(frozen=True, slots=True)
class Day0Root:
    """A root that vouches for day-0 certificates, within its scope (security rule 16)."""

    certificate: x509.Certificate
    scope: Scope


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """OAM policy of the CA/RA."""

    fqdns: FqdnRules
    profiles: Mapping[str, CertificateProfile]
    day0_roots: Mapping[str, Day0Root]
    delivery_modes: frozenset[DeliveryMode]
    iak_lifetime: timedelta
    #: ``host:port`` of the enrolment listener, and PEM anchors for its TLS.
    endpoints: tuple[str, ...]
    tls_trust_anchors: tuple[str, ...]


class Registrar:
    """Registers end entities on behalf of the CM proxy or OAM."""

    def __init__(
        self,
        policy: RegistrationPolicy,
        authorities: Authorities,
        custody: Custody,
        store: RegistrationStore,
        clock: GuardedClock,
    ) -> None:
        self._policy = policy
        self._authorities = authorities
        self._custody = custody
        self._store = store
        self._clock = clock

    async def register(self, request: RegistrationRequest, actor: str, scope: Scope) -> Registered:
        """Register, or repeat the stored answer. Raises NftrustError with the reason of the refusal."""
        request_id = parse_uuid(request.request_id, "request_id")
        identity = self._check_identity(request, scope)
        known = await self._store.recall_registration(actor, request_id, request.request_sha256)
        if known is not None and not self._must_mint_anew(known):
            return known
        profile = self._check_policy(request)
        statement = self._check_statement(request, identity, request_id)
        registered = await self._mint(request, identity, profile, statement, actor, request_id)
        log.info("end entity registered", extra={"registration": registered.registration.name, "actor": actor})
        return registered

    def _must_mint_anew(self, known: Registered) -> bool:
        """A tls-only IAK is never stored: while it is unused a retry voids it and mints another (security rule 8)."""
        registration = known.registration
        unused = registration.state(self._clock.now()) in (RegistrationState.OPEN, RegistrationState.EXPIRED)
        return registration.delivery_mode == "tls-only" and unused

    def _check_identity(self, request: RegistrationRequest, scope: Scope) -> NfIdentity:
        nf_type = parse_nf_type(request.nf_type)
        fqdns = self._policy.fqdns.check(nf_type, request.fqdns)
        identity = NfIdentity(parse_nf_instance_id(request.nf_instance_id), nf_type, fqdns)
        scope.require(tenant=request.tenant, nf_type=nf_type, fqdns=fqdns)
        return identity

    def _check_policy(self, request: RegistrationRequest) -> CertificateProfile:
        profile = self._policy.profiles.get(request.profile)
        if profile is None:
            raise NftrustError(Reason.PROFILE_UNKNOWN)
        if request.delivery_mode not in self._policy.delivery_modes:
            raise NftrustError(Reason.DELIVERY_MODE_NOT_ALLOWED)
        return profile

    def _check_statement(
        self, request: RegistrationRequest, identity: NfIdentity, request_id: str
    ) -> VerifiedStatement:
        """The CA/RA does not believe the proxy: day-0 chain, root scope and statement are its own to check."""
        root = self._policy.day0_roots.get(request.day0_root)
        if root is None:
            raise NftrustError(Reason.DAY0_ROOT_UNKNOWN)
        root.scope.require(tenant=request.tenant, nf_type=identity.nf_type, fqdns=identity.fqdns)
        leaf = check_day0_chain(
            request.day0_chain,
            root.certificate,
            identity.nf_instance_id,
            self._policy.fqdns.home_domain,
            self._clock.now(),
        )
        return check_statement(request.nf_statement, leaf, identity.nf_instance_id, request_id)

    async def _mint(
        self,
        request: RegistrationRequest,
        identity: NfIdentity,
        profile: CertificateProfile,
        statement: VerifiedStatement,
        actor: str,
        request_id: str,
    ) -> Registered:
        wrapped = request.delivery_mode == "wrapped"
        minted = await self._custody.mint(statement.transport_key if wrapped else None)
        now = self._clock.now().replace(microsecond=0)
        unsealed = Registration(
            id=uuid.uuid4().hex,
            reference=secrets.token_hex(16),
            identity=identity,
            tenant=request.tenant,
            profile=profile.name,
            delivery_mode=request.delivery_mode,
            mac_algorithm=MAC_ALGORITHM,
            transport_key_sha256=statement.transport_key_sha256,
            create_time=now,
            expire_time=now + self._policy.iak_lifetime,
            iak_blob=minted.vault_blob,
            row_mac=b"",
            replaces_instance=request.replaces_instance,
        )
        authority = self._authorities.active
        payload = self._enrolment_info(authority, unsealed, minted.delivery if wrapped else b"", request.re_enrols)
        registration, info = await self._custody.seal(unsealed, authority, payload)
        stored = await self._store.add_registration(
            NewRegistration(
                registration=registration,
                actor=actor,
                request_id=request_id,
                request_sha256=request.request_sha256,
                statement_nonce=statement.nonce,
                shared_fqdns=profile.shared_fqdns,
                allow_re_enrolment=request.re_enrols,
                enrolment_info=info,
            )
        )
        return stored or Registered(registration, info, None if wrapped else minted.delivery)

    def _enrolment_info(
        self, authority: Authority, registration: Registration, wrapped_iak: bytes, re_enrolment: bool
    ) -> EnrolmentInfo:
        return EnrolmentInfo(
            protocol="grpc",
            endpoints=list(self._policy.endpoints),
            tls_trust_anchors=list(self._policy.tls_trust_anchors),
            ca_certificates=[jose.b64url(der(certificate)) for certificate in authority.chain],
            response_certificate=jose.b64url(der(authority.response_certificate)),
            ca_id=authority.ca_id,
            ca_name=authority.issuer.certificate.subject.rfc4514_string(),
            registration=registration.name,
            reference=registration.reference,
            nf_instance_id=registration.identity.nf_instance_id,
            nf_type=registration.identity.nf_type,
            fqdns=list(registration.identity.fqdns),
            certificate_profile=registration.profile,
            transport_key_sha256=jose.b64url(registration.transport_key_sha256),
            delivery_mode=registration.delivery_mode,
            mac_algorithm="HS256",
            re_enrolment=re_enrolment,
            wrapped_iak=jose.b64url(wrapped_iak),
            expire_time=int(registration.expire_time.timestamp()),
        )
