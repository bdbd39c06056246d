"""NFs made in software, so that a test can show the CA/RA any statement, proof and CSR.

The transport key is RSA-3072 over one modulus; each NF has its own public
exponent and by that its own SubjectPublicKeyInfo.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import math
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from nftrust import jose
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.identity import urn
from nftrust.lab.layout import DAY0_ROOT, HOME_DOMAIN, TENANT
from nftrust.messages import (
    CONFIRM_TYP,
    CONFIRM_URL,
    ENROL_TYP,
    ENROL_URL,
    ENROLMENT_INFO_TYP,
    RENEW_TYP,
    RENEW_URL,
    RESPONSE_TYP,
    STATEMENT_TYP,
    ConfirmResponse,
    EnrolmentInfo,
    EnrolResponse,
)
from nftrust.x509.keys import spki
from nftrust.x509.path import der

#: Issues a day-0 certificate for a key and an instance id.
Day0Issuer = Callable[[ec.EllipticCurvePrivateKey, str], x509.Certificate]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
# OAEP needs no collision resistance; it is what SoftHSM offers.
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
_exponents = itertools.count(65537, 2)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def _primes() -> tuple[int, int]:
    numbers = rsa.generate_private_key(65537, 3072).private_numbers()
    return numbers.p, numbers.q


def new_transport_key() -> rsa.RSAPrivateKey:
    """A usable RSA-3072 key that no other NF has."""
    p, q = _primes()
    phi = (p - 1) * (q - 1)
    e = next(number for number in _exponents if math.gcd(number, phi) == 1)
    d = pow(e, -1, phi)
    public = rsa.RSAPublicNumbers(e, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def jws(header: dict[str, Any], payload: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A compact JWS with whatever header and payload."""
    data = b".".join(jose.b64url(json.dumps(part).encode()).encode() for part in (header, payload))
    return jose.join(data, sign(data))


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.digest(secret, data, hashlib.sha256)


def es256(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        r, s = jose.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


@dataclass(frozen=True)
class SoftNf:
    """An NF before its registration."""

    nf_instance_id: str
    nf_type: str
    fqdn: str
    day0_key: ec.EllipticCurvePrivateKey
    day0_certificate: x509.Certificate
    transport_key: rsa.RSAPrivateKey

    @classmethod
    def make(cls, issue_day0: Day0Issuer, nf_type: str = "AMF") -> SoftNf:
        nf_instance_id, key = str(uuid.uuid4()), new_key()
        fqdn = f"s{nf_instance_id[:13]}.{nf_type.lower()}.{HOME_DOMAIN}"
        return cls(nf_instance_id, nf_type, fqdn, key, issue_day0(key, nf_instance_id), new_transport_key())

    @property
    def transport_key_sha256(self) -> bytes:
        return jose.sha256(spki(self.transport_key.public_key()))

    def statement(self, request_id: str, *, signer: ec.EllipticCurvePrivateKey | None = None, **changes: object) -> str:
        """The NF's statement for an enrolment, by its day-0 key unless told otherwise."""
        payload = {
            "nf_instance_id": self.nf_instance_id,
            "transport_key": jose.b64url(spki(self.transport_key.public_key())),
            "enrolment": request_id,
            "nonce": jose.b64url(secrets.token_bytes(32)),
        }
        return jws({"alg": "ES256", "typ": STATEMENT_TYP}, payload | changes, es256(signer or self.day0_key))

    def request(self, **changes: Any) -> pb.RegisterEndEntityRequest:
        """RegisterEndEntity as the CM proxy would send it."""
        request_id = changes.get("request_id") or str(uuid.uuid4())
        fields: dict[str, Any] = {
            "nf_instance_id": self.nf_instance_id,
            "nf_type": self.nf_type,
            "fqdns": [self.fqdn],
            "tenant": TENANT,
            "certificate_profile": "nf",
            "iak_delivery_mode": pb.IAK_DELIVERY_MODE_WRAPPED,
            "nf_statement": self.statement(request_id),
            "day0_chain": [der(self.day0_certificate)],
            "day0_root": DAY0_ROOT,
            "request_id": request_id,
        }
        return pb.RegisterEndEntityRequest(**(fields | changes))

    def accept(self, answer: pb.RegisterEndEntityResponse) -> Iak:
        """The IAK out of the registration's answer, unwrapped as the NF's token would."""
        parts = jose.split(answer.enrolment_info, typ=ENROLMENT_INFO_TYP, algorithms=frozenset({"ES256"}))
        info = jose.parse_payload(parts, EnrolmentInfo)
        return Iak(self, info, self.transport_key.decrypt(jose.b64url_decode(info.wrapped_iak), _OAEP))


@dataclass(frozen=True)
class Iak:
    """A registered NF with its IAK in clear, and the key that it wants certified."""

    nf: SoftNf
    info: EnrolmentInfo
    value: bytes
    key: Key = field(default_factory=new_key)

    def csr(
        self,
        key: Key | None = None,
        names: Sequence[x509.GeneralName] | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> bytes:
        """The NF's CSR, DER; or one with other names or further extensions."""
        if names is None:
            names = [x509.UniformResourceIdentifier(urn(self.nf.nf_instance_id)), x509.DNSName(self.nf.fqdn)]
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(key or self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def header(self, **changes: object) -> dict[str, object]:
        return {"alg": "HS256", "typ": ENROL_TYP, "kid": self.info.reference, "url": ENROL_URL} | changes

    def payload(self, *, csr: bytes | None = None, **changes: object) -> dict[str, object]:
        return {
            "ca_id": self.info.ca_id,
            "registration": self.info.registration,
            "nf_instance_id": self.nf.nf_instance_id,
            "request_id": str(uuid.uuid4()),
            "csr": jose.b64url(self.csr() if csr is None else csr),
        } | changes

    def proof(
        self,
        *,
        secret: bytes | None = None,
        header: dict[str, object] | None = None,
        csr: bytes | None = None,
        **payload: object,
    ) -> str:
        """Step 9's request; the arguments replace what they name."""
        changed = self.payload(csr=csr, **payload)
        return jws(self.header(**(header or {})), changed, hs256(self.value if secret is None else secret))

    def confirmation(
        self,
        certificate: bytes,
        *,
        signer: Callable[[bytes], bytes] | None = None,
        header: dict[str, object] | None = None,
        **payload: object,
    ) -> str:
        """ConfirmCertificate's proof by the certificate's key, which must be an EC key here."""
        fingerprint = jose.b64url(jose.sha256(certificate))
        fields = {
            "ca_id": self.info.ca_id,
            "registration": self.info.registration,
            "nf_instance_id": self.nf.nf_instance_id,
            "request_id": str(uuid.uuid4()),
            "certificate_sha256": fingerprint,
        } | payload
        parts = {"alg": "ES256", "typ": CONFIRM_TYP, "kid": fingerprint, "url": CONFIRM_URL} | (header or {})
        if signer is None:
            assert isinstance(self.key, ec.EllipticCurvePrivateKey)
            signer = es256(self.key)
        return jws(parts, fields, signer)

    def renewal(
        self,
        certificate: bytes,
        new_key: Key,
        *,
        signer: Callable[[bytes], bytes] | None = None,
        header: dict[str, object] | None = None,
        csr: bytes | None = None,
        **payload: object,
    ) -> str:
        """RenewCertificate's proof by the key of ``certificate``: this one's unless told otherwise."""
        kid = jose.b64url(jose.sha256(certificate))
        parts = {"alg": "ES256", "typ": RENEW_TYP, "kid": kid, "url": RENEW_URL} | (header or {})
        if signer is None:
            assert isinstance(self.key, ec.EllipticCurvePrivateKey)
            signer = es256(self.key)
        return jws(parts, self.payload(csr=self.csr(new_key) if csr is None else csr, **payload), signer)

    def renewed(self, response: str, proof: str) -> bytes:
        """The successor, DER, of a response that verifies and answers ``proof``."""
        return jose.b64url_decode(self._read(response, RENEW_URL, EnrolResponse, proof).certificate)

    def certificate(self, response: str, proof: str) -> bytes:
        """The certificate, DER, of a response that verifies and answers ``proof``."""
        return jose.b64url_decode(self._read(response, ENROL_URL, EnrolResponse, proof).certificate)

    def confirmed(self, response: str, proof: str) -> ConfirmResponse:
        return self._read(response, CONFIRM_URL, ConfirmResponse, proof)

    def _read(self, response: str, url: str, kind: type[Any], proof: str) -> Any:
        signer = x509.load_der_x509_certificate(jose.b64url_decode(self.info.response_certificate)).public_key()
        parts = jose.split(response, typ=RESPONSE_TYP, url=url, algorithms=frozenset({"ES256"}))
        jose.verify(signer, parts)
        payload = jose.parse_payload(parts, kind)
        assert payload.request_sha256 == jose.b64url(jose.sha256(proof.encode()))
        assert payload.registration == self.info.registration
        return payload
