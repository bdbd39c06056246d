"""Security rule 8: an IAK that travels in clear inside TLS is never stored for replay."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nf_agent.service import TABLE
from nftrust import jose, pki
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.nf_agent.v1 import agent_service_pb2 as agent_pb
from nftrust.api.nf_agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)
from nftrust.cli.session import Session
from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.errors import NftrustError, Reason
from nftrust.lab import control
from nftrust.lab.layout import DAY0_ROOT, HOST, OPERATOR_FILE, Lab
from nftrust.messages import ENROLMENT_INFO_TYP, EnrolmentInfo
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.path import der, pem_chain
from nftrust.x509.services import bare_csr
from tests.lab_kit import free_port
from tests.soft_nf import Iak, SoftNf

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]


class CapturingAgent(AgentServiceServicer):
    """An NF that keeps what it is given, and loses its first answer."""

    def __init__(self, nf: SoftNf) -> None:
        self.nf = nf
        self.deliveries: list[tuple[str, bytes]] = []
        self.accepted = threading.Event()

    async def GetAgentInfo(self, request: agent_pb.GetAgentInfoRequest, context: Any) -> agent_pb.AgentInfo:
        statement = self.nf.statement(request.enrolment, nonce=jose.b64url(request.nonce))
        return agent_pb.AgentInfo(
            nf_instance_id=self.nf.nf_instance_id, statement=statement, day0_chain=[der(self.nf.day0_certificate)]
        )

    async def DeliverEnrolmentInfo(
        self, request: agent_pb.DeliverEnrolmentInfoRequest, context: Any
    ) -> agent_pb.DeliverEnrolmentInfoResponse:
        self.deliveries.append((request.enrolment_info, request.iak))
        if len(self.deliveries) == 1:
            raise NftrustError(Reason.STORAGE_UNAVAILABLE, retry_after=0.1)
        self.accepted.set()
        return agent_pb.DeliverEnrolmentInfoResponse()

    async def WatchStatus(
        self, request: agent_pb.WatchStatusRequest, context: Any
    ) -> AsyncIterator[agent_pb.AgentStatus]:
        yield agent_pb.AgentStatus(state=agent_pb.AgentStatus.ENROLLING, registration=self._registration())
        await asyncio.sleep(60)

    def _registration(self) -> str:
        return read_info(self.deliveries[-1][0]).registration


def read_info(text: str) -> EnrolmentInfo:
    parts = jose.split(text, typ=ENROLMENT_INFO_TYP, algorithms=frozenset({"ES256"}))
    return jose.parse_payload(parts, EnrolmentInfo)


def serve(agent: CapturingAgent, listener: ListenerConfig, ready: threading.Event, stop: threading.Event) -> None:
    async def run() -> None:
        descriptor = agent_pb.DESCRIPTOR.services_by_name["AgentService"]
        binding = ServiceBinding(add_AgentServiceServicer_to_server, agent, descriptor)
        server = RpcServer(listener, [binding], TABLE, deployment="lab")
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    asyncio.run(run())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.make(tmp_path / "lab", 1, allow_tls_only_iak=True)
    control.up(made, print)
    try:
        yield made
    finally:
        control.down(made)


@pytest.fixture
def agent(lab: Lab, tmp_path: Path) -> Iterator[tuple[CapturingAgent, str]]:
    """The capturing NF and its endpoint."""
    with pki.Pki.open(lab.pki) as opened:
        nf = SoftNf.make(lambda key, nf_id: opened.day0_certificate(bare_csr(key), nf_id))
    (tmp_path / "day0.pem").write_bytes(pem_chain([nf.day0_certificate]))
    key = nf.day0_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "day0.key").write_bytes(key)
    endpoint = f"{HOST}:{free_port()}"
    tls = ServerTlsConfig(
        certificate=tmp_path / "day0.pem", private_key=tmp_path / "day0.key", client_ca=lab.pki / "services-ca.pem"
    )
    listener = ListenerConfig(address=endpoint.replace(HOST, "127.0.0.1"), tls=tls)
    made, ready, stop = CapturingAgent(nf), threading.Event(), threading.Event()
    thread = threading.Thread(target=serve, args=(made, listener, ready, stop))
    thread.start()
    assert ready.wait(20)
    yield made, endpoint
    stop.set()
    thread.join()


def enrol_refusal(lab: Lab, proof: str) -> Reason | None:
    """Why the CA/RA refuses a proof; None where it issues."""
    description = lab.description({})
    roots = Path(description["pki"]["services_ca"]).read_bytes()
    credentials = grpc.ssl_channel_credentials(roots)
    with grpc.secure_channel(description["ca_ra"]["enrolment"], credentials) as channel:
        try:
            EnrolmentServiceStub(channel).EnrolCertificate(
                enrolment_pb.EnrolCertificateRequest(proof=proof), timeout=10
            )
        except grpc.RpcError as error:
            return from_rpc_error(error).reason  # type: ignore[arg-type]
    return None


def files_with(folder: Path, secret: bytes) -> list[str]:
    """Files that hold ``secret`` in any of the usual encodings."""
    forms = {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    }
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if any(form in content for form in forms):
                found.append(path.name)
    return found


def test_retry_mints_anew_and_no_file_holds_the_iak(lab: Lab, agent: tuple[CapturingAgent, str]) -> None:
    capturing, endpoint = agent
    nf = capturing.nf
    message = pb.NetworkFunction(
        nf_instance_id=nf.nf_instance_id,
        nf_type=nf.nf_type,
        fqdns=[nf.fqdn],
        agent_endpoint=endpoint,
        day0_root=DAY0_ROOT,
        transport_key_sha256=nf.transport_key_sha256,
        iak_delivery_mode=pb.IAK_DELIVERY_MODE_TLS_ONLY,
    )
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        stub = session.provisioning()
        created = stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=message), timeout=10)
        stub.StartEnrolment(pb.StartEnrolmentRequest(parent=created.name, request_id=str(uuid.uuid4())), timeout=10)
        assert capturing.accepted.wait(30)
        time.sleep(0.3)  # let the proxy persist the delivery, so that there is something to search

    (first_info, first), (second_info, second) = capturing.deliveries
    assert len(first) == len(second) == 32
    assert first != second
    pids = [pid for role in control.SERVERS for pid in control.processes(lab)[role]]
    for pid in pids:  # SIGKILL: write-ahead logs stay as they are
        os.kill(pid, signal.SIGKILL)
    while any(control.alive(pid) for pid in pids):
        time.sleep(0.02)
    reference = read_info(second_info).reference.encode()
    assert any(reference in path.read_bytes() for path in lab.role("ca_ra").glob("store.sqlite*")), "control"
    assert files_with(lab.directory, first) == []
    assert files_with(lab.directory, second) == []

    control.up(lab, print)
    old, new = Iak(nf, read_info(first_info), first), Iak(nf, read_info(second_info), second)
    assert enrol_refusal(lab, old.proof()) is Reason.IAK_REVOKED
    assert enrol_refusal(lab, new.proof()) is None
