"""The services PKI: one token-held CA for services and OAM, one token-held day-0 root.

A PKI directory holds ``pki.json``, ``services-ca.pem`` and ``day0-root.pem``;
the keys are in the token that ``pki.json`` names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nftrust.config import Section, TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, write_atomically
from nftrust.identity import is_home_domain
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import TokenEcPrivateKey, token_private_key
from nftrust.pkcs11.operations import GenerateKeyPair, ListKeys
from nftrust.x509.path import pem_chain
from nftrust.x509.services import PkiAuthority, issue_day0, issue_service, make_pki_root

SERVICES_KEY, DAY0_KEY = "services-ca", "day0-root"
SERVICES_CA_FILE, DAY0_ROOT_FILE, SETTINGS_FILE = "services-ca.pem", "day0-root.pem", "pki.json"
ROOT_LIFETIME = timedelta(days=10 * 365)
#: Service certificates are short-lived (security rule 15).
SERVICE_LIFETIME = timedelta(days=30)
DAY0_LIFETIME = timedelta(days=90)


class PkiSettings(Section, frozen=True, kw_only=True):
    """What ``pki.json`` holds."""

    home_domain: str
    token: TokenConfig
    #: Marks what is issued, so that production servers refuse it (security rule 17).
    lab: bool = False


@dataclass(frozen=True, slots=True)
class Pki:
    """An opened PKI."""

    directory: Path
    settings: PkiSettings
    services: PkiAuthority
    day0: PkiAuthority

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path) -> Iterator[Pki]:
        """Raises NftrustError(CONFIG_INVALID, TOKEN_MISSING, PIN_INCORRECT, KEY_MISSING)."""
        settings = _read_settings(directory)
        client = TokenClient.worker(settings.token)
        try:
            client.ready()
            services, day0 = (
                PkiAuthority(
                    x509.load_pem_x509_certificate(read_file(directory / name)), _key(client, label), settings.lab
                )
                for name, label in ((SERVICES_CA_FILE, SERVICES_KEY), (DAY0_ROOT_FILE, DAY0_KEY))
            )
            yield cls(directory, settings, services, day0)
        finally:
            client.close()

    def service_certificate(
        self, key: ec.EllipticCurvePublicKey, role: str, name: str, hosts: Sequence[str]
    ) -> x509.Certificate:
        """A TLS certificate for a service or an OAM principal."""
        now = datetime.now(UTC)
        return issue_service(self.services, key, role=role, name=name, hosts=hosts, now=now, lifetime=SERVICE_LIFETIME)

    def service_files(self, directory: Path, stem: str, role: str, name: str, hosts: Sequence[str]) -> None:
        """A fresh key (0600) and its certificate as ``<stem>.key`` and ``<stem>.pem``."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(directory / f"{stem}.key", pem)
        certificate = self.service_certificate(key.public_key(), role, name, hosts)
        write_atomically(directory / f"{stem}.pem", pem_chain([certificate]), 0o644)

    def day0_certificate(self, csr_pem: bytes, nf_instance_id: str) -> x509.Certificate:
        """The day-0 certificate of the instance that OAM names."""
        csr = load_csr(csr_pem)
        return issue_day0(
            self.day0,
            csr,
            nf_instance_id=nf_instance_id,
            home_domain=self.settings.home_domain,
            now=datetime.now(UTC),
            lifetime=DAY0_LIFETIME,
        )


def initialise(directory: Path, settings: PkiSettings) -> None:
    """Make both roots; what is there already stays. Raises NftrustError as :meth:`Pki.open`."""
    if not is_home_domain(settings.home_domain):
        raise NftrustError(Reason.CONFIG_INVALID, "home_domain is not one of TS 23.003 clause 28.2")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = TokenClient.worker(settings.token)
    try:
        client.ready()
        present = {key.label for key in client.call(ListKeys())}
        for label, name, title in (
            (SERVICES_KEY, SERVICES_CA_FILE, "Services CA"),
            (DAY0_KEY, DAY0_ROOT_FILE, "Day-0 Root"),
        ):
            if label not in present:
                client.call(GenerateKeyPair(label, "ec-p256"))
            if not (directory / name).exists():
                root = make_pki_root(_key(client, label), title, datetime.now(UTC), ROOT_LIFETIME)
                write_atomically(directory / name, pem_chain([root]), 0o644)
    finally:
        client.close()
    write_atomically(directory / SETTINGS_FILE, msgspec.json.encode(settings, enc_hook=str))


def load_csr(pem: bytes) -> x509.CertificateSigningRequest:
    """Raises NftrustError(CSR_MALFORMED, CSR_SIGNATURE_INVALID)."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        signed = csr.is_signature_valid
    except Exception:  # noqa: BLE001 - whatever the parser raises
        raise NftrustError(Reason.CSR_MALFORMED) from None
    if not signed:
        raise NftrustError(Reason.CSR_SIGNATURE_INVALID)
    return csr


def _read_settings(directory: Path) -> PkiSettings:
    def to_path(target: type, value: Any) -> Any:
        return target(value)

    try:
        return msgspec.json.decode(read_file(directory / SETTINGS_FILE), type=PkiSettings, dec_hook=to_path)
    except (msgspec.MsgspecError, ValueError):
        raise NftrustError(Reason.CONFIG_INVALID, f"{directory / SETTINGS_FILE}: cannot be read") from None


def _key(client: TokenClient, label: str) -> TokenEcPrivateKey:
    key = token_private_key(client, label)
    assert isinstance(key, TokenEcPrivateKey)
    return key
