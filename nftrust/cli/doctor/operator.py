"""OAM's own side: the configuration, the services CA, certificate and key."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.checks import Check, Finding, broken, ok
from nftrust.cli.session import OperatorConfig
from nftrust.clock import Clock
from nftrust.errors import NftrustError
from nftrust.files import read_file
from nftrust.rpc.peer import parse_credential
from nftrust.x509.path import pem_chain

HOP = "OAM's credential"
WELL = ("oam.services-ca", "oam.validity")
_ISSUE = "`nftrust pki service --role oam --name NAME --out FILE` issues certificate and key."


@dataclass
class Operator:
    """The files that the operator's configuration names."""

    config: OperatorConfig
    clock: Clock
    anchors: list[x509.Certificate] = field(default_factory=list)
    chain: list[x509.Certificate] = field(default_factory=list)

    def checks(self) -> tuple[Check, ...]:
        return (
            Check("oam.services-ca", HOP, self.services_ca),
            Check("oam.key-file", HOP, self.key_file),
            Check("oam.certificate", HOP, self.certificate),
            Check("oam.key", HOP, self.key, ("oam.key-file", "oam.certificate")),
            Check("oam.trust", HOP, self.trust, ("oam.services-ca", "oam.key")),
            Check("oam.validity", HOP, self.validity, ("oam.trust",)),
        )

    def services_ca(self) -> Finding:
        path = self.config.services_ca
        try:
            self.anchors[:] = x509.load_pem_x509_certificates(read_file(path))
        except (NftrustError, ValueError):
            return broken(f"{path} is no certificate that can be read", "Copy services-ca.pem of the PKI to it.")
        remedy = "A new services CA has to be made (`nftrust pki init`) and every service certificate issued anew."
        return certificates.validity("the services CA", self.anchors[0], self.clock.now(), remedy)

    def key_file(self) -> Finding:
        path = self.config.private_key
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            return broken(f"{path} is not there, or not for us to see", _ISSUE)
        if mode & 0o077:
            return broken(
                f"{path} has mode {mode:04o}: others can use OAM's key",
                f"`chmod 600 {path}`; if others were on this host, issue a new key and deny the old certificate.",
            )
        return ok(f"{path} is for its owner only")

    def certificate(self) -> Finding:
        path = self.config.certificate
        try:
            self.chain = x509.load_pem_x509_certificates(read_file(path))
            credential = parse_credential(pem_chain(self.chain[:1]))
        except NftrustError as error:
            return broken(f"{path}: {error.message}", _ISSUE, error.reason.name)
        except ValueError:
            return broken(f"{path} holds no certificate", _ISSUE)
        if credential.role != "oam":
            return broken(f"{path} is of a {credential.role}, not of OAM", _ISSUE)
        return ok(f"{path} is of {credential.uri}")

    def key(self) -> Finding:
        path = self.config.private_key
        try:
            key = load_pem_private_key(read_file(path), None)
        except (NftrustError, ValueError, TypeError, UnsupportedAlgorithm):
            return broken(f"{path} holds no key that can be used", _ISSUE)
        if key.public_key() != self.chain[0].public_key():
            return broken(
                f"{path} is not the key of {self.config.certificate}", f"Put the pair together again; else {_ISSUE}"
            )
        return ok("certificate and key belong together")

    def trust(self) -> Finding:
        if not certificates.leads_to(self.chain, self.anchors, self.clock.now()):
            return broken(
                f"{self.config.certificate} is not of the CA in {self.config.services_ca}",
                f"Use certificate and services CA of one PKI: {_ISSUE}",
            )
        return ok("it is of the services CA")

    def validity(self) -> Finding:
        return certificates.validity("OAM's certificate", self.chain[0], self.clock.now(), _ISSUE)
