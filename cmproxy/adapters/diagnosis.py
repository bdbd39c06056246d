"""What only the CM proxy can see: its way to the CA/RA, to the verifier and to each NF agent.

Every look dials anew, so that a connection of before tells nothing, and
changes nothing at the peer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import grpc
from cryptography import x509

from cmproxy.adapters.nf import GrpcNfPort, NfLook
from cmproxy.config import CmProxyConfig, PeerConfig
from cmproxy.model import NetworkFunction
from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as ca_pb
from nftrust.api.ca_ra.v1.certificate_service_pb2_grpc import CertificateServiceStub
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as pb
from nftrust.api.nf_agent.v1 import agent_service_pb2 as agent_pb
from nftrust.api.verifier.v1 import attestation_result_service_pb2 as verifier_pb
from nftrust.api.verifier.v1.attestation_result_service_pb2_grpc import AttestationResultServiceStub
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.role.diagnosis_service import Probe
from nftrust.role.peer_check import check_service
from nftrust.rpc.channel import SignerIdentity, open_channel
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.path import der

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PeerProbes:
    """``find`` gives a network function by resource name in the scope of the caller."""

    config: CmProxyConfig
    identity: SignerIdentity
    nfs: GrpcNfPort
    find: Callable[[str], Awaitable[NetworkFunction]]

    def by_subject(self) -> dict[str, Probe]:
        probes: dict[str, Probe] = {"client-certificate": self.client_certificate, "ca-ra": self.ca_ra}
        return probes if self.config.verifier is None else {**probes, "verifier": self.verifier}

    async def client_certificate(self) -> None:
        """Raises NftrustError(CREDENTIAL_EXPIRED)."""
        certificate = x509.load_pem_x509_certificate(self.identity.certificate_chain)
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise NftrustError(
                Reason.CREDENTIAL_EXPIRED,
                f"the CM proxy's client certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%MZ}",
            )

    async def ca_ra(self) -> None:
        """Raises NftrustError(PEER_UNAVAILABLE, PEER_UNTRUSTED, TRUST_ANCHOR_DIFFERS) and what the CA/RA refuses."""
        peer = self.config.ca_ra

        async def call(channel: grpc.aio.Channel) -> ca_pb.CertificateAuthority:
            stub = CertificateServiceStub(channel)
            request = ca_pb.GetCertificateAuthorityRequest()
            found: ca_pb.CertificateAuthority = await stub.GetCertificateAuthority(
                request, timeout=peer.timeout_seconds
            )  # type: ignore[misc]
            return found

        authority = await self._ask(peer, "ca-ra", call)
        root = x509.load_pem_x509_certificate(authority.root_ca_pem.encode())
        if root not in x509.load_pem_x509_certificates(read_file(peer.trust_anchor)):
            raise NftrustError(Reason.TRUST_ANCHOR_DIFFERS, "ca_ra.trust_anchor of the CM proxy is another root")

    async def verifier(self) -> None:
        """Raises NftrustError(PEER_UNAVAILABLE, PEER_UNTRUSTED) and what the verifier refuses."""
        peer = self.config.verifier
        assert peer is not None

        async def call(channel: grpc.aio.Channel) -> None:
            request = verifier_pb.ListAttestationResultsRequest(page_size=1)
            stub = AttestationResultServiceStub(channel)
            await stub.ListAttestationResults(request, timeout=peer.timeout_seconds)  # type: ignore[misc]

        await self._ask(peer, "verifier", call)

    async def _ask(self, peer: PeerConfig, role: str, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        self.identity.check()
        anchors = read_file(peer.trust_anchors)
        await check_service(peer.target, anchors, role, datetime.now(UTC), peer.timeout_seconds)
        channel = open_channel(peer.target, trust_roots=anchors, identity=self.identity)
        try:
            return await call(channel)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            if error.reason is Reason.PEER_UNAVAILABLE and not error.remote_reason:
                raise NftrustError(
                    Reason.PEER_UNAVAILABLE,
                    f"{peer.target}: it breaks off the handshake: it does not take the CM proxy's certificate, "
                    "or its own names another host",
                ) from None
            raise error from None
        finally:
            await channel.close()

    async def network_function(self, name: str) -> pb.AgentReport:
        """Raises NftrustError(NF_NOT_FOUND, NF_UNREACHABLE, DAY0_*, TRANSPORT_KEY_*, TRUST_ANCHOR_DIFFERS)."""
        nf = await self.find(name)
        self.identity.check()
        async with self.nfs.connect(nf) as session:
            seen = await session.look()
        expected = nf.expected_transport_key
        if expected is not None and expected != seen.transport_key_sha256:
            raise NftrustError(Reason.TRANSPORT_KEY_MISMATCH)
        if expected is None and not nf.pin_on_first_contact:
            raise NftrustError(Reason.TRANSPORT_KEY_UNPROVISIONED)
        ours = x509.load_pem_x509_certificates(read_file(self.config.ca_ra.trust_anchor))
        theirs = set(seen.info.trust_anchor_sha256)
        if theirs and not {jose.sha256(der(root)) for root in ours} <= theirs:
            raise NftrustError(Reason.TRUST_ANCHOR_DIFFERS, "trust_anchor of the NF agent lacks a root of the operator")
        return agent_report(seen)


def agent_report(seen: NfLook) -> pb.AgentReport:
    """What the agent says, made fit for an operator's terminal: it may be anything."""
    states = agent_pb.AgentStatus.State
    report = pb.AgentReport(
        version=_word(seen.info.version),
        state=states.Name(seen.status.state) if seen.status.state in states.values() else "",
        reason=_word(seen.status.reason),
    )
    with contextlib.suppress(ValueError, OverflowError):  # a time that there is not
        if seen.info.HasField("time") and seen.info.time.ToDatetime(UTC):
            report.time.CopyFrom(seen.info.time)
    with contextlib.suppress(ValueError, OverflowError):
        validity = seen.status.certificate.not_before, seen.status.certificate.not_after
        if seen.status.HasField("certificate") and all(time.ToDatetime(UTC) for time in validity):
            report.not_before.CopyFrom(validity[0])
            report.not_after.CopyFrom(validity[1])
    report.pending_hooks.extend(word for word in map(_word, seen.status.certificate.pending_hooks[:8]) if word)
    report.day0_expire_time.FromDatetime(seen.day0_expire_time)
    return report


def _word(text: str) -> str:
    return text if _WORD.match(text) else ""


#: Versions and reasons.
_WORD = re.compile(r"[A-Za-z0-9._+-]{1,64}\Z")
