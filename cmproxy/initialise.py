"""`cmproxy init`: the TLS client key in the token, and the request for its certificate."""

from __future__ import annotations

from pathlib import Path

from cmproxy.app import CLIENT_KEY
from cmproxy.config import CmProxyConfig
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.pkcs11.operations import GenerateKeyPair, ListKeys
from nftrust.x509.services import bare_csr


def write_client_csr(config: CmProxyConfig, path: Path) -> None:
    """Make the key where it is missing; write the PEM request for `nftrust pki service`."""
    client = TokenClient.worker(config.token)
    try:
        client.ready()
        if not any(key.label == CLIENT_KEY for key in client.call(ListKeys())):
            client.call(GenerateKeyPair(CLIENT_KEY, "ec-p256"))
        key = token_private_key(client, CLIENT_KEY)
        if not isinstance(key, TokenEcPrivateKey):
            raise NftrustError(Reason.KEY_MISSING, f"{CLIENT_KEY} is not an EC key")
        write_atomically(path, bare_csr(key), 0o644)
    finally:
        client.close()
