"""INSECURE, for one test: a CA/RA whose IAKs are known beforehand.

python -m tests.insecure_known_iak run --config FILE

takes the place of `ca-ra run`. Everything is the CA/RA's own but the vault's
`mint`, which hands out IAKs that :func:`plant` has put into the CA's token and
wrapped there as `MintIak` does. The CA/RA is given the two ciphertexts only,
as if the IAK had been born in its token.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import AbstractAsyncContextManager

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

import ca_ra.app
from ca_ra.__main__ import ROLE
from ca_ra.config import CaRaConfig
from ca_ra.custody import VAULT_KEK, Custody, MintedKey
from nftrust.config import TokenConfig
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import spki, templates
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.cryptoki import Template
from nftrust.pkcs11.token import Token
from nftrust.role.health import Served
from nftrust.x509.keys import spki as spki_of

PLANTED_FILE = "insecure-known-iak.json"


class Planted(msgspec.Struct, frozen=True):
    """A known IAK as the vault keeps it and as its NF gets it; no clear value."""

    recipient_spki: bytes
    vault_blob: bytes
    delivery: bytes


class InsecureKnownIakVault(Custody):
    """Hands out the planted IAK instead of one that nobody knows. Never outside the test of IAK hygiene."""

    def __init__(self, token: TokenClient, planted: Planted) -> None:
        super().__init__(token)
        self._planted = planted

    async def mint(self, recipient: rsa.RSAPublicKey | None) -> MintedKey:
        assert recipient is not None
        assert spki_of(recipient) == self._planted.recipient_spki
        return MintedKey(self._planted.vault_blob, self._planted.delivery)


def plant(config: TokenConfig, iak: bytes, recipient_spki: bytes) -> Planted:
    """Put a known IAK into the CA's token and wrap it, twice, as `MintIak` does with one that is born there."""
    token = Token.open(config)
    try:
        session = token._session
        module, handle = session.module, session.handle
        born = {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
            ck.CKA_VALUE: iak,
            ck.CKA_TOKEN: False,
            ck.CKA_PRIVATE: True,
            ck.CKA_SENSITIVE: True,
            ck.CKA_EXTRACTABLE: True,
        }
        recipient = templates.rsa_recipient(*spki.transport_numbers(recipient_spki))
        with session.session_object(module.create(handle, Template(born))) as key:
            blob = session.with_key(VAULT_KEK, "kek", lambda kek: module.wrap(handle, templates.AES_KEY_WRAP, kek, key))
            with session.session_object(module.create(handle, recipient)) as public:
                delivery = module.wrap(handle, templates.OAEP["sha1"], public, key)
    finally:
        token.close()
    return Planted(recipient_spki, blob, delivery)


def serving(config: CaRaConfig, *, reuse_port: bool) -> AbstractAsyncContextManager[Served]:
    """The CA/RA's own composition root with the vault exchanged."""
    planted = msgspec.json.decode((config.ca.chain.parent / PLANTED_FILE).read_bytes(), type=Planted)
    ca_ra.app.Custody = lambda token: InsecureKnownIakVault(token, planted)  # type: ignore[assignment,misc]
    return ca_ra.app.serving(config, reuse_port=reuse_port)


if __name__ == "__main__":
    sys.exit(dataclasses.replace(ROLE, package="tests.insecure_known_iak", serving=serving).main())
