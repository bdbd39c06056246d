"""An NF's certificate lives on by itself: renewed in time, and enrolled again after its end where OAM allows it."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.lab.layout import ADDRESS, HOST
from tests.lab_kit import CALL_SECONDS, SHORT_PROFILE, RunningLab, SpareAgent, free_port, read_toml, running

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(420)]

#: For what takes several lives of a certificate.
PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def agent(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> SpareAgent:
    """With a token of its own."""
    return SpareAgent.make(running_lab, tmp_path_factory.mktemp("renewing"))


@pytest.fixture
def endpoint() -> str:
    return f"{HOST}:{free_port()}"


@pytest.fixture
def config(agent: SpareAgent, endpoint: str, tmp_path: Path) -> Path:
    """Of the agent behind the endpoint, with its own copy of the state."""
    certificate, key = agent.leaf().write(tmp_path, "day0")
    tls = {**agent.config["listener"]["tls"], "certificate": str(certificate), "private_key": str(key)}
    address = f"{ADDRESS}:{endpoint.rpartition(':')[2]}"
    renewal = {"earliest": 0.1, "latest": 0.2}
    return agent.written(tmp_path, listener={"address": address, "tls": tls}, renewal=renewal)


def eventually(look: Callable[[], Any]) -> Any:
    """What ``look`` finds, once it finds something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)
    return found


@pytest.fixture
def certificates(running_lab: RunningLab, agent: SpareAgent) -> Callable[[], list[certificate_pb.Certificate]]:
    """The NF's at the CA/RA, the newest first."""

    def look() -> list[certificate_pb.Certificate]:
        request = certificate_pb.ListCertificatesRequest(nf_instance_id=agent.nf_instance_id)
        return list(running_lab.oam.certificates.ListCertificates(request, timeout=CALL_SECONDS).certificates)

    return look


def confirmed(found: list[certificate_pb.Certificate]) -> list[certificate_pb.Certificate]:
    return [each for each in found if each.HasField("confirm_time")]


@pytest.fixture
def provisioned(running_lab: RunningLab, agent: SpareAgent, endpoint: str) -> Iterator[pb.NetworkFunction]:
    wanted = agent.network_function(endpoint, certificate_profile=SHORT_PROFILE, re_enrol_after_expiry=True)
    with running_lab.provisioned(wanted) as nf:
        yield nf


def test_an_nf_renews_by_itself_and_comes_back_after_its_certificates_end(
    running_lab: RunningLab,
    agent: SpareAgent,
    provisioned: pb.NetworkFunction,
    config: Path,
    tmp_path: Path,
    certificates: Callable[[], list[certificate_pb.Certificate]],
) -> None:
    with running("nf_agent", config):
        running_lab.enrol_and_wait(provisioned.name)
        eventually(lambda: len([each for each in confirmed(certificates()) if each.predecessor]) >= 2)
        # The NF has the newest as a file, or will have it in a moment.
        file = tmp_path / "state" / "certificate.pem"
        eventually(lambda: file.read_text().startswith(confirmed(certificates())[0].pem))

    # The CA/RA's clock and the NF's cannot be put forward here: the row says that the certificates have ended, and the
    # agent comes back without its memory. Nobody asks for the enrolment that follows.
    seen = {each.name for each in certificates()}
    end_certificates(running_lab, agent.nf_instance_id)
    ask_again(running_lab, provisioned.name)
    (tmp_path / "later").mkdir()
    with running("nf_agent", agent.written(tmp_path / "later", listener=read_toml(config)["listener"])):
        eventually(lambda: [each for each in confirmed(certificates()) if each.name not in seen])


def end_certificates(running_lab: RunningLab, nf_instance_id: str) -> None:
    """Behind the CA/RA's back."""
    database = running_lab.lab.role("ca_ra") / "store.sqlite"
    past = int((time.time() - 5) * 1_000_000)
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("UPDATE certificate SET not_after = ? WHERE nf_instance_id = ?", (past, nf_instance_id))


def ask_again(running_lab: RunningLab, name: str) -> None:
    """The CM proxy looks at an NF when OAM has changed it; else in a certificate's life once."""
    stub = running_lab.oam.provisioning
    known = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=name), timeout=CALL_SECONDS)
    update = pb.UpdateNetworkFunctionRequest(network_function=known)
    update.update_mask.paths.append("re_enrol_after_expiry")
    stub.UpdateNetworkFunction(update, timeout=CALL_SECONDS)
