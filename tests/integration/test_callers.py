"""Who may call what (security rules 1, 4 and 15): every method of every management listener, and the NF agent."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from grpc_health.v1 import health_pb2, health_pb2_grpc

import cmproxy.app
import nf_agent.service
import verifier.app
from ca_ra.app import ENROLMENT_TABLE, MANAGEMENT_TABLE
from nf_agent.state import read_state
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.nf_agent.v1 import agent_service_pb2 as agent_pb
from nftrust.errors import Reason
from nftrust.lab.layout import ADDRESS, NfSettings
from nftrust.rpc.authz import ROLES
from tests.lab_fixture import nfs
from tests.lab_kit import CALL_SECONDS, WAIT_SECONDS, RunningLab, read_toml, refused, refused_below, write_toml
from tests.pki import CLIENT, Leaf, key_pem, make_ca, pem
from tests.soft_nf import new_key

pytestmark = pytest.mark.process

TABLES = {"ca_ra": MANAGEMENT_TABLE, "cmproxy": cmproxy.app.TABLE, "verifier": verifier.app.TABLE}
METHODS = [(listener, method) for listener, table in TABLES.items() for method in sorted(table)]
#: Answers with a stream, or takes one.
STREAMS = ("Watch", "ServerReflectionInfo")


def call(channel: grpc.Channel, method: str) -> None:
    """Call with an empty message, whatever the method's kind."""
    name = method.rpartition("/")[2]
    if name == "ServerReflectionInfo":
        list(channel.stream_stream(method)(iter([b""]), timeout=CALL_SECONDS))
    elif name.startswith("Watch"):
        list(channel.unary_stream(method)(b"", timeout=CALL_SECONDS))
    else:
        channel.unary_unary(method)(b"", timeout=CALL_SECONDS)


@pytest.mark.parametrize(("listener", "method"), METHODS, ids=lambda value: value.rpartition(".")[2])
def test_a_role_calls_only_its_own_methods(running_lab: RunningLab, listener: str, method: str) -> None:
    for role in sorted(ROLES - TABLES[listener][method]):
        with refused(Reason.METHOD_NOT_ALLOWED):
            call(running_lab.caller(role, "lab").channel(listener), method)


@pytest.fixture(scope="module")
def nf_certificate(running_lab: RunningLab) -> Leaf:
    """An NF's operator certificate with its key."""
    iak = running_lab.register()
    certificate = x509.load_der_x509_certificate(running_lab.redeem(iak))
    request = certificate_pb.GetCertificateAuthorityRequest()
    issuing = running_lab.oam.certificates.GetCertificateAuthority(request).issuing_ca_pem
    return Leaf(certificate, iak.key, (x509.load_pem_x509_certificate(issuing.encode()),))


@pytest.mark.parametrize("listener", TABLES)
def test_an_nf_certificate_opens_no_management_listener(
    running_lab: RunningLab, nf_certificate: Leaf, listener: str
) -> None:
    for method in TABLES[listener]:
        with refused_below():
            call(running_lab.with_leaf(nf_certificate).channel(listener), method)


@pytest.mark.parametrize("listener", TABLES)
def test_strangers_do_not_get_through_the_handshake(running_lab: RunningLab, listener: str) -> None:
    names = ["urn:nftrust:oam:lab"]
    for stranger in (
        make_ca("Somebody's CA").issue(uri_sans=names),
        running_lab.services_authority.issue(uri_sans=names, lifetime=-(make_ca.__kwdefaults__["lifetime"] / 300)),
    ):
        with refused_below():
            call(running_lab.with_leaf(stranger).channel(listener), "/grpc.health.v1.Health/Check")
    with refused_below():
        call(running_lab.nobody.channel(listener), "/grpc.health.v1.Health/Check")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"dns_sans": ["urn:nftrust:oam:lab"]}, Reason.PEER_ROLE_INVALID),
        ({"dns_sans": ["localhost"], "common_name": "urn:nftrust:oam:lab"}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:nftrust:oam:lab", "urn:nftrust:cm-proxy:lab"]}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:nftrust:root:lab"]}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:nftrust:oam:lab:more"]}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:nftrust:oam:LAB"]}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:uuid:" + str(uuid.UUID(int=0))]}, Reason.PEER_ROLE_INVALID),
        ({"uri_sans": ["urn:nftrust:oam:unlisted"]}, Reason.PEER_DENIED),
        ({"uri_sans": ["urn:nftrust:oam:denied"]}, Reason.PEER_DENIED),
    ],
    ids=str,
)
def test_a_role_comes_from_one_uri_of_a_listed_principal(
    running_lab: RunningLab, names: dict[str, Any], reason: Reason
) -> None:
    leaf = running_lab.services_authority.issue(lab=True, eku=[CLIENT], **names)
    for listener in TABLES:
        with refused(reason):
            call(running_lab.with_leaf(leaf).channel(listener), "/grpc.health.v1.Health/Check")


@contextlib.contextmanager
def access(running_lab: RunningLab, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The access file changed for the block."""
    path = running_lab.lab.directory / "access.toml"
    before = read_toml(path)
    changed = read_toml(path)
    change(changed)
    write_toml(path, changed)
    try:
        yield
    finally:
        write_toml(path, before)


def test_a_certificate_is_denied_and_admitted_without_a_restart(running_lab: RunningLab) -> None:
    leaf = running_lab.services_authority.issue(uri_sans=["urn:nftrust:oam:lab"], lab=True)
    caller = running_lab.with_leaf(leaf)
    request = pb.ListNetworkFunctionsRequest(page_size=1)
    caller.provisioning.ListNetworkFunctions(request, timeout=CALL_SECONDS)
    with access(running_lab, lambda tree: tree["denied_certificates"].append(leaf.sha256)):
        for listener, table in TABLES.items():
            for method in table:
                with refused(Reason.PEER_DENIED):  # on the connection that is open already, too
                    call(caller.channel(listener), method)
        running_lab.oam.provisioning.ListNetworkFunctions(request, timeout=CALL_SECONDS)
    caller.provisioning.ListNetworkFunctions(request, timeout=CALL_SECONDS)


def test_a_broken_access_file_leaves_the_last_rules_in_force(running_lab: RunningLab) -> None:
    path = running_lab.lab.directory / "access.toml"
    before = path.read_bytes()
    path.write_bytes(b"principal = 7")
    try:
        with refused(Reason.PEER_DENIED):
            call(running_lab.caller("oam", "denied").channel("cmproxy"), "/grpc.health.v1.Health/Check")
        running_lab.oam.provisioning.ListNetworkFunctions(pb.ListNetworkFunctionsRequest(), timeout=CALL_SECONDS)
    finally:
        path.write_bytes(before)


# What is no gRPC, no TLS, or no protobuf


LISTENERS = ("ca_ra", "cmproxy", "verifier", "enrolment")


@pytest.mark.parametrize("listener", LISTENERS)
def test_plaintext_to_a_tls_port_gets_nothing(running_lab: RunningLab, listener: str) -> None:
    target = running_lab.targets[listener]
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel, refused_below():
        call(channel, "/grpc.health.v1.Health/Check")
    for hello in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"GET / HTTP/1.1\r\n\r\n", bytes(512)):
        with socket.create_connection((ADDRESS, int(target.rpartition(":")[2])), timeout=30) as raw:
            raw.sendall(hello)
            with contextlib.suppress(ConnectionError):
                answer = raw.recv(4096)
                assert not answer or answer[0] == 0x15, answer  # at most a TLS alert
    health(running_lab, listener)


def health(running_lab: RunningLab, listener: str) -> None:
    caller = running_lab.nobody if listener == "enrolment" else running_lab.oam
    stub = health_pb2_grpc.HealthStub(caller.channel(listener))
    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS).status
    assert status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("listener", LISTENERS)
def test_an_old_tls_version_is_refused(running_lab: RunningLab, listener: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the very versions that are to be refused
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    port = int(running_lab.targets[listener].rpartition(":")[2])
    with socket.create_connection((ADDRESS, port), timeout=30) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw, server_hostname="localhost")


#: Our own methods of one request and one response; the next test sends garbage to the stream.
UNARY = sorted(method for method in cmproxy.app.TABLE if "nftrust" in method and "Watch" not in method)


@pytest.mark.parametrize("method", UNARY)
def test_garbage_for_a_message_is_refused(running_lab: RunningLab, method: str) -> None:
    with refused(Reason.MALFORMED_MESSAGE):
        running_lab.oam.channel("cmproxy").unary_unary(method)(b"\xff\xff\xff", timeout=CALL_SECONDS)


def test_garbage_for_a_streams_message_is_refused(running_lab: RunningLab) -> None:
    method = "/nftrust.api.cmproxy.v1.ProvisioningService/WatchEnrolment"
    with refused(Reason.MALFORMED_MESSAGE):
        list(running_lab.oam.channel("cmproxy").unary_stream(method)(b"\xff", timeout=CALL_SECONDS))
    for name in ("EnrolCertificate", "ConfirmCertificate", "GetTrustBundle"):
        with refused(Reason.MALFORMED_MESSAGE):
            call_raw = running_lab.nobody.channel("enrolment").unary_unary
            call_raw(f"/nftrust.api.ca_ra.v1.EnrolmentService/{name}")(b"\x0a\xff", timeout=CALL_SECONDS)


def test_the_enrolment_listener_serves_nothing_of_management(running_lab: RunningLab) -> None:
    for method in sorted(set(MANAGEMENT_TABLE) - set(ENROLMENT_TABLE)):
        with pytest.raises(grpc.RpcError) as refusal:
            call(running_lab.nobody.channel("enrolment"), method)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as refusal:
        call(running_lab.oam.channel("ca_ra"), "/nftrust.api.ca_ra.v1.EnrolmentService/EnrolCertificate")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


# The NF agent


@pytest.fixture
def agent(running_lab: RunningLab, enrolled: dict[str, Any]) -> NfSettings:
    """One that holds a confirmed certificate."""
    return nfs(running_lab)[1]


AGENT_METHODS = sorted(nf_agent.service.TABLE)


@pytest.mark.parametrize("method", AGENT_METHODS, ids=lambda value: value.rpartition(".")[2])
def test_only_a_cm_proxy_calls_the_agent(running_lab: RunningLab, agent: NfSettings, method: str) -> None:
    for role in sorted(ROLES - {"cm-proxy"}):
        with refused(Reason.METHOD_NOT_ALLOWED):
            call(running_lab.agent_channel(agent, running_lab.files_of(role, "lab")), method)


def test_a_stranger_cannot_dial_the_agent_as_cm_proxy(
    running_lab: RunningLab, agent: NfSettings, nf_certificate: Leaf
) -> None:
    forged = make_ca("Somebody's CA").issue(uri_sans=["urn:nftrust:cm-proxy:lab"])
    key = new_key()
    day0 = running_lab.issue_day0(key, str(uuid.uuid4()))
    for credentials in (
        None,
        (nf_certificate.key_pem, nf_certificate.chain_pem),
        (forged.key_pem, forged.chain_pem),
        (key_pem(key), pem(day0)),
    ):
        stub = running_lab.agent_stub(agent, credentials)
        with refused_below():
            stub.GetStatus(agent_pb.GetStatusRequest(), timeout=CALL_SECONDS)
        with refused_below():
            stub.DeliverEnrolmentInfo(agent_pb.DeliverEnrolmentInfoRequest(), timeout=CALL_SECONDS)


def test_the_agent_states_its_identity_only_for_what_it_is_asked(running_lab: RunningLab, agent: NfSettings) -> None:
    stub = running_lab.agent_stub(agent, running_lab.files_of("cm-proxy", "lab"))
    for enrolment, nonce in (("", bytes(32)), ("x" * 257, bytes(32)), ("x", bytes(15)), ("x", bytes(65))):
        with refused(Reason.INVALID_FIELD):
            stub.GetAgentInfo(agent_pb.GetAgentInfoRequest(enrolment=enrolment, nonce=nonce), timeout=CALL_SECONDS)
    info = stub.GetAgentInfo(agent_pb.GetAgentInfoRequest(enrolment="x", nonce=bytes(32)), timeout=CALL_SECONDS)
    assert info.nf_instance_id == agent.nf_instance_id
    digest = hashes.Hash(hashes.SHA256())
    digest.update(info.transport_key)
    assert digest.finalize() == running_lab.network_function(agent).transport_key_sha256


def test_a_replayed_delivery_is_refused_by_an_agent_that_holds_a_certificate(
    running_lab: RunningLab, agent: NfSettings
) -> None:
    state = read_state(running_lab.lab.nf(agent) / "state")
    assert state is not None
    assert state.current is not None
    stub = running_lab.agent_stub(agent, running_lab.files_of("cm-proxy", "lab"))
    before = stub.GetStatus(agent_pb.GetStatusRequest(), timeout=CALL_SECONDS)
    assert before.state == agent_pb.AgentStatus.CONFIRMED
    replayed = agent_pb.DeliverEnrolmentInfoRequest(enrolment_info=state.current.enrolment_info)
    with refused(Reason.AGENT_NOT_ARMED):
        stub.DeliverEnrolmentInfo(replayed, timeout=CALL_SECONDS)
    assert stub.GetStatus(agent_pb.GetStatusRequest(), timeout=CALL_SECONDS) == before


def test_a_delivery_that_is_not_for_this_agent_is_refused(running_lab: RunningLab, agent: NfSettings) -> None:
    stub = running_lab.agent_stub(agent, running_lab.files_of("cm-proxy", "lab"))
    before = stub.GetStatus(agent_pb.GetStatusRequest(), timeout=CALL_SECONDS)
    other = read_state(running_lab.lab.nf(nfs(running_lab)[0]) / "state")
    assert other is not None
    assert other.current is not None
    theirs = other.current.enrolment_info
    header, payload, signature = theirs.split(".")
    for text, iak in (
        ("a.b.c", b""),
        (theirs, b""),
        (theirs, bytes(32)),
        (".".join([header, payload, signature[::-1]]), b""),
        (".".join([header, payload[:-8], signature]), b""),
    ):
        with refused(Reason.ENROLMENT_INFO_INVALID):
            request = agent_pb.DeliverEnrolmentInfoRequest(enrolment_info=text, iak=iak)
            stub.DeliverEnrolmentInfo(request, timeout=CALL_SECONDS)
    for text, iak in (("", b""), ("x" * 50_000, b""), (theirs, b"short")):
        with refused(Reason.INVALID_FIELD):
            request = agent_pb.DeliverEnrolmentInfoRequest(enrolment_info=text, iak=iak)
            stub.DeliverEnrolmentInfo(request, timeout=CALL_SECONDS)
    assert stub.GetStatus(agent_pb.GetStatusRequest(), timeout=CALL_SECONDS) == before


def test_a_slow_caller_does_not_keep_others_out(running_lab: RunningLab) -> None:
    port = int(running_lab.targets["enrolment"].rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.create_connection((ADDRESS, port), timeout=30)).sendall(b"\x16\x03\x01")
        deadline = time.monotonic() + WAIT_SECONDS
        health(running_lab, "enrolment")
        assert time.monotonic() < deadline
