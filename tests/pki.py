"""A small certificate authority for tests: real certificates, made in memory, written as PEM.

It issues what the product must refuse as readily as what it must accept,
therefore it does not use the product's own issuing code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nftrust.identity import LAB_MARKER_OID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
BOTH = (CLIENT, SERVER)
DAY = timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS #8, PEM, not encrypted."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@dataclass(frozen=True)
class Leaf:
    """An end-entity certificate with its key and the intermediates below the root."""

    certificate: x509.Certificate
    key: Key
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def chain_pem(self) -> bytes:
        """The leaf, then the intermediates."""
        return b"".join(pem(certificate) for certificate in (self.certificate, *self.intermediates))

    @property
    def key_pem(self) -> bytes:
        return key_pem(self.key)

    @property
    def sha256(self) -> str:
        """SHA-256 of the certificate, hexadecimal."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """``<name>.pem`` and ``<name>.key`` (0600) in ``directory``: certificate chain, key."""
        certificate_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
        key_path.touch(mode=0o600)
        key_path.write_bytes(self.key_pem)
        certificate_path.write_bytes(self.chain_pem)
        return certificate_path, key_path


@dataclass(frozen=True)
class Authority:
    """A CA. ``issuers`` are the intermediates that a leaf's chain carries, this CA first; empty for a root."""

    certificate: x509.Certificate
    key: Key
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return pem(self.certificate)

    def write(self, directory: Path, name: str) -> Path:
        """``<name>.pem`` in ``directory``: the CA's certificate."""
        path = directory / f"{name}.pem"
        path.write_bytes(self.pem)
        return path

    def issue(
        self,
        *,
        uri_sans: Sequence[str] = (),
        dns_sans: Sequence[str] = (),
        ip_sans: Sequence[str] = (),
        eku: Sequence[x509.ObjectIdentifier] = BOTH,
        lifetime: timedelta = DAY,
        not_before: datetime | None = None,
        common_name: str = "leaf",
        key: Key | None = None,
        lab: bool = False,
    ) -> Leaf:
        """An end-entity certificate; a negative ``lifetime`` gives one that has expired."""
        key = key or new_key()
        end = datetime.now(UTC) + lifetime
        start = not_before or min(datetime.now(UTC), end) - timedelta(hours=1)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uri_sans]
        names += [x509.DNSName(dns) for dns in dns_sans]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ip_sans]
        builder = (
            _builder(common_name, self.certificate.subject, key, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if eku:
            builder = builder.add_extension(x509.ExtendedKeyUsage(eku), critical=False)
        if lab:
            builder = builder.add_extension(x509.UnrecognizedExtension(LAB_MARKER_OID, b"\x05\x00"), critical=False)
        return Leaf(builder.sign(self.key, hashes.SHA256()), key, self.issuers)

    def intermediate(self, name: str) -> Authority:
        """A CA below this one."""
        key = new_key()
        certificate = _ca_certificate(name, self.certificate.subject, key, self.key, DAY)
        return Authority(certificate, key, (certificate, *self.issuers))


def make_ca(name: str, *, key: Key | None = None, lifetime: timedelta = 30 * DAY) -> Authority:
    """A self-signed root."""
    key = key or new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Authority(_ca_certificate(name, subject, key, key, lifetime), key)


def issue(ca: Authority, **options: object) -> Leaf:
    """``ca.issue(…)``, as a function."""
    return ca.issue(**options)  # type: ignore[arg-type]


def service_leaf(ca: Authority, role: str, name: str = "one", *, lab: bool = False) -> Leaf:
    """A service certificate as `nftrust pki` would issue it, for ``localhost``."""
    uri = f"urn:nftrust:{role}:{name}"
    return ca.issue(
        uri_sans=[uri], dns_sans=["localhost"], ip_sans=["127.0.0.1"], lab=lab, common_name=f"{role} {name}"
    )


def pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(common_name: str, issuer: x509.Name, key: Key, start: datetime, end: datetime) -> x509.CertificateBuilder:
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(public_key)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _ca_certificate(name: str, issuer: x509.Name, key: Key, signer: Key, lifetime: timedelta) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        _builder(name, issuer, key, now - timedelta(hours=1), now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
