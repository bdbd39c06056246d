"""The server's TLS material: read from PEM files, checked, and read again when the files change."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from nftrust.config import Deployment, ServerTlsConfig
from nftrust.errors import NftrustError, Reason
from nftrust.identity import LAB_MARKER_OID

MAX_PEM_BYTES = 256 * 1024

_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[int, int, int] | None, ...]


class ServerCredentials:
    """gRPC server credentials that follow their files.

    gRPC asks before each handshake; files that cannot be used (half written,
    key and certificate of different pairs) are logged once and the material
    last used stays.
    """

    def __init__(self, config: ServerTlsConfig, deployment: Deployment) -> None:
        """Raises NftrustError(CONFIG_INVALID, LAB_CREDENTIAL)."""
        self._config = config
        self._deployment = deployment
        self._seen = self._fingerprint()
        self._initial = self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for ``add_secure_port``; client certificates are demanded where a client CA is configured."""
        demand = self._config.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._initial, self._changed, demand)  # type: ignore[arg-type]

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before every handshake; None means unchanged. Must not raise."""
        seen = self._fingerprint()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            configuration = self._read()
        except NftrustError as error:
            _log.error("TLS files not taken over", extra={"reason": error.message})
            return None
        _log.info("TLS files read", extra={"certificate": str(self._config.certificate)})
        return configuration

    def _fingerprint(self) -> Fingerprint:
        return tuple(_stat(path) for path in self._paths())

    def _paths(self) -> list[Path]:
        config = self._config
        return [path for path in (config.certificate, config.private_key, config.client_ca) if path is not None]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        config = self._config
        chain, key = _read_pem(config.certificate), _read_pem(config.private_key)
        leaf = _certificates(config.certificate, chain)[0]
        _check_pair(config, leaf, key)
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            # Served nevertheless: clients say precisely what is wrong, and a renewal heals it without a restart.
            _log.error("certificate is not valid at this time", extra={"certificate": str(config.certificate)})
        if self._deployment == "production" and any(item.oid == LAB_MARKER_OID for item in leaf.extensions):
            raise NftrustError(Reason.LAB_CREDENTIAL, f"{config.certificate}: made for a lab")
        roots = None
        if config.client_ca is not None:
            roots = _read_pem(config.client_ca)
            _certificates(config.client_ca, roots)
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: cannot be read ({type(error).__name__})") from None
    if len(data) > MAX_PEM_BYTES:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: larger than {MAX_PEM_BYTES} bytes")
    return data


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise NftrustError(Reason.CONFIG_INVALID, f"{path}: holds no PEM certificate") from None


def _check_pair(config: ServerTlsConfig, leaf: x509.Certificate, key_pem: bytes) -> None:
    try:
        key = load_pem_private_key(key_pem, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise NftrustError(Reason.CONFIG_INVALID, f"{config.private_key}: holds no usable PEM key") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise NftrustError(Reason.CONFIG_INVALID, f"{config.private_key}: is not the key of {config.certificate}")
