"""The OCSP responder: answers, and what it says to what is no question for it."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from ca_ra import ocsp as module
from ca_ra.authority import Authority
from ca_ra.model import Revocation
from ca_ra.ocsp import MAX_REQUEST_BYTES, OcspService, Responder
from nftrust.clock import GuardedClock, SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.http import Request
from nftrust.x509.authority import make_ocsp_certificate
from nftrust.x509.crl import RevocationReason
from tests.unit.support import AMF, NOW, NfCa, authorities

CA = NfCa("ocsp")
OTHER = NfCa("other")
KEY = ec.generate_private_key(ec.SECP256R1())


class Source:
    """What the CA knows, in memory."""

    def __init__(self) -> None:
        self.issued: dict[str, Revocation | None] = {}
        self.error: NftrustError | None = None
        self.responders: list[str] = []

    async def status(self, generation: int, serial: str) -> tuple[bool, Revocation | None]:
        if self.error is not None:
            raise self.error
        return serial in self.issued, self.issued.get(serial)

    async def record_responder(self, serial: str, sha256: bytes) -> None:
        self.responders.append(serial)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def service(source: Source) -> OcspService:
    authority = Authority.of(
        CA.chain, CA.response, public_url="http://localhost:1", country="DE", home_domain="5gc.example"
    )
    made = OcspService(authorities(authority), None, source, GuardedClock(SystemClock()))  # type: ignore[arg-type]
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OCSP")])
    certificate = make_ocsp_certificate(
        CA.issuing_key, CA.issuing, KEY.public_key(), subject, NOW, module.RESPONDER_LIFETIME
    )
    made._responders[1] = Responder(KEY, certificate)  # type: ignore[arg-type]
    return made


def question(
    serial: int, issuer: x509.Certificate = CA.issuing, algorithm: Any = None, nonce: bytes | None = None
) -> bytes:
    algorithm = algorithm or hashes.SHA256()

    def digest(data: bytes) -> bytes:
        hasher = hashes.Hash(algorithm)
        hasher.update(data)
        return hasher.finalize()

    key = issuer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    point = key.public_bytes(Encoding.X962, module.PublicFormat.UncompressedPoint)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        digest(issuer.subject.public_bytes()), digest(point), serial, algorithm
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def post(body: bytes) -> Request:
    return Request("POST", "/ocsp", body)


def get(body: bytes) -> Request:
    return Request("GET", "/ocsp/" + urllib.parse.quote(base64.b64encode(body).decode(), safe=""))


async def ask(service: OcspService, request: Request) -> ocsp.OCSPResponse:
    answer = await service.handle(request)
    assert (answer.status, answer.content_type) == (200, "application/ocsp-response")
    return ocsp.load_der_ocsp_response(answer.body)


async def test_a_responder_is_made_again_in_the_second_half_of_its_life(
    service: OcspService, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the end of the CA cuts that life short."""
    end, made = NOW + timedelta(hours=1), []

    class Made:
        def __init__(self, now: datetime) -> None:
            self.certificate = make_ocsp_certificate(
                CA.issuing_key, CA.issuing, KEY.public_key(), CA.issuing.subject, now, end - now
            )

    def make(token: object, authority: object, now: datetime) -> Made:
        made.append(now)
        return Made(now)

    monkeypatch.setattr(Responder, "make", make)
    service._responders.clear()
    for minutes in (0, 10, 20, 31, 40):
        await service._present_responder(service._authorities.active, NOW + timedelta(minutes=minutes))
    assert made == [NOW, NOW + timedelta(minutes=31)]
    assert len(set(source.responders)) == 2, "and the audit log knows of each"


@pytest.mark.parametrize("send", [post, get])
@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()], ids=lambda algorithm: algorithm.name)
async def test_good_revoked_and_unknown(
    service: OcspService, source: Source, send: Callable[[bytes], Request], algorithm: hashes.HashAlgorithm
) -> None:
    revocation = Revocation(NOW - timedelta(hours=1), RevocationReason.KEY_COMPROMISE)
    source.issued = {"1": None, "2": revocation}
    before = datetime.now(UTC).replace(microsecond=0)
    good, revoked, unknown = [await ask(service, send(question(n, algorithm=algorithm))) for n in (1, 2, 3)]
    assert good.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert revoked.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert revoked.revocation_time_utc == revocation.time
    assert revoked.revocation_reason is x509.ReasonFlags.key_compromise
    assert unknown.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    for answer in (good, revoked, unknown):
        assert answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
        [responder] = answer.certificates
        responder.verify_directly_issued_by(CA.issuing)
        assert answer.signature_hash_algorithm is not None
        KEY.public_key().verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
        assert answer.next_update_utc is not None
        assert before <= answer.this_update_utc <= datetime.now(UTC) < answer.next_update_utc


def test_the_responders_certificate() -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "OCSP")])
    made = make_ocsp_certificate(CA.issuing_key, CA.issuing, KEY.public_key(), subject, NOW, timedelta(days=7))
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (usage.critical, list(usage.value)) == (True, [x509.ExtendedKeyUsageOID.OCSP_SIGNING])
    assert made.extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert made.not_valid_after_utc - NOW <= timedelta(days=7)


async def test_a_nonce_comes_back(service: OcspService) -> None:
    for nonce in (b"n", bytes(range(128))):
        answer = await ask(service, post(question(1, nonce=nonce)))
        assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    assert len((await ask(service, post(question(1)))).extensions) == 0


@pytest.mark.parametrize("nonce", [b"", bytes(129)])
async def test_a_nonce_of_another_size_is_refused(service: OcspService, nonce: bytes) -> None:
    answer = await ask(service, post(question(1, nonce=nonce)))
    assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


@pytest.mark.parametrize(
    "body", [question(1, issuer=OTHER.issuing), question(1, issuer=CA.root), question(1, algorithm=hashes.SHA384())]
)
async def test_another_issuer_is_none_of_ours(service: OcspService, source: Source, body: bytes) -> None:
    source.issued = {"1": None}
    assert (await ask(service, post(body))).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    "request_",
    [
        post(b""),
        post(b"\xff" * 100),
        post(question(1) + b"\0"),
        post(question(1)[:-1]),
        post(bytes(MAX_REQUEST_BYTES + 1)),
        Request("GET", "/ocsp/"),
        Request("GET", "/ocsp/not base64"),
        Request("GET", "/ocsp/" + "A" * 9000),
    ],
    ids=range(8),
)
async def test_what_is_no_question(service: OcspService, request_: Request) -> None:
    assert (await ask(service, request_)).response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_raises_only_value_errors(body: bytes) -> None:
    for encoded in (body, question(1)[:20] + body, question(1) + body):
        try:
            module._parse(encoded)
        except ValueError:
            continue


class SlowKey(ec.EllipticCurvePrivateKey):
    """Counts who signs at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def sign(self, data: Any, signature_algorithm: Any) -> bytes:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self._lock:
            self.now -= 1
        return KEY.sign(data, signature_algorithm)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return KEY.public_key()

    curve = key_size = exchange = private_numbers = private_bytes = None  # type: ignore[assignment]

    def __copy__(self) -> SlowKey:
        return self

    def __deepcopy__(self, memo: object) -> SlowKey:
        return self


async def test_a_flood_of_questions_leaves_the_token_to_others(service: OcspService) -> None:
    key = SlowKey()
    service._responders[1] = Responder(key, service._responders[1].certificate)  # type: ignore[arg-type]
    answers = await asyncio.gather(*(ask(service, post(question(n))) for n in range(1, 30)))
    assert all(answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL for answer in answers)
    assert 1 < key.most <= module.SIGNING


@pytest.mark.parametrize("reason", [Reason.STORAGE_UNAVAILABLE, Reason.TOKEN_UNAVAILABLE])
async def test_an_outage_says_try_later(service: OcspService, source: Source, reason: Reason) -> None:
    source.error = NftrustError(reason)
    assert (await ask(service, post(question(1)))).response_status is ocsp.OCSPResponseStatus.TRY_LATER


def test_an_issued_certificate_points_to_its_status() -> None:
    access = CA.issue(AMF).extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    methods = {item.access_method for item in access}
    assert methods == {x509.AuthorityInformationAccessOID.OCSP, x509.AuthorityInformationAccessOID.CA_ISSUERS}
