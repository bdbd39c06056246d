"""What the unit tests share: names, cached keys, an NF CA with software keys, DER by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from ca_ra.authority import Authorities, Authority, StoredCa
from nftrust.errors import NftrustError, Reason
from nftrust.x509 import authority, issuance
from nftrust.x509.keys import NfPublicKey, signature_hash
from nftrust.x509.names import NfIdentity, subject
from nftrust.x509.profile import CertificateProfile, Issuer

T = TypeVar("T")

HOME = "5gc.mnc001.mcc001.3gppnetwork.org"
NF_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
ENROLMENT = "9b2d3f4a-1c5e-4d6f-8a7b-0c1d2e3f4a5b"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)

AMF = NfIdentity(NF_ID, "AMF", (f"one.amf.{HOME}",))
SUBJECT = subject("XX", HOME)
PROFILE = CertificateProfile("nf", 30 * DAY)


@contextmanager
def refused(reason: Reason) -> Iterator[pytest.ExceptionInfo[NftrustError]]:
    """The block must be refused, with this reason."""
    with pytest.raises(NftrustError) as caught:
        yield caught
    assert caught.value.reason is reason, f"{caught.value.reason}: {caught.value.message}"


def refusal(call: Callable[[], T]) -> tuple[T | None, Reason | None]:
    """What the call gives, or the reason of its refusal; any other exception comes through."""
    try:
        return call(), None
    except NftrustError as error:
        return None, error.reason


@cache
def ec_key(which: str = "one", curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:
    """One key per name and curve."""
    curves = {"secp256r1": ec.SECP256R1, "secp384r1": ec.SECP384R1, "secp521r1": ec.SECP521R1}
    return ec.generate_private_key(curves[curve]())


@cache
def rsa_key(bits: int = 3072, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """One key per size."""
    return rsa.generate_private_key(exponent, bits)


def spki(key: NfPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def raw_signature(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """r‖s over a digest, as PKCS #11 returns it."""
    algorithm = hashes.SHA384() if len(digest) == 48 else hashes.SHA256()
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(algorithm))))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


@dataclass(frozen=True)
class NfCa:
    """An operator's root, its issuing CA and its response key, in software. ``name`` tells their keys apart."""

    name: str = "ca"
    curve: str = "secp256r1"
    lifetime: timedelta = 10 * YEAR

    @cached_property
    def root_key(self) -> ec.EllipticCurvePrivateKey:
        return ec_key(f"{self.name} root", self.curve)

    @cached_property
    def issuing_key(self) -> ec.EllipticCurvePrivateKey:
        return ec_key(f"{self.name} issuing", self.curve)

    @cached_property
    def response_key(self) -> ec.EllipticCurvePrivateKey:
        return ec_key(f"{self.name} response")

    @cached_property
    def root(self) -> x509.Certificate:
        return authority.make_root(self.root_key, authority.ca_name("XX", HOME, "root"), NOW, self.lifetime)

    @cached_property
    def issuing(self) -> x509.Certificate:
        name = authority.ca_name("XX", HOME, "issuing")
        return authority.make_issuing(
            self.root_key, self.root, self.issuing_key.public_key(), name, NOW, self.lifetime / 2
        )

    @cached_property
    def response(self) -> x509.Certificate:
        name = authority.ca_name("XX", HOME, "response")
        return authority.make_response_certificate(
            self.issuing_key, self.issuing, self.response_key.public_key(), name, NOW
        )

    @property
    def chain(self) -> list[x509.Certificate]:
        """Issuing CA, root."""
        return [self.issuing, self.root]

    @property
    def issuer(self) -> Issuer:
        base = "http://pki.example.org/ca"
        return Issuer(self.issuing, f"{base}.crl", f"{base}.cer", f"{base}/ocsp", SUBJECT)

    def issue(
        self,
        identity: NfIdentity = AMF,
        key: NfPublicKey | None = None,
        profile: CertificateProfile = PROFILE,
        now: datetime = NOW,
    ) -> x509.Certificate:
        """An NF certificate by the product's two phases."""
        prepared = issuance.prepare(profile, identity, key or ec_key("nf").public_key(), self.issuer, now)
        return x509.load_der_x509_certificate(prepared.assemble(raw_signature(self.issuing_key, prepared.digest)))


@cache
def nf_ca(name: str = "ca", curve: str = "secp256r1") -> NfCa:
    """One CA per name and curve."""
    return NfCa(name, curve)


def tlv(tag: int, value: bytes) -> bytes:
    """One DER value."""
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + value


def sign_csr_info(
    info: bytes, key: ec.EllipticCurvePrivateKey, algorithm: hashes.HashAlgorithm, algorithm_oid: str
) -> bytes:
    """A PKCS #10 request around any CertificationRequestInfo; ``algorithm_oid`` is the OID's content, hexadecimal."""
    signature = key.sign(info, ec.ECDSA(algorithm))
    return tlv(0x30, info + tlv(0x30, tlv(0x06, bytes.fromhex(algorithm_oid))) + tlv(0x03, b"\0" + signature))


def rebuild(
    source: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    *,
    drop: tuple[x509.ObjectIdentifier, ...] = (),
    put: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    **fields: object,
) -> x509.Certificate:
    """``source`` with other extensions and fields, signed by ``signer``; an extension put replaces one of its kind."""
    value = {
        "issuer": source.issuer,
        "subject": source.subject,
        "serial": source.serial_number,
        "key": source.public_key(),
        "not_before": source.not_valid_before_utc,
        "not_after": source.not_valid_after_utc,
        **fields,
    }
    builder = (
        x509.CertificateBuilder()
        .issuer_name(value["issuer"])
        .subject_name(value["subject"])
        .serial_number(value["serial"])
        .public_key(value["key"])
        .not_valid_before(value["not_before"])
        .not_valid_after(value["not_after"])
    )
    kinds = {extension.oid: (extension, critical) for extension, critical in put}
    extensions = {item.oid: (item.value, item.critical) for item in source.extensions if item.oid not in drop}
    for extension, critical in {**extensions, **kinds}.values():
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, signature_hash(signer.public_key()))


def stored_ca(generation: int, **times: datetime | None) -> StoredCa:
    """A generation as stored; the first is active, further ones are announced, unless ``times`` say otherwise."""
    known: dict[str, datetime | None] = {
        "announce_time": NOW,
        "activate_after": NOW,
        "activate_time": NOW if generation == 1 else None,
        "retire_time": None,
    }
    return StoredCa(generation=generation, chain=None, response_certificate=None, **(known | times))  # type: ignore[arg-type]


def authorities(*cas: Authority, stored: Sequence[StoredCa] | None = None) -> Authorities:
    """The CAs of a CA/RA, in memory; the first is active unless ``stored`` says otherwise."""
    by_generation = {each.generation: each for each in cas}
    nowhere: Any = None
    made = Authorities(nowhere, lambda each: by_generation[each.generation])
    made.adopt([stored_ca(each.generation) for each in cas] if stored is None else stored)
    return made
