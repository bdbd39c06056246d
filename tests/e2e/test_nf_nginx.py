"""examples/nf-nginx: nginx serves with the NF's key in the token, another NF calls it, a renewal drops no request."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import RENEWAL_SECONDS
from nftrust.errors import Reason
from nftrust.lab import control, sba
from nftrust.lab.layout import ADDRESS, Lab, NfSettings
from nftrust.rpc.status import from_rpc_error
from nftrust.x509.path import pem_chain
from tests.lab_kit import RunningLab
from tests.pki import Leaf, key_pem, make_ca

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 60.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass
class Sba:
    """A lab whose NRF serves, with NRF and AMF enrolled."""

    running: RunningLab
    nrf: NfSettings
    amf: NfSettings
    directory: Path

    @property
    def lab(self) -> Lab:
        return self.running.lab

    @property
    def run(self) -> Path:
        return self.lab.nf(self.nrf) / "nginx"

    def call(self) -> sba.Answer:
        return sba.call(self.lab, self.amf, self.nrf)

    def renew(self) -> None:
        """The NRF renews its certificate, with another key, and nginx serves it."""
        before = sba.held(self.lab, self.nrf)
        eventually(self._renewed, "the agent is reached")  # it may still be starting while nginx serves
        eventually(lambda: sba.held(self.lab, self.nrf) != before, "another certificate")
        sba.wait_until_served(self.lab, sba.held(self.lab, self.nrf))

    def _renewed(self) -> bool:
        request = pb.RenewNetworkFunctionRequest(name=f"networkFunctions/{self.nrf.nf_instance_id}")
        try:
            self.running.oam.provisioning.RenewNetworkFunction(request, timeout=RENEWAL_SECONDS)
        except grpc.RpcError as error:
            if from_rpc_error(error).reason is not Reason.NF_UNREACHABLE:  # type: ignore[arg-type]
                raise
            return False
        return True

    def software_client(self) -> Client:
        """A client with a certificate of the operator's CA, quick enough for many requests."""
        iak = self.running.register()
        certificate = x509.load_der_x509_certificate(self.running.redeem(iak))
        issuing = x509.load_pem_x509_certificates((self.lab.role("ca_ra") / "chain.pem").read_bytes())[0]
        return self.client(pem_chain([certificate, issuing]), key_pem(iak.key))

    def client(self, chain: bytes, key: bytes) -> Client:
        path = self.directory / f"client-{time.monotonic_ns()}.pem"
        path.write_bytes(chain + key)
        context = ssl.create_default_context(cafile=str(self.lab.role("ca_ra") / "root.pem"))
        context.load_cert_chain(path)
        return Client(context, self.nrf.fqdn, self.lab.settings.sba_port)


@dataclass
class Client:
    """One connection for each request, so that each is a handshake with the key in the token."""

    context: ssl.SSLContext
    fqdn: str
    port: int
    statuses: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection((ADDRESS, self.port), timeout=PATIENCE_SECONDS) as plain,
            self.context.wrap_socket(plain, server_hostname=self.fqdn) as connection,
        ):
            yield connection

    def begin(self, connection: ssl.SSLSocket) -> None:
        connection.sendall(f"GET {sba.RESOURCE} HTTP/1.1\r\nHost: {self.fqdn}\r\n".encode())

    def finish(self, connection: ssl.SSLSocket) -> str:
        connection.sendall(b"Connection: close\r\n\r\n")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        return answer.decode().partition("\r\n")[0]

    def get(self) -> str:
        with self.connected() as connection:
            self.begin(connection)
            return self.finish(connection)

    def get_until(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.statuses.append(self.get())
            except OSError as error:
                self.statuses.append(repr(error))


OK = "HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def nf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sba]:
    assert sba.missing() == ""
    directory = tmp_path_factory.mktemp("sba")
    lab = Lab.make(directory / "lab", 2, nginx=True)
    try:
        control.up(lab, print)
        with contextlib.ExitStack() as stack:
            running = RunningLab(lab, stack, directory)
            server, client = sba.server_of(lab), sba.client_of(lab)
            assert server is not None
            assert client is not None
            for each in (server, client):
                running.create_nf(running.network_function(each))
                running.enrol_and_wait(f"networkFunctions/{each.nf_instance_id}")
            sba.wait_until_served(lab, sba.held(lab, server))
            yield Sba(running, server, client, directory)
    finally:
        control.down(lab)


def test_amf_calls_nrf_both_keys_in_tokens(nf: Sba) -> None:
    answer = nf.call()
    assert answer.good, answer
    assert answer.body == '{"validityPeriod":3600,"nfInstances":[]}'
    for each in (nf.nrf, nf.amf):
        folder = nf.lab.nf(each)
        keys = [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
        assert [path.name for path in keys] == ["day0.key"], "the certificate's key is in no file"


def test_no_pin_is_told(nf: Sba) -> None:
    """Neither in argument lists and environments nor in what nginx and the hook write."""
    pins = [(nf.lab.token(each.folder) / "pin").read_bytes() for each in (nf.nrf, nf.amf)]
    [entry] = [
        pid for pid, each in zip(control.processes(nf.lab)["nfs"], nf.lab.settings.nfs, strict=True) if each == nf.nrf
    ]
    nginx = int((nf.run / "nginx.pid").read_text())
    told = [Path(f"/proc/{pid}/{name}").read_bytes() for pid in (entry, nginx) for name in ("cmdline", "environ")]
    command, environment = sba.call_command(nf.lab, nf.amf, nf.nrf)
    told += [repr((command, environment)).encode()]
    told += [path.read_bytes() for each in (nf.nrf, nf.amf) for path in nf.lab.nf(each).rglob("*") if path.is_file()]
    assert any(b"pin-source=file:" in text for text in told)
    assert not any(pin in text for pin in pins for text in told)


def test_only_nfs_of_the_operators_ca_are_let_in(nf: Sba) -> None:
    assert nf.software_client().get() == OK
    stranger = make_ca("Operator Issuing CA").issue()
    assert nf.client(stranger.chain_pem, stranger.key_pem).get() == "HTTP/1.1 400 Bad Request"
    day0 = Leaf(x509.load_pem_x509_certificate((nf.lab.nf(nf.amf) / "day0.pem").read_bytes()), stranger.key)
    key = (nf.lab.nf(nf.amf) / "day0.key").read_bytes()
    assert nf.client(day0.chain_pem, key).get() == "HTTP/1.1 400 Bad Request"
    nobody = nf.software_client()
    nobody.context = ssl.create_default_context(cafile=str(nf.lab.role("ca_ra") / "root.pem"))
    assert nobody.get() == "HTTP/1.1 400 Bad Request"


def test_a_renewal_drops_no_request(nf: Sba) -> None:
    client, ended = nf.software_client(), threading.Event()
    callers = [threading.Thread(target=client.get_until, args=(ended,)) for _ in range(3)]
    with client.connected() as under_way:
        client.begin(under_way)
        for caller in callers:
            caller.start()
        try:
            nf.renew()
            after = len(client.statuses)
            eventually(lambda: len(client.statuses) > after + 10, "calls after the change")
        finally:
            ended.set()
            for caller in callers:
                caller.join()
        assert client.finish(under_way) == OK, "what was begun with the old certificate is finished"
    assert set(client.statuses) == {OK}
    assert after > 0
    assert nf.call().good


def test_a_certificate_that_nginx_cannot_use_changes_nothing(nf: Sba) -> None:
    before = (nf.run / "tls.conf").read_bytes()
    current = nf.lab.nf(nf.nrf) / "state" / "current"
    hook = sba.hook(nf.lab, nf.nrf)
    environment = {
        **hook["environment"],
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
        "SOFTHSM2_CONF": str(nf.lab.token(nf.nrf.folder) / "softhsm2.conf"),
        "NFTRUST_CERTIFICATE": str(current / "certificate.pem"),
        "NFTRUST_TRUST_BUNDLE": str(current / "trust-bundle.pem"),
        "NFTRUST_KEY_URI": (current / "key.uri").read_text().replace("object=nf-", "object=no-"),
    }
    done = subprocess.run(hook["command"], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert (nf.run / "tls.conf").read_bytes() == before
    assert nf.call().good


def test_it_serves_again_after_a_restart(nf: Sba) -> None:
    index = nf.lab.settings.nfs.index(nf.nrf)
    started = dict(control.processes(nf.lab))
    held, [*agents] = sba.held(nf.lab, nf.nrf), started["nfs"]
    os.kill(agents[index], 15)
    eventually(lambda: not control.alive(agents[index]), "the NF ends")
    assert sba.served(nf.lab) is None
    shutil.rmtree(nf.run)  # as a new container would find it
    agents[index] = control.start_agent(nf.lab, nf.nrf)
    nf.lab.write_description(started | {"nfs": agents})
    sba.wait_until_served(nf.lab, held)
    assert nf.call().good
    nf.renew()
    assert nf.call().good
