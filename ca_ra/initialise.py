"""Keys in the tokens and CA certificates: of the first CA (`ca-ra init`, `ca-ra import`) and of its successors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca_ra.authority import KeyLabels
from ca_ra.config import CaRaConfig
from ca_ra.custody import ROW_MAC_KEY, VAULT_KEK
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


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The certificates of a CA: its chain, issuing CA first and root last, and its response key's."""

    chain: tuple[x509.Certificate, ...]
    response_certificate: x509.Certificate


def make_hierarchy(config: CaRaConfig, root_token: TokenConfig, now: datetime, kind: KeyPairKind = "ec-p256") -> None:
    """Root and issuing CA, keys in separate tokens; a CA that is there already stays.

    Raises NftrustError(TOKEN_MISSING, PIN_INCORRECT, TOKEN_CUSTODY_UNPROVEN).
    """
    if config.ca.chain.exists() and config.ca.response_certificate.exists():
        return
    issuing_key = _prepare_issuing_token(config.token, 1, kind)
    chain = _under_own_root(config, root_token, issuing_key, 1, None, now, kind)
    _write(config, _complete(config, 1, chain, now))


def write_issuing_csr(config: CaRaConfig, path: Path, kind: KeyPairKind = "ec-p256", generation: int = 1) -> None:
    """The issuing CA's request to an external root."""
    _prepare_issuing_token(config.token, generation, kind)
    with _Issuing(config.token, generation) as keys:
        csr = issuing_csr(keys.ca, _issuing_name(config, generation))
    write_atomically(path, csr.public_bytes(Encoding.PEM), 0o644)


def import_issuing(config: CaRaConfig, chain: Sequence[x509.Certificate], now: datetime) -> None:
    """Take over what the external root issued; ``chain`` is issuing CA first, root last.

    Raises NftrustError(CONFIG_INVALID) where it does not fit the key in the token.
    """
    _check_chain(config, 1, chain, now)
    _write(config, _complete(config, 1, chain, now))


def make_successor(
    config: CaRaConfig,
    root_token: TokenConfig,
    generation: int,
    root: x509.Certificate | None,
    now: datetime,
    kind: KeyPairKind = "ec-p256",
) -> Hierarchy:
    """A further issuing CA under ``root``, whose key is in the root's token; None: under a new root of our own.

    Keys that a former attempt has made are used. Raises NftrustError(CONFIG_INVALID) where the token has another root.
    """
    issuing_key = _prepare_issuing_token(config.token, generation, kind)
    chain = _under_own_root(config, root_token, issuing_key, generation, root, now, kind)
    return _complete(config, generation, chain, now)


def import_successor(
    config: CaRaConfig, generation: int, chain: Sequence[x509.Certificate], now: datetime, known: Sequence[x509.Name]
) -> Hierarchy:
    """A further issuing CA as an external root certified it; ``known`` are the subjects of those before it.

    Raises NftrustError(CONFIG_INVALID, CA_EXPIRED).
    """
    _check_chain(config, generation, chain, now)
    if chain[0].subject in known:
        # Paths and CRLs are found by the issuer's name: two CAs of one name would be mistaken for each other.
        raise NftrustError(Reason.CONFIG_INVALID, "the new issuing CA has the subject of one before it")
    return _complete(config, generation, chain, now)


def _under_own_root(
    config: CaRaConfig,
    root_token: TokenConfig,
    issuing_key: ec.EllipticCurvePublicKey,
    generation: int,
    root: x509.Certificate | None,
    now: datetime,
    kind: KeyPairKind,
) -> list[x509.Certificate]:
    client = TokenClient.worker(root_token)
    try:
        client.ready()
        if root is None:
            key = _key_pair(client, ROOT_KEY if generation == 1 else f"{ROOT_KEY}-{generation}", kind)
            root = make_root(key, _name(config, "Operator Root CA", generation), now, ROOT_LIFETIME)
        else:
            key = _key_of(client, root)
        lifetime = min(ISSUING_LIFETIME, root.not_valid_after_utc - now)
        issuing = make_issuing(key, root, issuing_key, _issuing_name(config, generation), now, lifetime)
    finally:
        client.close()
    return [issuing, root]


def _key_of(client: TokenClient, root: x509.Certificate) -> TokenEcPrivateKey:
    for label in (key.label for key in client.call(ListKeys())):
        if label == ROOT_KEY or label.startswith(f"{ROOT_KEY}-"):
            key = _ec_key(client, label)
            if key.public_key() == root.public_key():
                return key
    raise NftrustError(Reason.CONFIG_INVALID, "--root-token does not hold the key of the present root; see --new-root")


def _check_chain(config: CaRaConfig, generation: int, chain: Sequence[x509.Certificate], now: datetime) -> None:
    if len(chain) < 2:
        raise NftrustError(Reason.CONFIG_INVALID, "the chain must hold the issuing CA's certificate and its root")
    if any(not link.not_valid_before_utc <= now < link.not_valid_after_utc for link in chain):
        raise NftrustError(Reason.CA_EXPIRED)
    with _Issuing(config.token, generation) as keys:
        check_issuing(chain[0], keys.ca.public_key(), chain[1:])


@dataclass(frozen=True, slots=True)
class _Keys:
    ca: TokenEcPrivateKey
    response: TokenEcPrivateKey


class _Issuing:
    """The keys of an issuing CA, for as long as its token is open."""

    def __init__(self, token: TokenConfig, generation: int) -> None:
        self._client = TokenClient.worker(token)
        self._labels = KeyLabels.of(generation)

    def __enter__(self) -> _Keys:
        try:
            self._client.ready()
            return _Keys(_ec_key(self._client, self._labels.ca), _ec_key(self._client, self._labels.response))
        except BaseException:
            self._client.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _name(config: CaRaConfig, words: str, generation: int) -> x509.Name:
    numbered = words if generation == 1 else f"{words} {generation}"
    return ca_name(config.ca.country, config.home_domain, numbered)


def _issuing_name(config: CaRaConfig, generation: int) -> x509.Name:
    return _name(config, "Operator Issuing CA", generation)


def _prepare_issuing_token(token: TokenConfig, generation: int, kind: KeyPairKind) -> ec.EllipticCurvePublicKey:
    """All keys of the CA/RA in its token, whichever of them are missing."""
    client = TokenClient.worker(token)
    labels = KeyLabels.of(generation)
    try:
        client.ready()
        client.call(ProveCustody())
        present = {key.label for key in client.call(ListKeys())}
        if VAULT_KEK not in present:
            client.call(GenerateSecret(VAULT_KEK, "kek"))
        if ROW_MAC_KEY not in present:
            client.call(GenerateSecret(ROW_MAC_KEY, "mac"))
        _key_pair(client, labels.response, "ec-p256")
        _key_pair(client, labels.ocsp, "ec-p256")
        return _key_pair(client, labels.ca, kind).public_key()
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


def _complete(config: CaRaConfig, generation: int, chain: Sequence[x509.Certificate], now: datetime) -> Hierarchy:
    """With the certificate of the response key."""
    with _Issuing(config.token, generation) as keys:
        name = _name(config, "CA/RA Response", generation)
        response = make_response_certificate(keys.ca, chain[0], keys.response.public_key(), name, now)
    return Hierarchy(tuple(chain), response)


def _write(config: CaRaConfig, made: Hierarchy) -> None:
    write_atomically(config.ca.response_certificate, pem_chain([made.response_certificate]), 0o644)
    write_atomically(config.ca.chain, pem_chain(made.chain), 0o644)
