"""The IAK vault and the signing keys, as operations on the CA/RA's token."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import rsa

from ca_ra.authority import Authority
from ca_ra.model import Registration
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.messages import ENROLMENT_INFO_TYP, RESPONSE_TYP, Payload
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import Mac, MintIak, SignDigest, VerifyIakMac, VerifyMac
from nftrust.x509.issuance import Prepared
from nftrust.x509.keys import spki

VAULT_KEK = "iak-kek"
ROW_MAC_KEY = "row-mac"


@dataclass(frozen=True, slots=True)
class MintedKey:
    """An IAK: for the vault, and for the NF."""

    vault_blob: bytes
    delivery: bytes


class Custody:
    """What the CA/RA does with its token. Every method raises NftrustError(TOKEN_UNAVAILABLE)."""

    def __init__(self, token: TokenClient) -> None:
        self._token = token

    async def mint(self, recipient: rsa.RSAPublicKey | None) -> MintedKey:
        """An IAK born in the token: wrapped for ``recipient``, or in clear for the tls-only mode."""
        minted = await self._token.run(MintIak(VAULT_KEK, None if recipient is None else spki(recipient)))
        return MintedKey(minted.vault_blob, minted.delivery)

    async def seal(self, registration: Registration, authority: Authority, info: Payload) -> tuple[Registration, str]:
        """The registration with its row MAC, and its enrolment information signed, in one batch."""
        data = jose.signing_input(jose.Header(alg="ES256", typ=ENROLMENT_INFO_TYP), info)
        mac, signature = await self._token.run_all(
            [Mac(ROW_MAC_KEY, registration.mac_input()), _response_signature(authority, data)]
        )
        return registration.sealed(mac), jose.join(data, signature)

    async def verify_proof(self, registration: Registration, jws: jose.Jws) -> None:
        """Row MAC, then the proof by the IAK, both in the token and in one batch.

        Raises NftrustError(STORED_ROW_TAMPERED, PROOF_INVALID).
        """
        assert registration.iak_blob is not None
        row_good, proof_good = await self._token.run_all(
            [
                VerifyMac(ROW_MAC_KEY, registration.mac_input(), registration.row_mac),
                VerifyIakMac(VAULT_KEK, registration.iak_blob, jws.signing_input, jws.signature),
            ]
        )
        if not row_good:
            raise NftrustError(Reason.STORED_ROW_TAMPERED)
        if not proof_good:
            raise NftrustError(Reason.PROOF_INVALID)

    async def refuse_unknown(self, jws: jose.Jws) -> NftrustError:
        """The refusal of a proof on an unknown reference, after the work that a wrong one costs."""
        await self._token.run_all(
            [
                VerifyMac(ROW_MAC_KEY, jws.signing_input[:256], bytes(32)),
                VerifyMac(ROW_MAC_KEY, jws.signing_input, jws.signature[:32].ljust(32, b"\0")),
            ]
        )
        return NftrustError(Reason.PROOF_INVALID)

    async def sign_certificate(self, authority: Authority, prepared: Prepared) -> bytes:
        """The certificate, DER, signed by the CA's key."""
        label = authority.labels.ca
        signature = await self._token.run(SignDigest(label, "ecdsa", prepared.hash_name, prepared.digest))
        return prepared.assemble(signature)

    async def sign_response(self, authority: Authority, payload: Payload, url: str) -> str:
        """A compact JWS by the CA's response key (ES256)."""
        data = jose.signing_input(jose.Header(alg="ES256", typ=RESPONSE_TYP, url=url), payload)
        return jose.join(data, await self._token.run(_response_signature(authority, data)))


def _response_signature(authority: Authority, data: bytes) -> SignDigest:
    return SignDigest(authority.labels.response, "ecdsa", "sha256", jose.sha256(data))
