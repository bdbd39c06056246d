"""The credential that an NF has from its agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nf_agent.state import Attempt
from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, key_in_token
from nftrust.pkcs11.uri import key_uri


@dataclass(frozen=True, slots=True)
class Credential:
    """The NF's operator certificate and the key in the token that belongs to it."""

    #: Certificate first, then the issuing CA.
    chain: tuple[x509.Certificate, ...]
    #: Anchors for the certificates of other NFs, the root of :attr:`chain` first if it is still one of them.
    trust_bundle: tuple[x509.Certificate, ...]
    #: A pyca private key that signs in the token.
    private_key: TokenEcPrivateKey
    #: RFC 7512 URI of the key, with ``pin-source`` and ``module-path``.
    pkcs11_uri: str

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def trust_anchor(self) -> x509.Certificate:
        """The first of the operator's roots."""
        return self.trust_bundle[0]


def credential_of(
    attempt: Attempt, token: TokenClient, config: TokenConfig, anchors: Sequence[x509.Certificate]
) -> Credential:
    """The credential of a confirmed attempt, with the roots of the CAs that the NF trusts; does not ask the token.

    Raises NftrustError(KEY_MISSING).
    """
    *chain, root = (x509.load_der_x509_certificate(bytes.fromhex(der)) for der in attempt.chain)
    spki = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = key_in_token(token, attempt.key_label, spki)
    if not isinstance(key, TokenEcPrivateKey):
        raise NftrustError(Reason.KEY_MISSING, metadata={"label": attempt.key_label})
    bundle = sorted(anchors, key=lambda anchor: anchor != root) or [root]
    return Credential(tuple(chain), tuple(bundle), key, key_uri(config, attempt.key_label))
