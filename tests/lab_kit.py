"""A running lab for the tests: OAM's stubs, further principals, further processes, software NFs."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import grpc
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.json_format import Parse
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from nftrust import pki
from nftrust.api.audit.v1 import audit_service_pb2_grpc
from nftrust.api.ca_ra.v1 import (
    certificate_service_pb2_grpc,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
    registration_service_pb2_grpc,
)
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2_grpc
from nftrust.api.nf_agent.v1 import agent_service_pb2_grpc
from nftrust.api.verifier.v1 import attestation_result_service_pb2_grpc
from nftrust.errors import Reason
from nftrust.identity import day0_name
from nftrust.lab import control
from nftrust.lab.layout import ADDRESS, DAY0_ROOT, HOME_DOMAIN, HOST, OPERATOR_FILE, TENANT, Lab, NfSettings
from nftrust.rpc.status import RemoteError, from_rpc_error
from nftrust.x509.path import pem_chain
from nftrust.x509.services import bare_csr, issue_day0
from softhsm import create_token
from tests.pki import Authority, Leaf, key_pem, make_ca
from tests.soft_nf import Iak, SoftNf, new_key

WAIT_SECONDS = 60.0
CALL_SECONDS = 20.0
OTHER_TENANT = "other"
OTHER_ROOT = "other-vendor"
#: Certificates that a test can see renewed; no profile may be shorter.
SHORT_PROFILE, SHORT_SECONDS = "short", 60.0
ENDED = (pb.Enrolment.SUCCEEDED, pb.Enrolment.FAILED, pb.Enrolment.CANCELLED)
_PATIENCE = (Reason.RATE_LIMITED,)


@dataclass
class Refusal:
    """What :func:`refused` saw."""

    error: RemoteError | None = None

    @property
    def remote(self) -> RemoteError:
        assert self.error is not None
        return self.error


@contextlib.contextmanager
def refused(*reasons: Reason) -> Iterator[Refusal]:
    """The call inside is refused with one of these reasons, in an ErrorInfo, under its code."""
    seen = Refusal()
    try:
        yield seen
    except grpc.RpcError as error:
        seen.error = remote_error(error)
        names = [reason.name for reason in reasons]
        assert seen.error.remote_reason in names, f"{seen.error.remote_reason!r} ({seen.error.code}) is not of {names}"
        assert seen.error.code.name == Reason[seen.error.remote_reason].code.name
    else:
        raise AssertionError(f"not refused with {[reason.name for reason in reasons]}")


@contextlib.contextmanager
def refused_below() -> Iterator[None]:
    """The call inside does not reach the application: the TLS handshake fails."""
    try:
        yield
    except grpc.RpcError as error:
        seen = remote_error(error)
        assert seen.remote_reason == ""
        assert seen.code is grpc.StatusCode.UNAVAILABLE
    else:
        raise AssertionError("the handshake did not fail")


def remote_error(error: grpc.RpcError) -> RemoteError:
    return from_rpc_error(cast("grpc.aio.AioRpcError", error))


def unlimited(call: Any, request: Message) -> Any:
    """The call's outcome once the address has failures to spare again."""
    while True:
        try:
            return call(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if remote_error(error).reason not in _PATIENCE:
                raise
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
    return port


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def write_toml(path: Path, tree: dict[str, Any]) -> None:
    """In one step: roles read some of these files again whenever they change."""
    draft = path.with_suffix(".draft")
    draft.write_text(tomli_w.dumps(tree))
    draft.rename(path)


@dataclass
class Process:
    """A role that a test started."""

    popen: subprocess.Popen[bytes]
    ready: Path
    log: Path

    @classmethod
    def start(cls, package: str, config: Path) -> Process:
        ready, log = config.with_suffix(".ready"), config.with_suffix(".log")
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", package, "run", "--config", str(config), "--ready-file", str(ready)]
        with log.open("wb") as output:
            return cls(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output), ready, log)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ready.exists():
            assert self.popen.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(30)
        finally:
            if self.popen.poll() is None:
                self.popen.kill()
                self.popen.wait()


@contextlib.contextmanager
def running(package: str, config: Path) -> Iterator[Process]:
    """A role that serves during the block."""
    process = Process.start(package, config)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()


def run_to_end(package: str, config: Path) -> tuple[int, str]:
    """Exit code and standard error of a role that is not expected to serve."""
    command = [sys.executable, "-m", package, "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@dataclass
class Channels:
    """Everything that one caller may dial."""

    stack: contextlib.ExitStack
    credentials: grpc.ChannelCredentials
    targets: dict[str, str]
    _open: dict[str, grpc.Channel] = field(default_factory=dict)

    def channel(self, role: str) -> grpc.Channel:
        if role not in self._open:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._open[role] = self.stack.enter_context(
                grpc.secure_channel(self.targets[role], self.credentials, options)
            )
        return self._open[role]

    @cached_property
    def provisioning(self) -> Any:
        return provisioning_service_pb2_grpc.ProvisioningServiceStub(self.channel("cmproxy"))

    @cached_property
    def registrations(self) -> Any:
        return registration_service_pb2_grpc.RegistrationServiceStub(self.channel("ca_ra"))

    @cached_property
    def certificates(self) -> Any:
        return certificate_service_pb2_grpc.CertificateServiceStub(self.channel("ca_ra"))

    @cached_property
    def enrolments(self) -> Any:
        return enrolment_service_pb2_grpc.EnrolmentServiceStub(self.channel("enrolment"))

    @cached_property
    def results(self) -> Any:
        return attestation_result_service_pb2_grpc.AttestationResultServiceStub(self.channel("verifier"))

    def health(self, role: str) -> Any:
        return health_pb2_grpc.HealthStub(self.channel(role))

    def audit(self, role: str) -> Any:
        return audit_service_pb2_grpc.AuditServiceStub(self.channel(role))


@dataclass
class SecondCa:
    """A CA/RA of the same token on a copy of the database."""

    oam: Channels
    database: Path
    targets: dict[str, str]

    def execute(self, statement: str, *arguments: object) -> list[Any]:
        """SQL behind the CA/RA's back; constraints between tables are not looked at."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as connection, connection:
            return connection.execute(statement, arguments).fetchall()

    def register(self, nf: SoftNf, **changes: Any) -> Iak:
        return nf.accept(self.oam.registrations.RegisterEndEntity(nf.request(**changes), timeout=CALL_SECONDS))

    def enrol(self, proof: str) -> str:
        request = enrolment_service_pb2.EnrolCertificateRequest(proof=proof)
        return str(unlimited(self.oam.enrolments.EnrolCertificate, request).signed_response)

    def renew(self, proof: str) -> str:
        request = enrolment_service_pb2.RenewCertificateRequest(proof=proof)
        return str(unlimited(self.oam.enrolments.RenewCertificate, request).signed_response)

    def confirm(self, proof: str) -> str:
        request = enrolment_service_pb2.ConfirmCertificateRequest(proof=proof)
        return str(unlimited(self.oam.enrolments.ConfirmCertificate, request).signed_response)


class RunningLab:
    """One lab for the whole test run; what a test makes in it has names of its own."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, directory: Path) -> None:
        self.lab = lab
        self.stack = stack
        self.directory = directory
        self.description: dict[str, Any] = lab.description({})
        self.other_root: Authority = make_ca("Other vendor's day-0 root")
        self.pki = stack.enter_context(pki.Pki.open(lab.pki))
        self.config = lab.directory / OPERATOR_FILE
        self.targets = {
            "cmproxy": self.description["cmproxy"]["management"],
            "ca_ra": self.description["ca_ra"]["management"],
            "enrolment": self.description["ca_ra"]["enrolment"],
            "verifier": self.description["verifier"]["management"],
        }
        self._principals: dict[str, Channels] = {}

    # Set-up

    def reconfigure(self) -> None:
        """Principals of other roles, tenants and scopes; and another vendor's day-0 root with a scope."""
        path = self.lab.directory / "access.toml"
        access = read_toml(path)
        everything = {"tenants": ["*"], "nf_types": ["*"], "fqdn_suffixes": ["*"]}
        access["principal"] += [
            {"uri": "urn:nftrust:ca-ra:lab", **everything},
            {"uri": "urn:nftrust:verifier:lab", **everything},
            {"uri": "urn:nftrust:oam:other", **everything, "tenants": [OTHER_TENANT]},
            {"uri": "urn:nftrust:cm-proxy:other", **everything, "tenants": [OTHER_TENANT]},
            {"uri": "urn:nftrust:oam:smf-only", **everything, "tenants": [TENANT], "nf_types": ["SMF"]},
            {
                "uri": "urn:nftrust:oam:west",
                **everything,
                "tenants": [TENANT],
                "fqdn_suffixes": [f"regionwest.amfset.{HOME_DOMAIN}"],
            },
            {"uri": "urn:nftrust:oam:denied", **everything},
        ]
        access["denied_principals"] = ["urn:nftrust:oam:denied"]
        write_toml(path, access)
        root = self.other_root.write(self.directory, "other-root")
        started = dict(control.processes(self.lab))
        for role in ("ca_ra", "cmproxy"):
            config_path = self.lab.role(role) / "config.toml"
            config = read_toml(config_path)
            if role == "ca_ra":
                config["profiles"].append({"name": SHORT_PROFILE, "validity_hours": SHORT_SECONDS / 3600})
            config["day0_roots"].append({"name": OTHER_ROOT, "certificate": str(root), "tenant": OTHER_TENANT})
            write_toml(config_path, config)
            started[role] = [self._restart(role, started[role][0])]
        self.lab.write_description(started)
        for role in ("ca_ra", "cmproxy"):
            deadline = time.monotonic() + WAIT_SECONDS
            while not (self.lab.role(role) / control.READY_FILE).exists():
                assert time.monotonic() < deadline, f"{role} did not start again"
                time.sleep(0.02)

    def _restart(self, role: str, pid: int) -> int:
        control._signal(pid, signal.SIGTERM)
        control._children[pid].wait(WAIT_SECONDS)
        return control.start_server(self.lab, role)

    # Callers

    @property
    def services_ca(self) -> bytes:
        return (self.lab.pki / "services-ca.pem").read_bytes()

    @cached_property
    def oam(self) -> Channels:
        return self.caller("oam", "lab")

    @cached_property
    def nobody(self) -> Channels:
        """Without a client certificate, as NFs dial the enrolment listener."""
        return Channels(self.stack, grpc.ssl_channel_credentials(self.services_ca), self.targets)

    def caller(self, role: str, name: str) -> Channels:
        """A principal with a certificate of the services CA."""
        uri = f"{role}.{name}"
        if uri not in self._principals:
            self.pki.service_files(self.directory, uri, role, name, [])
            credentials = self.credentials(*((self.directory / f"{uri}{end}").read_bytes() for end in (".key", ".pem")))
            self._principals[uri] = Channels(self.stack, credentials, self.targets)
        return self._principals[uri]

    def credentials(self, key: bytes, certificate: bytes) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.services_ca, key, certificate)

    def with_leaf(self, leaf: Leaf) -> Channels:
        return Channels(self.stack, self.credentials(leaf.key_pem, leaf.chain_pem), self.targets)

    @property
    def services_authority(self) -> Authority:
        """The services CA, to issue what `nftrust pki` would not."""
        return Authority(self.pki.services.certificate, self.pki.services.key)

    # Network functions at the CM proxy

    def network_function(self, nf: NfSettings) -> pb.NetworkFunction:
        """What OAM provisions for one of the lab's NFs."""
        return Parse((self.lab.nf(nf) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())

    def unborn(self, **changes: Any) -> pb.NetworkFunction:
        """A well-formed network function whose agent nobody serves."""
        nf_instance_id = str(uuid.uuid4())
        fields: dict[str, Any] = {
            "nf_instance_id": nf_instance_id,
            "nf_type": "AMF",
            "fqdns": [f"u{nf_instance_id[:13]}.amf.{HOME_DOMAIN}"],
            "agent_endpoint": f"{HOST}:9",
            "tenant": TENANT,
            "day0_root": DAY0_ROOT,
            "transport_key_sha256": uuid.uuid4().bytes * 2,
        }
        return pb.NetworkFunction(**(fields | changes))

    def create_nf(self, nf: pb.NetworkFunction, caller: Channels | None = None, request_id: str = "") -> Any:
        request = pb.CreateNetworkFunctionRequest(network_function=nf, request_id=request_id or str(uuid.uuid4()))
        return (caller or self.oam).provisioning.CreateNetworkFunction(request, timeout=CALL_SECONDS)

    def start(self, name: str, **options: Any) -> Any:
        request = pb.StartEnrolmentRequest(parent=name, request_id=str(uuid.uuid4()), **options)
        return self.oam.provisioning.StartEnrolment(request, timeout=CALL_SECONDS)

    def wait_for(self, name: str, *states: int, reason: Reason | None = None) -> pb.Enrolment:
        """The enrolment as soon as it is in one of the states, with the reason where given."""
        request = pb.GetEnrolmentRequest(name=name)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            current: pb.Enrolment = self.oam.provisioning.GetEnrolment(request, timeout=CALL_SECONDS)
            if current.state in states and (reason is None or current.error.reason == reason.name):
                return current
            assert time.monotonic() < deadline, current
            assert current.state not in ENDED, current
            time.sleep(0.03)

    def wait_ended(self, name: str) -> pb.Enrolment:
        """The enrolment once it has ended, however."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            current: pb.Enrolment = self.oam.provisioning.GetEnrolment(
                pb.GetEnrolmentRequest(name=name), timeout=CALL_SECONDS
            )
            if current.state in ENDED:
                return current
            assert time.monotonic() < deadline, current
            time.sleep(0.03)

    def enrol_and_wait(self, name: str, **options: Any) -> pb.Enrolment:
        return self.wait_for(self.start(name, **options).name, pb.Enrolment.SUCCEEDED)

    @contextlib.contextmanager
    def provisioned(self, nf: pb.NetworkFunction) -> Iterator[pb.NetworkFunction]:
        """Created for the block; deleted after it, with what is still active cancelled."""
        created: pb.NetworkFunction = self.create_nf(nf)
        stub = self.oam.provisioning
        try:
            yield created
        finally:
            for enrolment in stub.ListEnrolments(pb.ListEnrolmentsRequest(parent=created.name)).enrolments:
                if enrolment.state not in ENDED:
                    stub.CancelEnrolment(pb.CancelEnrolmentRequest(name=enrolment.name))
            now = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=created.name))
            stub.DeleteNetworkFunction(pb.DeleteNetworkFunctionRequest(name=now.name, etag=now.etag))

    # NFs in software at the CA/RA

    def issue_day0(self, key: ec.EllipticCurvePrivateKey, nf_instance_id: str, **changes: Any) -> x509.Certificate:
        """A day-0 certificate by the lab's root; ``now`` and ``lifetime`` may be given."""
        request = pki.load_csr(bare_csr(key))
        options: dict[str, Any] = {"now": datetime.now(UTC), "lifetime": timedelta(days=1)}
        return issue_day0(
            self.pki.day0, request, nf_instance_id=nf_instance_id, home_domain=HOME_DOMAIN, **(options | changes)
        )

    def soft_nf(self, nf_type: str = "AMF") -> SoftNf:
        return SoftNf.make(self.issue_day0, nf_type)

    def send_registration(self, request: Message, caller: Channels | None = None) -> Any:
        return (caller or self.oam).registrations.RegisterEndEntity(request, timeout=CALL_SECONDS)

    def register(self, nf: SoftNf | None = None, **changes: Any) -> Iak:
        """A software NF with its IAK."""
        nf = nf or self.soft_nf()
        return nf.accept(self.send_registration(nf.request(**changes)))

    def enrol(self, proof: str) -> str:
        request = enrolment_service_pb2.EnrolCertificateRequest(proof=proof)
        return str(unlimited(self.nobody.enrolments.EnrolCertificate, request).signed_response)

    def renew(self, proof: str) -> str:
        request = enrolment_service_pb2.RenewCertificateRequest(proof=proof)
        return str(unlimited(self.nobody.enrolments.RenewCertificate, request).signed_response)

    def confirm(self, proof: str) -> str:
        request = enrolment_service_pb2.ConfirmCertificateRequest(proof=proof)
        return str(unlimited(self.nobody.enrolments.ConfirmCertificate, request).signed_response)

    def redeem(self, iak: Iak) -> bytes:
        """The certificate that the IAK yields, DER."""
        proof = iak.proof()
        return iak.certificate(self.enrol(proof), proof)

    # Further processes

    @contextlib.contextmanager
    def second_ca(self, directory: Path, **registration: Any) -> Iterator[SecondCa]:
        """Another CA/RA process on a copy of the database, with changed registration policy."""
        database = directory / "ca.sqlite"
        source = f"file:{self.lab.role('ca_ra') / 'store.sqlite'}?mode=ro"
        with (
            contextlib.closing(sqlite3.connect(source, uri=True)) as original,
            contextlib.closing(sqlite3.connect(database)) as copy,
        ):
            original.backup(copy)
        ports = {name: free_port() for name in ("management", "enrolment", "http")}
        config = read_toml(self.lab.role("ca_ra") / "config.toml")
        for name, port in ports.items():
            config[name]["address"] = f"{ADDRESS}:{port}"
        del config["probe"]
        config["store"]["url"] = f"sqlite:///{database}"
        config["registration"] |= registration
        path = directory / "second-ca.toml"
        write_toml(path, config)
        targets = {"ca_ra": f"{HOST}:{ports['management']}", "enrolment": f"{HOST}:{ports['enrolment']}"}
        with running("ca_ra", path), contextlib.ExitStack() as stack:
            yield SecondCa(Channels(stack, self.oam.credentials, targets), database, targets)

    def agent_channel(self, nf: NfSettings, credentials: tuple[bytes, bytes] | None) -> grpc.Channel:
        """To an NF agent of the lab as the CM proxy dials: its very leaf is the trust root."""
        leaf = (self.lab.nf(nf) / "day0.pem").read_bytes()
        options = [
            ("grpc.ssl_target_name_override", day0_name(nf.nf_instance_id, HOME_DOMAIN)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        key, certificate = credentials or (None, None)
        made = grpc.ssl_channel_credentials(leaf, key, certificate)
        return self.stack.enter_context(grpc.secure_channel(f"{HOST}:{nf.port}", made, options))

    def agent_stub(self, nf: NfSettings, credentials: tuple[bytes, bytes] | None) -> Any:
        return agent_service_pb2_grpc.AgentServiceStub(self.agent_channel(nf, credentials))

    def files_of(self, role: str, name: str) -> tuple[bytes, bytes]:
        """Key and certificate, PEM, of a principal."""
        self.caller(role, name)
        key, certificate = (self.directory / f"{role}.{name}{end}" for end in (".key", ".pem"))
        return key.read_bytes(), certificate.read_bytes()


@dataclass(frozen=True)
class SpareAgent:
    """An initialised NF agent outside the lab's description; each use may have another day-0 certificate."""

    running_lab: RunningLab
    directory: Path
    nf_instance_id: str
    config: dict[str, Any]
    transport_key_sha256: bytes

    @classmethod
    def make(cls, running_lab: RunningLab, directory: Path, nf_instance_id: str = "") -> SpareAgent:
        nf_instance_id = nf_instance_id or str(uuid.uuid4())
        token = create_token(directory / "token", "nftrust-spare")
        config = {
            "deployment": "lab",
            "nf_instance_id": nf_instance_id,
            "state_dir": str(directory / "state"),
            "retry_cap_seconds": 1.0,
            "token": {
                "module": str(token.module),
                "label": token.label,
                "pin_file": str(token.pin_file),
                "lock_file": str(token.lock_file),
                "environment": token.environment,
            },
            "listener": {
                "address": f"{ADDRESS}:{free_port()}",
                "tls": {
                    "certificate": str(directory / "day0.pem"),
                    "private_key": str(directory / "day0.key"),
                    "client_ca": str(running_lab.lab.pki / "services-ca.pem"),
                },
            },
        }
        path = directory / "spare.toml"
        write_toml(path, config)
        command = [sys.executable, "-m", "nf_agent", "init", "--config", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        [fingerprint] = [line.split()[-1] for line in output.splitlines() if line.startswith("transport key")]
        return cls(running_lab, directory, nf_instance_id, config, bytes.fromhex(fingerprint))

    def written(self, directory: Path, **changes: Any) -> Path:
        """A configuration with its own copy of the state, and changes."""
        shutil.copytree(self.directory / "state", directory / "state")
        config = self.config | {"state_dir": str(directory / "state")} | changes
        path = directory / "agent.toml"
        write_toml(path, config)
        return path

    @contextlib.contextmanager
    def serving(self, directory: Path, leaf: Leaf) -> Iterator[str]:
        """The endpoint of an agent that shows this day-0 certificate."""
        certificate, key = leaf.write(directory, "day0")
        port = free_port()
        tls = {**self.config["listener"]["tls"], "certificate": str(certificate), "private_key": str(key)}
        path = self.written(directory, listener={"address": f"{ADDRESS}:{port}", "tls": tls})
        with running("nf_agent", path):
            yield f"{HOST}:{port}"

    def network_function(self, endpoint: str, **changes: Any) -> pb.NetworkFunction:
        """What OAM provisions for it."""
        fqdn = f"s{self.nf_instance_id[:13]}.amf.{HOME_DOMAIN}"
        return self.running_lab.unborn(
            nf_instance_id=self.nf_instance_id,
            fqdns=[fqdn],
            agent_endpoint=endpoint,
            transport_key_sha256=self.transport_key_sha256,
            **changes,
        )

    def leaf(self, nf_instance_id: str | None = None, **options: Any) -> Leaf:
        """A day-0 certificate by the lab's root."""
        key = new_key()
        return Leaf(self.running_lab.issue_day0(key, nf_instance_id or self.nf_instance_id, **options), key)


__all__ = ["Channels", "RunningLab", "SecondCa", "SpareAgent", "key_pem", "pem_chain", "refused", "refused_below"]
