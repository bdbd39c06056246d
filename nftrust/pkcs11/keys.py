"""pyca private keys that live in a token: they work with every builder of cryptography.

``sign`` hashes on the host and waits for the token; an event loop that must
not wait a millisecond calls it in a thread.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import HashName, PublicKey, Scheme, SignDigest

_HASHES: dict[str, HashName] = {"sha256": "sha256", "sha384": "sha384", "sha512": "sha512"}
_STAYS = "the private key stays in its token"


class _TokenKey:
    """What both kinds of key share."""

    def __init__(self, client: TokenClient, label: str) -> None:
        self._client = client
        self.label = label

    def _sign(self, scheme: Scheme, data: bytes, algorithm: Any) -> bytes:
        """Sign ``data``, or the digest that it is. Raises UnsupportedAlgorithm, NftrustError."""
        prehashed = isinstance(algorithm, Prehashed)
        chosen = algorithm._algorithm if isinstance(algorithm, Prehashed) else algorithm
        name = _HASHES.get(chosen.name)
        if name is None:
            raise UnsupportedAlgorithm(f"a token key does not sign with {chosen.name}")
        digest = bytes(data)
        if not prehashed:
            hasher = hashes.Hash(chosen)
            hasher.update(data)
            digest = hasher.finalize()
        return self._client.call(SignDigest(self.label, scheme, name, digest))

    def __reduce__(self) -> NoReturn:
        raise TypeError(_STAYS)


class TokenEcPrivateKey(_TokenKey, ec.EllipticCurvePrivateKey):
    """An ECDSA key in a token. Made by :func:`token_private_key`."""

    def __init__(self, client: TokenClient, label: str, public: ec.EllipticCurvePublicKey) -> None:
        super().__init__(client, label)
        self._public = public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """A DER signature (SEQUENCE of r and s)."""
        if not isinstance(signature_algorithm, ec.ECDSA):
            raise UnsupportedAlgorithm("a token key signs with ECDSA")
        raw = self._sign("ecdsa", data, signature_algorithm.algorithm)
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        raise UnsupportedAlgorithm("a token key signs, it does not agree on keys")

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        raise TypeError(_STAYS)

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        raise TypeError(_STAYS)

    def __copy__(self) -> TokenEcPrivateKey:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenEcPrivateKey:
        return self


class TokenRsaPrivateKey(_TokenKey, rsa.RSAPrivateKey):
    """An RSA signing key in a token. Made by :func:`token_private_key`."""

    def __init__(self, client: TokenClient, label: str, public: rsa.RSAPublicKey) -> None:
        super().__init__(client, label)
        self._public = public

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public

    def sign(self, data: Any, padding: padding.AsymmetricPadding, algorithm: Any) -> bytes:
        """A PKCS#1 v1.5 signature, or a PSS one with MGF1 of the same hash and a salt of its length."""
        chosen = algorithm._algorithm if isinstance(algorithm, Prehashed) else algorithm
        return self._sign(_rsa_scheme(padding, chosen), data, algorithm)

    def decrypt(self, ciphertext: Any, padding: padding.AsymmetricPadding) -> bytes:
        raise UnsupportedAlgorithm("a token key signs, it does not decrypt")

    def private_numbers(self) -> rsa.RSAPrivateNumbers:
        raise TypeError(_STAYS)

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        raise TypeError(_STAYS)

    def __copy__(self) -> TokenRsaPrivateKey:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenRsaPrivateKey:
        return self


def token_private_key(client: TokenClient, label: str) -> TokenEcPrivateKey | TokenRsaPrivateKey:
    """The key pair of this label as a pyca key; waits for the token. Raises NftrustError(KEY_MISSING)."""
    return key_in_token(client, label, client.call(PublicKey(label)))


def key_in_token(client: TokenClient, label: str, spki: bytes) -> TokenEcPrivateKey | TokenRsaPrivateKey:
    """The same where the public key is known, without asking the token. Raises NftrustError(KEY_MISSING)."""
    public = load_der_public_key(spki)
    if isinstance(public, ec.EllipticCurvePublicKey):
        return TokenEcPrivateKey(client, label, public)
    if isinstance(public, rsa.RSAPublicKey):
        return TokenRsaPrivateKey(client, label, public)
    raise NftrustError(Reason.KEY_MISSING, metadata={"label": label})


def _rsa_scheme(chosen: padding.AsymmetricPadding, algorithm: hashes.HashAlgorithm) -> Scheme:
    """The operation's name for the padding, if the token makes exactly this one. Raises UnsupportedAlgorithm."""
    if isinstance(chosen, padding.PKCS1v15):
        return "rsa-pkcs1v15"
    # pyca has no public names for what a PSS was made of.
    if isinstance(chosen, padding.PSS) and isinstance(chosen._mgf, padding.MGF1):
        same_hash = chosen._mgf._algorithm.name == algorithm.name
        if same_hash and chosen._salt_length in (algorithm.digest_size, padding.PSS.DIGEST_LENGTH):
            return "rsa-pss"
    raise UnsupportedAlgorithm("a token key pads by PKCS#1 v1.5, or PSS with a salt as long as the digest")
