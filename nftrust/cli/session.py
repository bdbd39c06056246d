"""How the command reaches the services: one TOML file, OAM's certificate, plain synchronous calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from nftrust.api.audit.v1 import audit_service_pb2_grpc
from nftrust.api.ca_ra.v1 import certificate_service_pb2_grpc, registration_service_pb2_grpc
from nftrust.api.cmproxy.v1 import provisioning_service_pb2_grpc
from nftrust.config import Section, load
from nftrust.errors import NftrustError
from nftrust.files import read_file
from nftrust.rpc.status import from_rpc_error

#: For one NF: longer than the CM proxy gives its agent.
RENEWAL_SECONDS = 70.0


class OperatorConfig(Section, frozen=True, kw_only=True):
    """OAM's side: where the services are and who is calling."""

    services_ca: Path
    certificate: Path
    private_key: Path
    cmproxy: str
    ca_ra: str
    verifier: str
    timeout_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """Channels to the services, opened when first used."""

    config: OperatorConfig
    stack: contextlib.ExitStack

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Session]:
        """Raises NftrustError(CONFIG_INVALID), and what the services refuse."""
        config = load(OperatorConfig, path)
        with contextlib.ExitStack() as stack:
            try:
                yield cls(config, stack)
            except grpc.RpcError as error:
                raise refusal(error) from None

    @property
    def timeout(self) -> float:
        return self.config.timeout_seconds

    def channel(self, target: str) -> grpc.Channel:
        """A channel to a service as OAM."""
        config = self.config
        credentials = grpc.ssl_channel_credentials(
            read_file(config.services_ca), read_file(config.private_key), read_file(config.certificate)
        )
        return self.stack.enter_context(grpc.secure_channel(target, credentials))

    def provisioning(self) -> provisioning_service_pb2_grpc.ProvisioningServiceStub:
        return provisioning_service_pb2_grpc.ProvisioningServiceStub(self.channel(self.config.cmproxy))

    def registrations(self) -> registration_service_pb2_grpc.RegistrationServiceStub:
        return registration_service_pb2_grpc.RegistrationServiceStub(self.channel(self.config.ca_ra))

    def certificates(self) -> certificate_service_pb2_grpc.CertificateServiceStub:
        return certificate_service_pb2_grpc.CertificateServiceStub(self.channel(self.config.ca_ra))

    def audit(self, role: str) -> audit_service_pb2_grpc.AuditServiceStub:
        targets = {"ca_ra": self.config.ca_ra, "cmproxy": self.config.cmproxy, "verifier": self.config.verifier}
        return audit_service_pb2_grpc.AuditServiceStub(self.channel(targets[role]))


def refusal(error: grpc.RpcError) -> NftrustError:
    """The typed refusal behind a failed call."""
    return from_rpc_error(error)  # type: ignore[arg-type]
