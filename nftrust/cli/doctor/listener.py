"""A TLS listener as it is seen from here: name, TCP, TLS, trust, validity, host name, role."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509

from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.checks import Check, Finding, broken, ok
from nftrust.clock import Clock
from nftrust.errors import NftrustError
from nftrust.rpc.peer import parse_credential
from nftrust.rpc.preflight import fetch_peer_chain
from nftrust.x509.path import pem_chain

_NO_TLS = {
    "timeout": "accepts connections and says nothing",
    "handshake": "does not speak TLS 1.3",
    "closed": "closes the connection at once",
    "connect": "resets the connection",
}


@dataclass
class Listener:
    """Looks at one address; every look may use what the ones before have found."""

    #: First part of the ids: `ca-ra.management`.
    id: str
    title: str
    target: str
    #: The role that its certificate has to name.
    role: str
    anchors: Sequence[x509.Certificate]
    clock: Clock
    timeout: float
    needs: tuple[str, ...] = ()
    subject: str = ""
    chain: list[x509.Certificate] = field(default_factory=list)

    @property
    def well(self) -> str:
        """The key of the last check."""
        return f"{self.id}.role {self.subject}".rstrip()

    def checks(self) -> tuple[Check, ...]:
        looks = (
            ("name", self.name),
            ("tcp", self.tcp),
            ("tls", self.tls),
            ("trust", self.trust),
            ("validity", self.validity),
            ("host", self.host),
            ("role", self.role_name),
        )
        made: list[Check] = []
        needs = self.needs
        for suffix, look in looks:
            made.append(Check(f"{self.id}.{suffix}", self.title, look, needs, self.subject))
            needs = (made[-1].key,)
        return tuple(made)

    @property
    def _address(self) -> tuple[str, int]:
        host, _, port = self.target.rpartition(":")
        return host.strip("[]"), int(port)

    def name(self) -> Finding:
        try:
            host, port = self._address
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except ValueError:
            return broken(f"{self.target} is not host:port", "Correct the address in the configuration.")
        except (OSError, UnicodeError):
            return broken(
                f"the name of {self.target} does not resolve", "Correct the address, or the name service of this host."
            )
        return ok(f"{self.target} resolves")

    def tcp(self) -> Finding:
        remedy = f"Start the {self.role}, correct the address, or open the way through the firewall."
        try:
            with contextlib.closing(socket.create_connection(self._address, self.timeout)):
                return ok(f"{self.target} accepts connections")
        except TimeoutError:
            return broken(f"{self.target} does not answer: a firewall, or the host is away", remedy)
        except OSError:
            return broken(f"nobody listens at {self.target}", remedy)

    def tls(self) -> Finding:
        try:
            self.chain = asyncio.run(fetch_peer_chain(*self._address, self.timeout))
        except NftrustError as error:
            what = _NO_TLS[error.metadata.get("cause", "handshake")]
            return broken(
                f"what listens at {self.target} {what}: another service, or one without TLS",
                f"Check that the address is the {self.role}'s and that nothing else has taken its port.",
            )
        return ok(f"{self.target} speaks TLS 1.3")

    def trust(self) -> Finding:
        if not certificates.leads_to(self.chain, self.anchors, self.clock.now()):
            return broken(
                f"the certificate of {self.target} is not of the trusted services CA",
                f"Check the address and `services_ca`; else have the {self.role} use a certificate of this PKI "
                "(`nftrust pki service`).",
            )
        return ok("its certificate is of the services CA")

    def validity(self) -> Finding:
        remedy = f"`nftrust pki service --role {self.role} …` for the {self.role}; it reads the new files by itself."
        return certificates.validity(f"the certificate of {self.target}", self.chain[0], self.clock.now(), remedy)

    def host(self) -> Finding:
        host, _ = self._address
        if certificates.is_for_host(self.chain[0], host):
            return ok(f"its certificate is for {host}")
        dns, addresses = certificates.names(self.chain[0])
        found = ", ".join((*dns, *addresses)) or "no host"
        return broken(
            f"the certificate of {self.target} is for {found}, not for {host}",
            f"Call it by a name of its certificate, or issue one with `nftrust pki service --host {host}`.",
        )

    def role_name(self) -> Finding:
        try:
            found = parse_credential(pem_chain(self.chain[:1])).role
        except NftrustError as error:
            return broken(f"the certificate of {self.target} names no role", error.reason.remedy, error.reason.name)
        if found != self.role:
            return broken(
                f"{self.target} is a {found}, not a {self.role}",
                "Correct the address: those of two roles are mixed up.",
            )
        return ok(f"it is a {self.role}")
