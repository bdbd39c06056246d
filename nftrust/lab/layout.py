"""What a lab consists of: its folders, its NFs, its ports and `lab.json`."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, write_atomically

HOME_DOMAIN = "5gc.mnc001.mcc001.3gppnetwork.org"
COUNTRY = "DE"
TENANT = "operator"
DAY0_ROOT = "lab"
HOST = "localhost"
ADDRESS = "127.0.0.1"
LAB_FILE = "lab.json"
SETTINGS_FILE = "settings.json"
OPERATOR_FILE = "nftrust.toml"
#: The NFs of a lab, in turn; further ones are AMFs.
NF_TYPES = ("AMF", "SMF", "NRF", "AUSF", "UDM", "PCF", "NSSF", "UPF")


class NfSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One NF of the lab."""

    nf_instance_id: str
    nf_type: str
    fqdn: str
    port: int
    folder: str


class LabSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided once, when the lab is made, and kept when it is started again."""

    nfs: tuple[NfSettings, ...]
    store: str | None = None
    allow_tls_only_iak: bool = False
    #: Fronts of the CA/RA.
    replicas: int = 1
    cmproxy_port: int
    ca_ra_management_port: int
    ca_ra_enrolment_port: int
    http_port: int
    verifier_port: int
    #: Plaintext probes of CA/RA, CM proxy and verifier.
    probe_ports: tuple[int, int, int]
    #: Whether the NRF is the NF of examples/nf-nginx, and where it serves.
    nginx: bool = False
    sba_port: int = 0


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab's folder."""

    directory: Path
    settings: LabSettings

    @classmethod
    def open(cls, directory: Path) -> Lab:
        """Raises NftrustError(CONFIG_INVALID) where there is none."""
        try:
            settings = msgspec.json.decode(read_file(directory / SETTINGS_FILE), type=LabSettings)
        except msgspec.MsgspecError:
            raise NftrustError(Reason.CONFIG_INVALID, f"{directory / SETTINGS_FILE}: cannot be read") from None
        return cls(directory.resolve(), settings)

    @staticmethod
    def exists(directory: Path) -> bool:
        return (directory / SETTINGS_FILE).exists()

    @classmethod
    def make(
        cls,
        directory: Path,
        nfs: int,
        *,
        store: str | None = None,
        allow_tls_only_iak: bool = False,
        replicas: int = 1,
        nginx: bool | None = None,
    ) -> Lab:
        """A new lab, or the one that is there if it was made with the same options. ``nginx`` None: as it was made.

        Raises NftrustError(CONFIG_INVALID) where the options differ.
        """
        directory = directory.resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if cls.exists(directory):
            known = cls.open(directory)
            options = {"store": store, "allow_tls_only_iak": allow_tls_only_iak, "replicas": replicas}
            options |= {} if nginx is None else {"nginx": nginx}
            kept = {name: getattr(known.settings, name) for name in options}
            if (len(known.settings.nfs), kept) != (nfs, options):
                raise NftrustError(Reason.CONFIG_INVALID, f"{directory} is a lab made with other options; remove it")
            return known
        ports = free_ports(nfs + 9)
        types = ("AMF", "NRF") if nginx and nfs == 2 else NF_TYPES
        settings = LabSettings(
            nfs=tuple(_nf(index, ports[index + 9], types) for index in range(nfs)),
            store=store,
            allow_tls_only_iak=allow_tls_only_iak,
            replicas=replicas,
            cmproxy_port=ports[0],
            ca_ra_management_port=ports[1],
            ca_ra_enrolment_port=ports[2],
            http_port=ports[3],
            verifier_port=ports[4],
            probe_ports=(ports[5], ports[6], ports[7]),
            nginx=bool(nginx),
            sba_port=ports[8],
        )
        write_atomically(directory / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings), indent=1))
        return cls(directory, settings)

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    def role(self, name: str) -> Path:
        """The folder of a server role."""
        return self.directory / name

    def probe(self, role: str) -> str:
        """The URL of a server role's probe."""
        return f"http://{HOST}:{self.probe_port(role)}"

    def probe_port(self, role: str) -> int:
        return dict(zip(("ca_ra", "cmproxy", "verifier"), self.settings.probe_ports, strict=True))[role]

    def nf(self, nf: NfSettings) -> Path:
        return self.directory / "nfs" / nf.folder

    def token(self, name: str) -> Path:
        return self.directory / "tokens" / name

    def description(self, processes: dict[str, Any]) -> dict[str, Any]:
        """The content of ``lab.json``; null for what does not exist."""
        settings = self.settings
        base = f"http://{HOST}:{settings.http_port}"
        return {
            "pki": {
                "services_ca": str(self.pki / "services-ca.pem"),
                "oam_cert": str(self.pki / "oam.pem"),
                "oam_key": str(self.pki / "oam.key"),
                "trust_anchor": str(self.role("ca_ra") / "root.pem"),
                "day0_root": str(self.pki / "day0-root.pem"),
            },
            "cmproxy": {"management": f"{HOST}:{settings.cmproxy_port}", "probe": self.probe("cmproxy")},
            "ca_ra": {
                "management": f"{HOST}:{settings.ca_ra_management_port}",
                "enrolment": f"{HOST}:{settings.ca_ra_enrolment_port}",
                "cmp": None,
                "crl": f"{base}/crl/issuing.crl",
                "ocsp": f"{base}/ocsp",
                "probe": self.probe("ca_ra"),
            },
            "verifier": {
                "management": f"{HOST}:{settings.verifier_port}",
                "attestation": None,
                "probe": self.probe("verifier"),
            },
            "nfs": [self._describe_nf(nf) for nf in settings.nfs],
            "processes": processes,
        }

    def _describe_nf(self, nf: NfSettings) -> dict[str, Any]:
        token = msgspec.json.decode((self.token(nf.folder) / "token.json").read_bytes())
        return {
            "nf_instance_id": nf.nf_instance_id,
            "nf_type": nf.nf_type,
            "fqdn": nf.fqdn,
            "agent": f"{HOST}:{nf.port}",
            "dir": str(self.nf(nf)),
            "token": {key: token[key] for key in ("module", "label", "pin_file", "environment")},
        }

    def write_description(self, processes: dict[str, Any]) -> None:
        content = msgspec.json.encode(self.description(processes))
        write_atomically(self.directory / LAB_FILE, msgspec.json.format(content, indent=1))


def _nf(index: int, port: int, types: Sequence[str]) -> NfSettings:
    """The NF with this number: types in turn, the single-named ones (NRF, NSSF) only once."""
    first = index < len(types)
    nf_type = types[index] if first else "AMF"
    label = f"{nf_type.lower()}{index + 1}"
    name = nf_type.lower() if nf_type in ("NRF", "NSSF") else f"{label}.{nf_type.lower()}"
    return NfSettings(
        nf_instance_id=str(uuid.uuid4()),
        nf_type=nf_type,
        fqdn=f"{name}.{HOME_DOMAIN}",
        port=port,
        folder=nf_type.lower() if first else label,
    )


def free_ports(count: int) -> list[int]:
    """Ports that are free now; the servers take them exclusively when they start."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
