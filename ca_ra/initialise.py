"""`ca-ra init` and `ca-ra import`: keys in the tokens, CA certificates in files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca_ra.config import CaRaConfig
from ca_ra.custody import CA_KEY, OCSP_KEY, RESPONSE_KEY, ROW_MAC_KEY, VAULT_KEK
from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.pkcs11.operations import GenerateKeyPair, GenerateSecret, KeyPairKind, ListKeys, ProveCustody
from nftrust.x509.authority import (
    ca_name,
    check_issuing,
    issuing_csr,
    make_issuing,
    make_response_certificate,
    make_root,
)
from nftrust.x509.path import pem_chain

ROOT_KEY = "ca-root"
ROOT_LIFETIME = timedelta(days=20 * 365)
ISSUING_LIFETIME = timedelta(days=10 * 365)


def make_hierarchy(config: CaRaConfig, root_token: TokenConfig, now: datetime, kind: KeyPairKind = "ec-p256") -> None:
    """Root and issuing CA, keys in separate tokens; a CA that is there already stays.

    Raises NftrustError(TOKEN_MISSING, PIN_INCORRECT, TOKEN_CUSTODY_UNPROVEN).
    """
    if config.ca.chain.exists() and config.ca.response_certificate.exists():
        return
    issuing_key = _prepare_issuing_token(config.token, kind)
    root_client = TokenClient.worker(root_token)
    try:
        root_client.ready()
        root_key = _key_pair(root_client, ROOT_KEY, kind)
        root_name = ca_name(config.ca.country, config.home_domain, "Operator Root CA")
        root = make_root(root_key, root_name, now, ROOT_LIFETIME)
        issuing = make_issuing(root_key, root, issuing_key, _issuing_name(config), now, ISSUING_LIFETIME)
    finally:
        root_client.close()
    _write_hierarchy(config, [issuing, root], now)


def write_issuing_csr(config: CaRaConfig, path: Path, kind: KeyPairKind = "ec-p256") -> None:
    """The issuing CA's request to an external root."""
    _prepare_issuing_token(config.token, kind)
    with _Issuing(config.token) as key:
        csr = issuing_csr(key, _issuing_name(config))
    write_atomically(path, csr.public_bytes(Encoding.PEM), 0o644)


def import_issuing(config: CaRaConfig, chain: Sequence[x509.Certificate], now: datetime) -> None:
    """Take over what the external root issued; ``chain`` is issuing CA first, root last.

    Raises NftrustError(CONFIG_INVALID) where it does not fit the key in the token.
    """
    if len(chain) < 2:
        raise NftrustError(Reason.CONFIG_INVALID, "the chain must hold the issuing CA's certificate and its root")
    if any(not link.not_valid_before_utc <= now < link.not_valid_after_utc for link in chain):
        raise NftrustError(Reason.CA_EXPIRED)
    with _Issuing(config.token) as key:
        check_issuing(chain[0], key.public_key(), chain[1:])
    _write_hierarchy(config, chain, now)


class _Issuing:
    """The issuing CA's key, for as long as its token is open."""

    def __init__(self, token: TokenConfig) -> None:
        self._client = TokenClient.worker(token)

    def __enter__(self) -> TokenEcPrivateKey:
        self._client.ready()
        return _ec_key(self._client, CA_KEY)

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _issuing_name(config: CaRaConfig) -> x509.Name:
    return ca_name(config.ca.country, config.home_domain, "Operator Issuing CA")


def _prepare_issuing_token(token: TokenConfig, kind: KeyPairKind) -> ec.EllipticCurvePublicKey:
    """All keys of the CA/RA in its token, whichever of them are missing."""
    client = TokenClient.worker(token)
    try:
        client.ready()
        client.call(ProveCustody())
        present = {key.label for key in client.call(ListKeys())}
        if VAULT_KEK not in present:
            client.call(GenerateSecret(VAULT_KEK, "kek"))
        if ROW_MAC_KEY not in present:
            client.call(GenerateSecret(ROW_MAC_KEY, "mac"))
        _key_pair(client, RESPONSE_KEY, "ec-p256")
        _key_pair(client, OCSP_KEY, "ec-p256")
        return _key_pair(client, CA_KEY, kind).public_key()
    finally:
        client.close()


def _key_pair(client: TokenClient, label: str, kind: KeyPairKind) -> TokenEcPrivateKey:
    if not any(key.label == label for key in client.call(ListKeys())):
        client.call(GenerateKeyPair(label, kind))
    return _ec_key(client, label)


def _ec_key(client: TokenClient, label: str) -> TokenEcPrivateKey:
    key = token_private_key(client, label)
    if not isinstance(key, TokenEcPrivateKey):
        raise NftrustError(Reason.KEY_MISSING, f"{label} is not an EC key")
    return key


def _write_hierarchy(config: CaRaConfig, chain: Sequence[x509.Certificate], now: datetime) -> None:
    client = TokenClient.worker(config.token)
    try:
        client.ready()
        response_key = _ec_key(client, RESPONSE_KEY).public_key()
        name = ca_name(config.ca.country, config.home_domain, "CA/RA Response")
        response = make_response_certificate(_ec_key(client, CA_KEY), chain[0], response_key, name, now)
    finally:
        client.close()
    write_atomically(config.ca.response_certificate, pem_chain([response]), 0o644)
    write_atomically(config.ca.chain, pem_chain(chain), 0o644)
