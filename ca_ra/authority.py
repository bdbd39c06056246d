"""The issuing CA's certificates, loaded once and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nftrust import jose
from nftrust.x509.keys import spki_sha256
from nftrust.x509.names import subject
from nftrust.x509.profile import Issuer

CRL_PATH = "/crl/issuing.crl"
OCSP_PATH = "/ocsp"
ISSUING_PATH = "/ca/issuing.cer"
ROOT_PATH = "/ca/root.cer"


@dataclass(frozen=True, slots=True)
class Authority:
    """The issuing CA as the domain sees it. No keys: they are the custody's."""

    issuer: Issuer
    #: Issuing CA first, root last.
    chain: tuple[x509.Certificate, ...]
    response_certificate: x509.Certificate
    #: SHA-256 of the issuing CA's SPKI, base64url.
    ca_id: str

    @classmethod
    def of(
        cls,
        chain: Sequence[x509.Certificate],
        response_certificate: x509.Certificate,
        *,
        public_url: str,
        country: str,
        home_domain: str,
    ) -> Authority:
        issuing = chain[0]
        base = public_url.rstrip("/")
        issuer = Issuer(issuing, base + CRL_PATH, base + ISSUING_PATH, base + OCSP_PATH, subject(country, home_domain))
        key = issuing.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return cls(issuer, tuple(chain), response_certificate, jose.b64url(spki_sha256(key)))

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        key = self.issuer.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key
