"""Step 3: what OAM may provision, and the start and end of enrolments."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from cmproxy.model import Enrolment, HandedCredential, NetworkFunction, Started, State
from cmproxy.ports import ForeignCredential
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.identity import FqdnRules, Scope, parse_nf_instance_id, parse_nf_type, parse_uuid
from nftrust.messages import DeliveryMode

_ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})\Z")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
DEFAULT_PROFILE = "nf"
DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class ProvisioningPolicy:
    """OAM policy of the CM proxy."""

    fqdns: FqdnRules
    #: Scope of each configured day-0 root, by name.
    day0_roots: Mapping[str, Scope]
    delivery_modes: frozenset[DeliveryMode]
    shared_fqdn_profiles: frozenset[str]
    #: Certificate profiles whose NFs belong to a foreign CA/RA.
    foreign_profiles: frozenset[str] = frozenset()
    #: Whether OAM hands in what that CA/RA gives; else a registrar asks.
    by_hand: bool = False


class ProvisioningStore(Protocol):
    """Storage of network functions and enrolments. Each method is one transaction or one read."""

    async def create_network_function(
        self, nf: NetworkFunction, shared: bool, actor: str, request_id: str | None, request_sha256: bytes
    ) -> NetworkFunction: ...

    async def find_network_function(self, nf_instance_id: str) -> NetworkFunction | None: ...

    async def update_network_function(
        self, nf: NetworkFunction, shared: bool, version: int, actor: str
    ) -> NetworkFunction: ...

    async def delete_network_function(self, nf_instance_id: str, version: int, actor: str) -> None: ...

    async def retire_network_function(self, nf_instance_id: str, actor: str) -> NetworkFunction: ...

    async def start_enrolment(
        self,
        nf_instance_id: str,
        begin: Callable[[NetworkFunction | None], Enrolment],
        actor: str,
        request_id: str | None,
        request_sha256: bytes,
        owner: str,
    ) -> Started:
        """``begin`` makes the enrolment of the NF, or refuses; ``owner``, if any, has it leased from the start."""
        ...

    async def reinstantiate(
        self,
        enrolment: Enrolment,
        transport_key_sha256: bytes | None,
        actor: str,
        request_id: str | None,
        request_sha256: bytes,
    ) -> Enrolment: ...

    async def find_enrolment(self, enrolment_id: str) -> Enrolment | None: ...

    async def cancel_enrolment(self, enrolment_id: str, actor: str) -> Enrolment: ...


class Provisioner:
    """What OAM may do. Every method raises NftrustError with the reason of the refusal."""

    def __init__(
        self,
        policy: ProvisioningPolicy,
        store: ProvisioningStore,
        clock: Clock,
        seal: Callable[[str, str, bytes], Awaitable[HandedCredential]],
    ) -> None:
        self._policy = policy
        self._store = store
        self._clock = clock
        self._seal = seal

    async def create(
        self, nf: NetworkFunction, actor: str, scope: Scope, request_id: str, request_sha256: bytes
    ) -> NetworkFunction:
        checked = self._with_recovery(self._check(nf, scope))
        key = parse_uuid(request_id, "request_id") if request_id else None
        return await self._store.create_network_function(checked, self._shared(checked), actor, key, request_sha256)

    async def get(self, nf_instance_id: str, scope: Scope) -> NetworkFunction:
        """Another tenant's network function looks like none."""
        return _visible(await self._store.find_network_function(parse_nf_instance_id(nf_instance_id)), scope)

    async def update(self, wanted: NetworkFunction, etag: str, actor: str, scope: Scope) -> NetworkFunction:
        known = await self.get(wanted.nf_instance_id, scope)
        kept = replace(wanted, tenant=known.tenant, create_time=known.create_time, pinned_sha256=known.pinned_sha256)
        changed = self._with_recovery(self._check(kept, scope))
        if changed.transport_key_sha256 != known.transport_key_sha256:
            changed = replace(changed, pinned_sha256=None)  # OAM has spoken: an older pin is void
        return await self._store.update_network_function(changed, self._shared(changed), _version(etag), actor)

    async def delete(self, nf_instance_id: str, etag: str, actor: str, scope: Scope) -> None:
        nf = await self.get(nf_instance_id, scope)
        await self._store.delete_network_function(nf.nf_instance_id, _version(etag), actor)

    async def retire(self, nf_instance_id: str, actor: str, scope: Scope) -> NetworkFunction:
        """The intention; the retirer carries it out. Retired NFs stay as they are."""
        nf = await self.get(nf_instance_id, scope)
        scope.require(tenant=nf.tenant, nf_type=nf.nf_type, fqdns=nf.fqdns)
        return await self._store.retire_network_function(nf.nf_instance_id, actor)

    async def reinstantiate(
        self,
        nf_instance_id: str,
        transport_key_sha256: bytes | None,
        actor: str,
        scope: Scope,
        request_id: str,
        sha256: bytes,
    ) -> Enrolment:
        """The NF instance may come back with another token, once."""
        nf = await self.get(nf_instance_id, scope)
        scope.require(tenant=nf.tenant, nf_type=nf.nf_type, fqdns=nf.fqdns)
        if transport_key_sha256 is not None and len(transport_key_sha256) != 32:
            raise invalid_field("transport_key_sha256", "32 bytes, or none")
        if nf.profile in self._policy.foreign_profiles:
            raise invalid_field("name", "of an NF of our own CA/RA: a foreign one is not asked to revoke")
        key = parse_uuid(request_id, "request_id") if request_id else None
        now = self._clock.now()
        enrolment = Enrolment(
            id=str(uuid.uuid4()),
            nf_instance_id=nf.nf_instance_id,
            tenant=nf.tenant,
            state=State.ATTESTING,
            working=State.ATTESTING,
            allow_re_enrolment=True,
            replaces_instance=True,
            create_time=now,
            update_time=now,
            next_time=now,
        )
        return await self._store.reinstantiate(enrolment, transport_key_sha256, actor, key, sha256)

    async def start(
        self,
        nf_instance_id: str,
        allow_re_enrolment: bool,
        actor: str,
        scope: Scope,
        request_id: str,
        sha256: bytes,
        credential: ForeignCredential | None = None,
        owner: str = "",
    ) -> Started:
        """``owner``, where it is given, holds the lease of the new enrolment."""
        nf_id = parse_nf_instance_id(nf_instance_id)
        handed = None
        if credential is not None:
            self._require_credential(await self.get(nf_id, scope), given=True)
            handed = await self._sealed(nf_id, credential)
        key = parse_uuid(request_id, "request_id") if request_id else None
        now, enrolment_id = self._clock.now(), str(uuid.uuid4())

        def begin(nf: NetworkFunction | None) -> Enrolment:
            known = _visible(nf, scope)
            self._require_credential(known, given=handed is not None)
            return Enrolment(
                id=enrolment_id,
                nf_instance_id=known.nf_instance_id,
                tenant=known.tenant,
                state=State.ATTESTING,
                working=State.ATTESTING,
                allow_re_enrolment=allow_re_enrolment,
                credential=handed,
                create_time=now,
                update_time=now,
                next_time=now,
            )

        return await self._store.start_enrolment(nf_id, begin, actor, key, sha256, owner)

    def _require_credential(self, nf: NetworkFunction, *, given: bool) -> None:
        """OAM hands in a foreign CA/RA's credential where nobody asks for one, and only there."""
        if given != (self._policy.by_hand and nf.profile in self._policy.foreign_profiles):
            raise NftrustError(Reason.FOREIGN_CREDENTIAL_REFUSED)

    async def _sealed(self, nf_instance_id: str, credential: ForeignCredential) -> bytes:
        credential.check()
        return msgspec.json.encode(await self._seal(nf_instance_id, credential.reference, credential.secret))

    async def enrolment(self, nf_instance_id: str, enrolment_id: str, scope: Scope) -> Enrolment:
        found = await self._store.find_enrolment(parse_uuid(enrolment_id, "name"))
        if (
            found is None
            or found.nf_instance_id != parse_nf_instance_id(nf_instance_id)
            or not scope.covers_tenant(found.tenant)
        ):
            raise NftrustError(Reason.ENROLMENT_NOT_FOUND)
        return found

    async def cancel(self, nf_instance_id: str, enrolment_id: str, actor: str, scope: Scope) -> Enrolment:
        found = await self.enrolment(nf_instance_id, enrolment_id, scope)
        return await self._store.cancel_enrolment(found.id, actor)

    def _with_recovery(self, nf: NetworkFunction) -> NetworkFunction:
        """To be looked at from now on, if OAM's policy brings it back after its certificate's end."""
        if nf.re_enrol_after_expiry and nf.profile in self._policy.foreign_profiles:
            raise invalid_field("re_enrol_after_expiry", "not for a foreign CA/RA, whose certificates are not seen")
        return replace(nf, recovery_next_time=self._clock.now() if nf.re_enrol_after_expiry else None)

    def _shared(self, nf: NetworkFunction) -> bool:
        return nf.profile in self._policy.shared_fqdn_profiles

    def _check(self, nf: NetworkFunction, scope: Scope) -> NetworkFunction:
        """Normalised and inside policy and scope."""
        nf_type = parse_nf_type(nf.nf_type)
        checked = replace(
            nf,
            nf_instance_id=parse_nf_instance_id(nf.nf_instance_id),
            fqdns=self._policy.fqdns.check(nf_type, nf.fqdns),
            tenant=nf.tenant or _only_tenant(scope),
            profile=nf.profile or DEFAULT_PROFILE,
        )
        if not _TENANT.match(checked.tenant):
            raise invalid_field("tenant", "lower-case letters, digits and hyphens")
        if len(checked.profile) > 64:
            raise invalid_field("certificate_profile", "at most 64 characters")
        endpoint = _ENDPOINT.match(nf.agent_endpoint)
        if endpoint is None or not 0 < int(endpoint[2]) < 65536:
            raise invalid_field("agent_endpoint", "host:port")
        if nf.transport_key_sha256 is not None and len(nf.transport_key_sha256) != 32:
            raise invalid_field("transport_key_sha256", "32 bytes")
        if nf.transport_key_sha256 is None and not nf.pin_on_first_contact:
            raise invalid_field("transport_key_sha256", "required unless pinned on first contact")
        if nf.delivery_mode not in self._policy.delivery_modes:
            raise NftrustError(Reason.DELIVERY_MODE_NOT_ALLOWED)
        root_scope = self._policy.day0_roots.get(nf.day0_root)
        if root_scope is None:
            raise NftrustError(Reason.DAY0_ROOT_UNKNOWN)
        for limit in (scope, root_scope):  # the caller's, and the root's: vendor A's root is not for vendor B's NF
            limit.require(tenant=checked.tenant, nf_type=nf_type, fqdns=checked.fqdns)
        return checked


def _visible(nf: NetworkFunction | None, scope: Scope) -> NetworkFunction:
    """Raises NftrustError(NF_NOT_FOUND)."""
    if nf is None or not scope.covers_tenant(nf.tenant):
        raise NftrustError(Reason.NF_NOT_FOUND)
    return nf


def _only_tenant(scope: Scope) -> str:
    """The caller's tenant where it has just one."""
    return scope.tenants[0] if len(scope.tenants) == 1 and scope.tenants[0] != "*" else DEFAULT_TENANT


def _version(etag: str) -> int:
    match = re.fullmatch(r'"?([0-9]{1,9})"?', etag)
    if not etag:
        raise invalid_field("etag", "required")
    if match is None:
        raise NftrustError(Reason.STALE_ETAG)
    return int(match[1])
