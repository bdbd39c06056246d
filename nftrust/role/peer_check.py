"""Whether a service that this one calls is what it should be: reachable, of the services CA, in its role."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from nftrust.errors import NftrustError, Reason
from nftrust.rpc.peer import parse_credential
from nftrust.rpc.preflight import fetch_peer_chain
from nftrust.x509.path import OutsideValidity, PathInvalid, pem_chain, validate_path


async def check_service(target: str, trust_anchors: bytes, role: str, now: datetime, timeout: float) -> None:
    """Raises NftrustError(PEER_UNAVAILABLE, PEER_UNTRUSTED) with what is wrong in words."""
    host, _, port = target.rpartition(":")
    try:
        chain = await fetch_peer_chain(host.strip("[]"), int(port), timeout)
        anchors = x509.load_pem_x509_certificates(trust_anchors)
        validate_path(chain, anchors, now)
        found = parse_credential(pem_chain(chain[:1])).role
    except OutsideValidity:
        raise NftrustError(Reason.PEER_UNTRUSTED, f"{target}: its certificate is not valid at this time") from None
    except PathInvalid:
        raise NftrustError(Reason.PEER_UNTRUSTED, f"{target}: its certificate is not of the services CA") from None
    except NftrustError as error:
        if error.reason is Reason.PEER_ROLE_INVALID:
            raise NftrustError(Reason.PEER_UNTRUSTED, f"{target}: its certificate names no role") from None
        cause = error.metadata.get("cause", "handshake")
        raise NftrustError(Reason.PEER_UNAVAILABLE, f"{target}: {_CAUSES[cause]}") from None
    except ValueError:
        raise NftrustError(Reason.CONFIG_INVALID, f"{target}: not host:port, or no trust anchors") from None
    if found != role:
        raise NftrustError(Reason.PEER_UNTRUSTED, f"{target}: it is a {found}, not a {role}")


_CAUSES = {
    "connect": "nobody listens there",
    "timeout": "no answer in time",
    "handshake": "no TLS 1.3 spoken there",
    "closed": "the connection was closed at once: another service, or plain text",
}
