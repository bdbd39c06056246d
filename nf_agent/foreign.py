"""What the agent accepts for a foreign CA/RA, and what it hands to the NF's own CMP client.

The foreign CA/RA signs nothing that reaches us in step 7, so the CM proxy
signs; therefore the agent accepts it only where its own configuration names
the foreign root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from nf_agent.state import TRANSPORT_KEY
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.messages import FOREIGN_INFO_TYP, ForeignEnrolmentInfo
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import TransportIakMac
from nftrust.rpc.peer import parse_credential
from nftrust.x509.path import PathInvalid, load_chain, pem_chain, validate_path

_ES256 = frozenset({"ES256"})
_PREFIX = jose.b64url(b'{"alg":"ES256","typ":"' + FOREIGN_INFO_TYP.encode() + b'"}')


@dataclass(frozen=True, slots=True)
class ForeignExpectations:
    """What the agent knows by itself."""

    nf_instance_id: str
    transport_key_sha256: bytes
    #: Anchors by which the NF knows the CM proxy.
    services_ca: Sequence[x509.Certificate]
    #: URIs that may deliver; empty: any CM proxy.
    cm_proxies: Sequence[str]
    #: The foreign root; None: no foreign CA/RA is accepted.
    trust_anchor: x509.Certificate | None


@dataclass(frozen=True, slots=True)
class ForeignDelivery:
    """For the NF's own CMP client: where to go, as whom, and MACs by a secret that stays in the token."""

    info: ForeignEnrolmentInfo
    #: Issuing CA first, root last.
    ca_chain: tuple[x509.Certificate, ...]
    #: RFC 7512 URI of the transport key, under which :attr:`wrapped_secret` is unwrapped (RSAES-OAEP, SHA-1).
    transport_key_uri: str
    token: TokenClient

    @property
    def reference(self) -> str:
        """senderKID of the CMP request."""
        return self.info.reference

    @property
    def wrapped_secret(self) -> bytes:
        return jose.b64url_decode(self.info.wrapped_iak)

    async def mac(self, data: bytes) -> bytes:
        """HMAC-SHA256 keyed by the secret, in the token: the PRF of PBMAC1's PBKDF2 (RFC 8018).

        Raises NftrustError(TOKEN_UNAVAILABLE, ENROLMENT_INFO_INVALID).
        """
        return await self.token.run(TransportIakMac(TRANSPORT_KEY, self.wrapped_secret, data))


def is_foreign(text: str) -> bool:
    """Whether a delivery says of itself that it is for a foreign CA/RA; nothing is believed yet."""
    return text.startswith(_PREFIX + ".")


def accept_foreign_info(
    text: str, expected: ForeignExpectations, now: datetime
) -> tuple[ForeignEnrolmentInfo, tuple[x509.Certificate, ...]]:
    """Checks 1 to 6. Raises NftrustError(FOREIGN_CA_RA_NOT_ALLOWED, ENROLMENT_INFO_INVALID)."""

    def refuse(why: str) -> NftrustError:
        return NftrustError(Reason.ENROLMENT_INFO_INVALID, why)

    if expected.trust_anchor is None:  # 1: allowed at all
        raise NftrustError(Reason.FOREIGN_CA_RA_NOT_ALLOWED)
    try:
        jws = jose.split(text, typ=FOREIGN_INFO_TYP, algorithms=_ES256)  # 2: form
        info = jose.parse_payload(jws, ForeignEnrolmentInfo)  # needed to find the key; believed only after 3
        chain = load_chain([jose.b64url_decode(certificate) for certificate in info.ca_certificates])
        signer = load_chain([jose.b64url_decode(certificate) for certificate in info.signer_chain])
        validate_path(signer, expected.services_ca, now)  # 3: signed by a CM proxy of the services CA
        credential = parse_credential(pem_chain(signer[:1]))
        jose.verify(signer[0].public_key(), jws)
        jose.b64url_decode(info.wrapped_iak)
    except (NftrustError, PathInvalid, ValueError):
        raise refuse("the enrolment information does not verify") from None
    if credential.role != "cm-proxy" or (expected.cm_proxies and credential.uri not in expected.cm_proxies):
        raise refuse("its signer may not deliver")
    if chain[-1] != expected.trust_anchor:  # 4: the preconfigured anchor
        raise NftrustError(Reason.FOREIGN_CA_RA_NOT_ALLOWED, "the delivered root is not the preconfigured one")
    try:
        validate_path(chain, [expected.trust_anchor], now)
    except PathInvalid:
        raise refuse("the CA certificates are no chain") from None
    if info.nf_instance_id != expected.nf_instance_id:  # 5: for this NF and its transport key
        raise refuse("it is for another NF")
    if info.transport_key_sha256 != jose.b64url(expected.transport_key_sha256):
        raise refuse("it is for another transport key")
    if now.timestamp() >= info.expire_time:  # 6: in time
        raise NftrustError(Reason.IAK_EXPIRED)
    return info, tuple(chain)
