"""NFs made in software, to load the CA/RA without as many tokens.

They use the tls-only delivery, so that the load process can compute proofs
itself; the CA/RA's work for a redemption is the same in both modes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from bench import labs
from nftrust import jose, pki
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.api.ca_ra.v1.registration_service_pb2_grpc import RegistrationServiceStub
from nftrust.identity import urn
from nftrust.lab.layout import DAY0_ROOT, HOME_DOMAIN, TENANT, Lab
from nftrust.messages import ENROL_TYP, ENROL_URL, STATEMENT_TYP, EnrolmentInfo, EnrolProof, NfStatement
from nftrust.x509.keys import spki
from nftrust.x509.path import der
from nftrust.x509.services import bare_csr

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SoftNf:
    """An NF as the CA/RA sees it before registration."""

    nf_instance_id: str
    fqdn: str
    request: pb.RegisterEndEntityRequest


def make_nfs(lab: Lab, count: int) -> list[SoftNf]:
    """Day-0 certificates by the lab's root; transport keys nobody holds (tls-only never uses them)."""
    made = []
    with pki.Pki.open(lab.pki) as opened:
        for _ in range(count):
            nf_instance_id, request_id = str(uuid.uuid4()), str(uuid.uuid4())
            day0_key = ec.generate_private_key(ec.SECP256R1())
            certificate = opened.day0_certificate(bare_csr(day0_key), nf_instance_id)
            modulus = secrets.randbits(3072) | 1 << 3071 | 1
            statement = NfStatement(
                nf_instance_id=nf_instance_id,
                transport_key=jose.b64url(spki(rsa.RSAPublicNumbers(65537, modulus).public_key())),
                enrolment=request_id,
                nonce=jose.b64url(secrets.token_bytes(32)),
            )
            fqdn = f"b{nf_instance_id[:8]}.amf.{HOME_DOMAIN}"
            request = pb.RegisterEndEntityRequest(
                nf_instance_id=nf_instance_id,
                nf_type="AMF",
                fqdns=[fqdn],
                tenant=TENANT,
                certificate_profile="nf",
                iak_delivery_mode=pb.IAK_DELIVERY_MODE_TLS_ONLY,
                nf_statement=jose.sign(day0_key, jose.Header(alg="ES256", typ=STATEMENT_TYP), statement),
                day0_chain=[der(certificate)],
                day0_root=DAY0_ROOT,
                request_id=request_id,
            )
            made.append(SoftNf(nf_instance_id, fqdn, request))
    return made


async def register(lab: Lab, nfs: Sequence[SoftNf], concurrency: int) -> list[pb.RegisterEndEntityResponse]:
    """Steps 5 and 6 for all of them, as OAM."""
    channel = labs.oam_channel(lab, "ca_ra")
    stub: Any = RegistrationServiceStub(channel)
    try:
        return await at_once([partial(stub.RegisterEndEntity, nf.request) for nf in nfs], concurrency)
    finally:
        await channel.close()


def make_csr(nf_instance_id: str, fqdn: str) -> bytes:
    """Step 8, the key in software; DER."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn(nf_instance_id)), x509.DNSName(fqdn)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(names, critical=True).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


def make_proof(nf: SoftNf, answer: pb.RegisterEndEntityResponse) -> str:
    """Step 8 and the proof of step 9."""
    jws = jose.split(answer.enrolment_info, typ="nftrust-enrolment-info+jws", algorithms=frozenset({"ES256"}))
    info = jose.parse_payload(jws, EnrolmentInfo)
    request = EnrolProof(
        ca_id=info.ca_id,
        registration=info.registration,
        nf_instance_id=nf.nf_instance_id,
        request_id=str(uuid.uuid4()),
        csr=jose.b64url(make_csr(nf.nf_instance_id, nf.fqdn)),
    )
    data = jose.signing_input(jose.Header(alg="HS256", typ=ENROL_TYP, kid=info.reference, url=ENROL_URL), request)
    return jose.join(data, hmac.digest(answer.iak, data, hashlib.sha256))


async def at_once(calls: Sequence[Callable[[], Awaitable[T]]], concurrency: int) -> list[T]:
    """All results in order, at most ``concurrency`` under way."""
    gate = asyncio.Semaphore(concurrency)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await call()

    return list(await asyncio.gather(*map(one, calls)))
