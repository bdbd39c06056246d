"""A foreign CA/RA, whole: OAM or EJBCA gives a secret, the CM proxy's token wraps it, the NF's token uses it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nf_agent.state import TRANSPORT_KEY
from nftrust import jose
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.config import TokenConfig
from nftrust.errors import Reason
from nftrust.lab.layout import ADDRESS, HOST, OPERATOR_FILE
from nftrust.messages import ForeignEnrolmentInfo
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import TransportIakMac
from tests import ejbca_double
from tests.ejbca_double import EjbcaDouble
from tests.lab_kit import (
    CALL_SECONDS,
    Channels,
    RunningLab,
    SpareAgent,
    free_port,
    read_toml,
    refused,
    running,
    write_toml,
)
from tests.pki import Authority, make_ca
from tests.token_fixtures import opened

pytestmark = pytest.mark.process
NFTRUST = str(Path(sys.executable).with_name("nftrust"))
PROFILE = "nf-foreign"
Proxy = Callable[[dict[str, Any]], contextlib.AbstractContextManager[tuple[Any, Path]]]


@pytest.fixture(scope="module")
def foreign_ca() -> Authority:
    return make_ca("foreign root")


@pytest.fixture
def proxy(running_lab: RunningLab, foreign_ca: Authority, tmp_path: Path) -> Proxy:
    """Another CM proxy of the lab, with a foreign CA/RA: OAM's stub and its database."""

    @contextlib.contextmanager
    def serve(changes: dict[str, Any]) -> Iterator[tuple[Any, Path]]:
        port, database = free_port(), tmp_path / "proxy.sqlite"
        config = read_toml(running_lab.lab.role("cmproxy") / "config.toml")
        config.pop("probe", None)
        config["management"]["address"] = f"{ADDRESS}:{port}"
        config["store"]["url"] = f"sqlite:///{database}"
        config["foreign_ca_ra"] = {
            "certificate_profiles": [PROFILE],
            "endpoints": ["http://cmp.example.org/ejbca/publicweb/cmp/nf"],
            "ca_certificates": str(foreign_ca.write(tmp_path, "foreign-chain")),
        } | changes
        path = tmp_path / "second-proxy.toml"
        write_toml(path, config)
        operator = read_toml(running_lab.lab.directory / OPERATOR_FILE)
        write_toml(tmp_path / OPERATOR_FILE, operator | {"cmproxy": f"{HOST}:{port}"})
        subprocess.run([sys.executable, "-m", "cmproxy", "migrate", "--config", str(path)], check=True, timeout=60)
        with running("cmproxy", path), contextlib.ExitStack() as stack:
            targets = {**running_lab.targets, "cmproxy": f"{HOST}:{port}"}
            yield Channels(stack, running_lab.oam.credentials, targets).provisioning, database

    return serve


@contextlib.contextmanager
def agent(spare: SpareAgent, directory: Path, foreign_ca: Authority | None) -> Iterator[str]:
    directory.mkdir()
    anchor = {} if foreign_ca is None else {"foreign_ca_ra": {"trust_anchor": str(foreign_ca.write(directory, "root"))}}
    allowed = replace(spare, config=spare.config | anchor)
    with allowed.serving(directory, spare.leaf(spare.nf_instance_id)) as endpoint:
        yield endpoint


def provision(running_lab: RunningLab, spare: SpareAgent, stub: Any, endpoint: str) -> pb.NetworkFunction:
    nf = running_lab.unborn(
        nf_instance_id=spare.nf_instance_id,
        agent_endpoint=endpoint,
        transport_key_sha256=spare.transport_key_sha256,
        certificate_profile=PROFILE,
    )
    return stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=nf), timeout=CALL_SECONDS)


def move(stub: Any, nf: pb.NetworkFunction, endpoint: str) -> None:
    nf.agent_endpoint = endpoint
    stub.UpdateNetworkFunction(pb.UpdateNetworkFunctionRequest(network_function=nf), timeout=CALL_SECONDS)


def enrol(stub: Any, nf: pb.NetworkFunction, **options: Any) -> pb.Enrolment:
    """The enrolment as it ended."""
    request = pb.StartEnrolmentRequest(parent=nf.name, request_id=str(uuid.uuid4()), **options)
    started = stub.StartEnrolment(request, timeout=CALL_SECONDS)
    assert stub.StartEnrolment(request, timeout=CALL_SECONDS).name == started.name  # idempotent
    current = started
    for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=started.name), timeout=60):
        current = update.enrolment
    return current


def enrol_by_command(operator: Path, nf: pb.NetworkFunction, reference: str, secret: bytes) -> Any:
    """As a person does it: the secret in a file, which nobody else may read."""
    file = operator.with_name("secret")
    file.write_bytes(secret + b"\n")
    command = [NFTRUST, "--config", str(operator), "enrol", nf.nf_instance_id]
    command += ["--again", "--watch", "--output", "json", "--reference", reference, "--secret-file", str(file)]
    file.chmod(0o640)
    readable = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert readable.returncode != 0
    assert "mode 0600" in readable.stderr
    file.chmod(0o600)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert secret.decode() not in done.stdout + done.stderr + readable.stderr
    file.unlink()
    return json.loads(done.stdout)


def delivered(directory: Path) -> ForeignEnrolmentInfo:
    state = json.loads((directory / "state" / "state.json").read_bytes())
    assert state["phase"] == "delivered"
    payload = state["attempt"]["enrolment_info"].split(".")[1]
    return msgspec.json.decode(jose.b64url_decode(payload), type=ForeignEnrolmentInfo)


def nf_can_use(spare: SpareAgent, info: ForeignEnrolmentInfo, secret: bytes) -> bool:
    """The NF's token makes MACs with the secret."""
    config = msgspec.convert(spare.config["token"], TokenConfig, dec_hook=lambda target, value: target(value))
    with opened(TokenClient.worker, config) as client:
        made = client.call(TransportIakMac(TRANSPORT_KEY, jose.b64url_decode(info.wrapped_iak), b"PBKDF2"))
    return hmac.compare_digest(made, hmac.digest(secret, b"PBKDF2", hashlib.sha256))


def rests_nowhere(secret: bytes, directory: Path) -> bool:
    return not any(secret in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_by_hand(
    running_lab: RunningLab, spare_agent: SpareAgent, foreign_ca: Authority, proxy: Proxy, tmp_path: Path
) -> None:
    secret = secrets.token_hex(24).encode()
    handed = pb.ForeignCredential(reference="ref-4711", secret=secret)
    with proxy({}) as (stub, database), agent(spare_agent, tmp_path / "nf", foreign_ca) as endpoint:
        nf = provision(running_lab, spare_agent, stub, endpoint)
        done = enrol(stub, nf, foreign_credential=handed)
        assert done.state == pb.Enrolment.DELIVERED, done
        assert [step.number for step in done.steps] == [1, 3, 4, 5, 6, 7]
        assert "imported into the CM proxy's token" in done.steps[4].description
        assert rests_nowhere(secret, database.parent)
        assert sealed_rows(database) == 0
        # A second delivery needs OAM's word.
        again = enrol(stub, nf, foreign_credential=handed)
        assert (again.state, again.error.reason) == (pb.Enrolment.FAILED, Reason.AGENT_NOT_ARMED.name)
        allowed = enrol_by_command(database.with_name(OPERATOR_FILE), nf, "ref-4712", secret)
        assert allowed["state"] == "DELIVERED"
        for wrong in (None, pb.ForeignCredential(reference="", secret=secret), *weak()):
            request = pb.StartEnrolmentRequest(parent=nf.name, foreign_credential=wrong)
            with refused(Reason.FOREIGN_CREDENTIAL_REFUSED, Reason.INVALID_FIELD):
                stub.StartEnrolment(request, timeout=CALL_SECONDS)
    info = delivered(tmp_path / "nf")
    assert (info.protocol, info.reference, info.mac_algorithm) == ("cmp", "ref-4712", "PBMAC1")
    assert info.registration == allowed["registration"]
    assert nf_can_use(spare_agent, info, secret)


def sealed_rows(database: Path) -> int:
    """Ended enrolments that still keep a sealed secret."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        query = "SELECT count(*) FROM enrolment WHERE credential IS NOT NULL OR intent IS NOT NULL"
        return int(reader.execute(query).fetchone()[0])


def weak() -> list[pb.ForeignCredential]:
    values = (b"", b"0123456789abcdef", bytes(48), secrets.token_bytes(33), secrets.token_bytes(136))
    return [pb.ForeignCredential(reference="r", secret=value) for value in values]


def test_by_ejbca(
    running_lab: RunningLab, spare_agent: SpareAgent, foreign_ca: Authority, proxy: Proxy, tmp_path: Path
) -> None:
    folder = tmp_path / "ejbca"
    folder.mkdir()
    with (
        ejbca_double.serving(folder) as ejbca,
        proxy({"registrar": "ejbca", "settings": ejbca.settings}) as (stub, database),
    ):
        with agent(spare_agent, tmp_path / "closed", None) as endpoint:
            nf = provision(running_lab, spare_agent, stub, endpoint)
            refusal = enrol(stub, nf)
            assert refusal.error.reason == Reason.FOREIGN_CA_RA_NOT_ALLOWED.name
            assert refusal.state == pb.Enrolment.FAILED
        with agent(spare_agent, tmp_path / "nf", foreign_ca) as endpoint:
            move(stub, nf, endpoint)
            done = enrol(stub, nf)
        assert done.state == pb.Enrolment.DELIVERED, done
        check_ejbca(ejbca, done, spare_agent, database, delivered(tmp_path / "nf"))


def check_ejbca(
    ejbca: EjbcaDouble, done: pb.Enrolment, spare: SpareAgent, database: Path, info: ForeignEnrolmentInfo
) -> None:
    assert ejbca.faults == []
    known = ejbca.end_entities[info.reference]
    assert done.registration == f"foreignRegistrations/{info.reference}"
    assert known["status"] == "NEW"
    secret = known["password"].encode()
    assert rests_nowhere(secret, database.parent)
    assert nf_can_use(spare, info, secret)
