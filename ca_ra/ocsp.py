"""OCSP (RFC 6960, RFC 5019, RFC 9654) with a delegated responder whose key is in the CA's token.

The responder's certificate says that it is not to be checked, so it is short:
each front has one issued for itself and replaces it in time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from ca_ra.authority import OCSP_PATH, Authorities, Authority
from ca_ra.model import Revocation
from nftrust.clock import GuardedClock
from nftrust.errors import NftrustError, Reason
from nftrust.http import Request, Response
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.pkcs11.operations import GenerateKeyPair, ListKeys
from nftrust.x509.authority import ca_name, make_ocsp_certificate
from nftrust.x509.keys import signature_hash

log = logging.getLogger("ca_ra.ocsp")

#: How long a relying party may keep an answer: a revocation is to be known within seconds, or nearly.
ANSWER_LIFETIME = timedelta(minutes=5)
RESPONDER_LIFETIME = timedelta(days=7)
MAX_REQUEST_BYTES = 4096
#: RFC 9654 clause 2.1.
MAX_NONCE_BYTES = 128
#: Answers being signed at a time: whoever asks for more waits, so that enrolments get their share of the token.
SIGNING = 4
_CONTENT_TYPE = "application/ocsp-response"
#: Of the issuer's name and key.
_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {"sha1": hashes.SHA1, "sha256": hashes.SHA256}


class StatusSource(Protocol):
    """What the CA knows of its certificates."""

    async def status(self, generation: int, serial: str) -> tuple[bool, Revocation | None]:
        """Whether that CA has issued the certificate, and its revocation. Raises NftrustError."""
        ...

    async def record_responder(self, serial: str, sha256: bytes) -> None:
        """A responder was certified. Raises NftrustError."""
        ...


@dataclass(frozen=True, slots=True)
class Responder:
    """The key that signs answers, and its certificate."""

    key: TokenEcPrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, token: TokenClient, authority: Authority, now: datetime) -> Responder:
        """Blocks while the token works. Raises NftrustError(TOKEN_UNAVAILABLE, CA_EXPIRED)."""
        labels = authority.labels
        if not any(key.label == labels.ocsp for key in token.call(ListKeys())):
            try:
                token.call(GenerateKeyPair(labels.ocsp, "ec-p256"))
            except NftrustError as error:
                if error.reason is not Reason.KEY_EXISTS:  # another front was first
                    raise
        ca_key, key = (token_private_key(token, label) for label in (labels.ca, labels.ocsp))
        assert isinstance(ca_key, TokenEcPrivateKey)
        assert isinstance(key, TokenEcPrivateKey)
        ca = authority.chain[0]
        if authority.ended(now):
            raise NftrustError(Reason.CA_EXPIRED)
        country, domain = (ca.subject.get_attributes_for_oid(oid)[0].value for oid in _NAME)
        name = ca_name(str(country), str(domain), "OCSP Responder")
        certificate = make_ocsp_certificate(ca_key, ca, key.public_key(), name, now, RESPONDER_LIFETIME)
        return cls(key, certificate)


_NAME = (x509.NameOID.COUNTRY_NAME, x509.NameOID.ORGANIZATION_NAME)


class OcspService:
    """Answers over HTTP, POST and GET."""

    def __init__(self, authorities: Authorities, token: TokenClient, source: StatusSource, clock: GuardedClock) -> None:
        self._authorities = authorities
        self._token = token
        self._source = source
        self._clock = clock
        #: By generation of the CA.
        self._responders: dict[int, Responder] = {}
        self._making = asyncio.Lock()
        self._signing = asyncio.Semaphore(SIGNING)

    async def handle(self, request: Request) -> Response:
        """What RFC 6960 appendix A.1 and RFC 5019 clause 5 ask of a responder over HTTP."""
        try:
            question = _parse(_body(request))
        except ValueError:
            return _answer(ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST))
        authority = self._concerned(question)
        if authority is None:
            # RFC 5019 clause 2.2.3: this responder cannot answer for that issuer.
            return _answer(ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED))
        try:
            answer = await self._reply(authority, question)
        except NftrustError as error:
            log.warning("OCSP request put off", extra={"reason": error.reason.name})
            return _answer(ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER))
        return _answer(answer)

    def _concerned(self, question: ocsp.OCSPRequest) -> Authority | None:
        """The CA that the question is for."""
        algorithm = _HASHES.get(question.hash_algorithm.name)
        if algorithm is None:
            return None
        asked = question.issuer_name_hash, question.issuer_key_hash
        ours = self._authorities.publishing(self._clock.now())
        return next((each for each in ours if _issuer_hashes(each.chain[0], algorithm) == asked), None)

    async def _reply(self, authority: Authority, question: ocsp.OCSPRequest) -> ocsp.OCSPResponse:
        issued, revocation = await self._source.status(authority.generation, f"{question.serial_number:x}")
        now = self._clock.now().replace(microsecond=0)
        responder = await self._present_responder(authority, now)
        status = ocsp.OCSPCertStatus.GOOD if issued else ocsp.OCSPCertStatus.UNKNOWN
        builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
            issuer_name_hash=question.issuer_name_hash,
            issuer_key_hash=question.issuer_key_hash,
            serial_number=question.serial_number,
            algorithm=question.hash_algorithm,
            cert_status=status if revocation is None else ocsp.OCSPCertStatus.REVOKED,
            this_update=now,
            next_update=now + ANSWER_LIFETIME,
            revocation_time=None if revocation is None else revocation.time.replace(microsecond=0),
            revocation_reason=None if revocation is None else revocation.reason.flag,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
        builder = builder.certificates([responder.certificate])
        for extension in question.extensions:
            if isinstance(extension.value, x509.OCSPNonce):
                builder = builder.add_extension(extension.value, critical=False)
        algorithm = signature_hash(responder.key.public_key())
        async with self._signing:
            return await asyncio.to_thread(builder.sign, responder.key, algorithm)

    async def _present_responder(self, authority: Authority, now: datetime) -> Responder:
        async with self._making:
            present = self._responders.get(authority.generation)
            if present is None or now > _middle(present.certificate):
                present = await asyncio.to_thread(Responder.make, self._token, authority, now)
                made = present.certificate
                await self._source.record_responder(f"{made.serial_number:x}", made.fingerprint(hashes.SHA256()))
                self._responders[authority.generation] = present  # not before the audit log knows of it
            return present


def _middle(certificate: x509.Certificate) -> datetime:
    """Of its life, which the end of the CA may have cut short."""
    start = certificate.not_valid_before_utc
    return start + (certificate.not_valid_after_utc - start) / 2


def _body(request: Request) -> bytes:
    """The request, DER, of at most MAX_REQUEST_BYTES. Raises ValueError."""
    if request.method == "POST":
        encoded = request.body
    else:  # GET {url}/{url-encoding of base-64 encoding of the DER encoding of the request}
        text = urllib.parse.unquote(request.path.removeprefix(OCSP_PATH).lstrip("/"))
        if len(text) > MAX_REQUEST_BYTES:
            raise ValueError("too long")
        try:
            encoded = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
    if not 0 < len(encoded) <= MAX_REQUEST_BYTES:
        raise ValueError("too long")
    return encoded


def _parse(encoded: bytes) -> ocsp.OCSPRequest:
    """A question about one certificate. Raises ValueError for whatever is none."""
    try:
        question = ocsp.load_der_ocsp_request(encoded)
        if not 0 < question.serial_number < 1 << 159:
            raise ValueError("serial number")
        assert question.hash_algorithm is not None
        for extension in question.extensions:
            nonce = extension.value.nonce if isinstance(extension.value, x509.OCSPNonce) else b"n"
            if not 0 < len(nonce) <= MAX_NONCE_BYTES:
                raise ValueError("nonce")
            if extension.critical and not isinstance(extension.value, x509.OCSPNonce):
                raise ValueError("unknown critical extension")
    except Exception as error:  # noqa: BLE001 - whatever the parser raises, what was sent is malformed
        raise ValueError(type(error).__name__) from None
    return question


@lru_cache(maxsize=64)
def _issuer_hashes(ca: x509.Certificate, algorithm: type[hashes.HashAlgorithm]) -> tuple[bytes, bytes]:
    """Of the issuer's name and of the bits of its key (RFC 6960 clause 4.1.1)."""
    key = ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return _digest(ca.subject.public_bytes(), algorithm), _digest(point, algorithm)


def _digest(data: bytes, algorithm: type[hashes.HashAlgorithm]) -> bytes:
    hasher = hashes.Hash(algorithm())
    hasher.update(data)
    return hasher.finalize()


def _answer(response: ocsp.OCSPResponse) -> Response:
    return Response(200, response.public_bytes(Encoding.DER), _CONTENT_TYPE)
