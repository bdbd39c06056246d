"""Who is calling: the peer's certificate, parsed by our own code, and what the access file says of it.

gRPC's auth context mixes the types of subject alternative names, so that a DNS
name spelled like a role URI looks the same (security rule 15). Only the leaf
certificate itself is taken from it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust.config import Section, load
from nftrust.errors import NftrustError, Reason
from nftrust.identity import LAB_MARKER_OID, Scope
from nftrust.rpc.authz import ROLES

MAX_CERTIFICATE_BYTES = 16 * 1024

_ROLE_URI = re.compile(r"urn:nftrust:([a-z-]{1,16}):([a-z0-9][a-z0-9.-]{0,63})\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller of the RPC being served.

    ``role``, ``name`` and ``uri`` are empty on a listener without client
    authentication. ``address`` is the peer's IP address without the port.
    """

    role: str = ""
    name: str = ""
    uri: str = ""
    scope: Scope = field(default_factory=Scope)
    address: str = ""


_current: ContextVar[Peer] = ContextVar("peer")


def current_peer() -> Peer:
    """The caller of the RPC that this task serves. Raises LookupError outside an RPC."""
    return _current.get()


def set_current_peer(peer: Peer) -> None:
    """For the server's wrapper, and for tests that call a servicer directly."""
    _current.set(peer)


def parse_role_uri(uri: str) -> tuple[str, str]:
    """Role and name of ``urn:nftrust:<role>:<name>``. Raises NftrustError(PEER_ROLE_INVALID)."""
    match = _ROLE_URI.match(uri)
    if match is None or match[1] not in ROLES:
        raise NftrustError(Reason.PEER_ROLE_INVALID)
    return match[1], match[2]


@dataclass(frozen=True, slots=True)
class Credential:
    """What matters of a service certificate."""

    role: str
    name: str
    uri: str
    sha256: str
    not_before: datetime
    not_after: datetime
    lab: bool

    def check_validity(self, now: datetime) -> None:
        """A connection may outlive its certificate. Raises NftrustError(PEER_UNAUTHENTICATED)."""
        if not self.not_before <= now <= self.not_after:
            raise NftrustError(Reason.PEER_UNAUTHENTICATED, "the peer's certificate is not valid at this time")


@lru_cache(maxsize=1024)
def parse_credential(pem: bytes) -> Credential:
    """The leaf certificate in ``pem`` as a service credential; remembered by content.

    Raises NftrustError(PEER_ROLE_INVALID, PEER_UNAUTHENTICATED).
    """
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise NftrustError(Reason.PEER_UNAUTHENTICATED, "the peer's certificate is too large")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        lab = any(extension.oid == LAB_MARKER_OID for extension in extensions)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise NftrustError(Reason.PEER_ROLE_INVALID) from None
    if len(uris) != 1:
        raise NftrustError(Reason.PEER_ROLE_INVALID)
    role, name = parse_role_uri(uris[0])
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Credential(role, name, uris[0], digest, not_before, not_after, lab)


class PrincipalConfig(Section, frozen=True):
    """A principal and its scope (security rule 16)."""

    uri: str
    tenants: tuple[str, ...] = ()
    nf_types: tuple[str, ...] = ()
    fqdn_suffixes: tuple[str, ...] = ()


class AccessConfig(Section, frozen=True):
    """The access file: who may come in, and who may no longer."""

    principal: tuple[PrincipalConfig, ...] = ()
    #: SHA-256 of certificates, hexadecimal, colons allowed.
    denied_certificates: tuple[str, ...] = ()
    denied_principals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rules:
    scopes: Mapping[str, Scope]
    denied_certificates: frozenset[str]
    denied_principals: frozenset[str]


class Access:
    """The access file, read again whenever it changes.

    A file that cannot be read any more, or is wrong, is logged and the rules
    last read stay in force: a slip of an editor must not lock everybody out,
    nor let anybody in.
    """

    def __init__(self, path: Path) -> None:
        """Raises NftrustError(CONFIG_INVALID)."""
        self._path = path
        self._seen = _fingerprint(path)
        self._rules = _read_rules(path)

    def admit(self, credential: Credential) -> Scope:
        """The scope of a listed principal. Raises NftrustError(PEER_DENIED)."""
        self._refresh()
        rules = self._rules
        scope = rules.scopes.get(credential.uri)
        if scope is None or credential.uri in rules.denied_principals:
            raise NftrustError(Reason.PEER_DENIED, metadata={"principal": credential.uri})
        if credential.sha256 in rules.denied_certificates:
            raise NftrustError(Reason.PEER_DENIED, metadata={"principal": credential.uri})
        return scope

    def _refresh(self) -> None:
        seen = _fingerprint(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._rules = _read_rules(self._path)
        except NftrustError as error:
            _log.error("access file not taken over", extra={"path": str(self._path), "reason": error.message})
            return
        _log.info("access file read", extra={"path": str(self._path), "principals": len(self._rules.scopes)})


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_rules(path: Path) -> _Rules:
    config = load(AccessConfig, path)
    scopes: dict[str, Scope] = {}
    for principal in config.principal:
        _require_role_uri(path, principal.uri)
        if principal.uri in scopes:
            raise NftrustError(Reason.CONFIG_INVALID, f"{path}: principal {principal.uri} is listed twice")
        scopes[principal.uri] = Scope(principal.tenants, principal.nf_types, principal.fqdn_suffixes)
    for uri in config.denied_principals:
        _require_role_uri(path, uri)
    denied = frozenset(text.replace(":", "").lower() for text in config.denied_certificates)
    if not all(_FINGERPRINT.match(text) for text in denied):
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: denied_certificates: not a SHA-256 in hexadecimal")
    return _Rules(scopes, denied, frozenset(config.denied_principals))


def _require_role_uri(path: Path, uri: str) -> None:
    try:
        parse_role_uri(uri)
    except NftrustError:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: {uri[:100]!r} is not urn:nftrust:<role>:<name>") from None
