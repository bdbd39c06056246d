"""EJBCA as a foreign CA/RA, by its REST API.

Written against the OpenAPI description of EJBCA CE (Keyfactor/ejbca-ce at
28c583d, modules/ejbca-rest-api/resources/openapi.json, API version 1.0) and
the status codes of its ExceptionHandler. EJBCA keeps the secret as the end
entity's enrolment code; its CMP alias has to be in client mode with the HMAC
module, extracting the user name from the senderKID.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from cmproxy.ports import EndEntity, ForeignCredential
from nftrust.config import Section
from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn

API = "/ejbca/ejbca-rest-api/v1/endentity"
MAX_ANSWER_BYTES = 64 * 1024
#: Printable, because EJBCA keeps it as text; 384 bits.
SECRET_BYTES = 48
CESSATION_OF_OPERATION = 5
_NOT_FOUND, _CONFLICT, _ACCEPTED = 404, 409, 202
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class EjbcaSettings(Section, frozen=True, kw_only=True):
    """``foreign_ca_ra.settings`` for the registrar ``ejbca``."""

    #: ``https://host:port``
    url: str
    #: PEM: anchors for the TLS of EJBCA.
    trust_anchors: str
    #: PEM: the RA certificate with its chain, and its key, mode 0600.
    certificate: str
    private_key: str
    ca_name: str
    end_entity_profile: str
    certificate_profile: str
    timeout_seconds: str = "10"


@dataclass(frozen=True, slots=True)
class EjbcaRegistrar:
    """One RA account at one EJBCA."""

    settings: EjbcaSettings
    host: str
    port: int
    context: ssl.SSLContext
    timeout_seconds: float

    @classmethod
    def from_settings(cls, settings: Mapping[str, str]) -> EjbcaRegistrar:
        """Raises NftrustError(CONFIG_INVALID)."""
        try:
            known = msgspec.convert(dict(settings), EjbcaSettings)
            url = urlsplit(known.url)
            port, timeout = url.port or 443, float(known.timeout_seconds)
        except (msgspec.ValidationError, ValueError):
            raise _invalid("a key is missing, unknown or not in its form") from None
        if url.scheme != "https" or url.hostname is None or url.path.strip("/") or not 0 < timeout <= 60:
            raise _invalid("url is https://host:port, timeout_seconds at most 60")
        return cls(known, url.hostname, port, _tls(known), timeout)

    async def register(self, entity: EndEntity) -> ForeignCredential:
        """An end entity in status NEW with a fresh secret; one that exists gets the fresh one too."""
        # A new enrolment code for a known one first: EJBCA answers 400 to a duplicate and to much else.
        code = secrets.token_urlsafe(SECRET_BYTES * 3 // 4)
        change = {"password": code, "token": "USERGENERATED", "status": "NEW"}
        found = await self._call("POST", f"{API}/{quote(entity.handle, safe='')}/setstatus", change, also=_NOT_FOUND)
        if found == _NOT_FOUND:
            await self._call("POST", API, self._end_entity(entity, code))
        return ForeignCredential(entity.handle, code.encode("ascii"))

    async def revoke(self, handle: str) -> None:
        body = {"reason_code": CESSATION_OF_OPERATION, "delete": False}
        path = f"{API}/{quote(handle, safe='')}/revoke"
        await self._call("PUT", path, body, also=_NOT_FOUND, or_else=_CONFLICT)  # 409: revoked before

    async def version(self) -> str:
        """EJBCA's own name and version, for a diagnosis."""
        _, raw = await asyncio.to_thread(self._exchange, "GET", f"{API}/status", None)
        answer = _object(raw)
        revision = answer.get("revision")
        if answer.get("status") != "OK" or not isinstance(revision, str):
            raise NftrustError(Reason.PEER_UNAVAILABLE)
        return revision[:128]

    def _end_entity(self, entity: EndEntity, code: str) -> dict[str, Any]:
        names = [f"uniformResourceId={urn(entity.nf_instance_id)}", *(f"dNSName={fqdn}" for fqdn in entity.fqdns)]
        return {
            "username": entity.handle,
            "password": code,
            "subject_dn": f"CN={entity.fqdns[0]}",
            "subject_alt_name": ", ".join(names),
            "ca_name": self.settings.ca_name,
            "certificate_profile_name": self.settings.certificate_profile,
            "end_entity_profile_name": self.settings.end_entity_profile,
            "token": "USERGENERATED",
        }

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any], *, also: int = 200, or_else: int = 200
    ) -> int:
        """200 or a status that the caller knows. Raises NftrustError(PEER_UNAVAILABLE, FOREIGN_CA_RA_REFUSED)."""
        status, _ = await asyncio.to_thread(self._exchange, method, path, json.dumps(body).encode())
        if status in (200, also, or_else):
            return status
        if status in _TRANSIENT:
            raise NftrustError(Reason.PEER_UNAVAILABLE)
        if status == _ACCEPTED:
            raise NftrustError(Reason.FOREIGN_CA_RA_REFUSED, "EJBCA waits for an approval: allow the RA to do without")
        raise NftrustError(Reason.FOREIGN_CA_RA_REFUSED, metadata={"status": str(status)})

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=self.timeout_seconds, context=self.context
        )
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException):
            raise NftrustError(Reason.PEER_UNAVAILABLE) from None
        finally:
            connection.close()


def _tls(settings: EjbcaSettings) -> ssl.SSLContext:
    """Mutual TLS 1.2 or newer, by these anchors alone."""
    key = Path(settings.private_key)
    try:
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise _invalid("private_key is readable by others: mode 0600")
        context = ssl.create_default_context(cafile=settings.trust_anchors)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.certificate, key, password=lambda: b"")
    except OSError:
        raise _invalid("trust_anchors, certificate or private_key cannot be read") from None
    return context


def _object(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise NftrustError(Reason.PEER_UNAVAILABLE) from None


def _invalid(why: str) -> NftrustError:
    return NftrustError(Reason.CONFIG_INVALID, f"foreign_ca_ra.settings: {why}")
