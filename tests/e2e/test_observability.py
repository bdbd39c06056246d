"""What a running lab tells: probes, metrics of all fronts, and one enrolment through the logs of all roles."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.lab import control
from nftrust.lab.layout import Lab
from tests import processes_kit
from tests.lab_kit import RunningLab

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

PATIENCE_SECONDS = 60.0
#: Step 2, attestation, happens elsewhere.
STEPS = [1, *range(3, 11)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """One NF and two fronts of the CA/RA."""
    directory = tmp_path_factory.mktemp("observed")
    lab = Lab.make(directory / "lab", 1, replicas=2)
    try:
        control.up(lab, print)
        with ExitStack() as stack:
            running = RunningLab(lab, stack, directory)
            running.create_nf(running.network_function(lab.settings.nfs[0]))
            yield running
    finally:
        control.down(lab)


def enrol(observed: RunningLab) -> pb.Enrolment:
    [nf] = observed.lab.settings.nfs
    return observed.enrol_and_wait(f"networkFunctions/{nf.nf_instance_id}", allow_re_enrolment=True)


def get(observed: RunningLab, role: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(observed.lab.probe(role) + path, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(observed: RunningLab, role: str) -> dict[str, float]:
    """Samples by name and labels."""
    status, text = get(observed, role, "/metrics")
    assert status == 200
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}"] = sample.value
    return samples


def total(samples: dict[str, float], name: str, *parts: str) -> float:
    return sum(value for key, value in samples.items() if key.startswith(name + "{") and all(p in key for p in parts))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def fronts(observed: RunningLab) -> list[int]:
    [supervisor] = control.processes(observed.lab)["ca_ra"]
    return processes_kit.fronts(supervisor)


@pytest.mark.parametrize("role", control.SERVERS)
def test_probes(observed: RunningLab, role: str) -> None:
    assert get(observed, role, "/livez") == (200, "ok\n")
    assert get(observed, role, "/readyz") == (200, "ok\n")
    assert get(observed, role, "/other")[0] == 404


def test_every_step_is_counted_once_and_counters_survive_a_front(observed: RunningLab) -> None:
    before, issued = scrape(observed, "cmproxy"), scrape(observed, "ca_ra")
    for _ in range(2):
        enrol(observed)
    after = scrape(observed, "cmproxy")
    for step in STEPS:
        name = f'"step": "{step}"'
        assert (
            total(after, "nftrust_enrolment_steps_total", name) - total(before, "nftrust_enrolment_steps_total", name)
            == 2
        )
    ended = [total(samples, "nftrust_enrolments_ended_total", "succeeded") for samples in (before, after)]
    assert ended[1] - ended[0] == 2

    def certificates() -> float:
        return total(scrape(observed, "ca_ra"), "nftrust_rpc_calls_total", "EnrolCertificate", '"OK"')

    first = total(issued, "nftrust_rpc_calls_total", "EnrolCertificate", '"OK"') + 2
    assert certificates() == first
    victim = fronts(observed)[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(fronts(observed)) == 2 and victim not in fronts(observed), "replaced")
    eventually(lambda: get(observed, "ca_ra", "/readyz")[0] == 200, "ready")
    assert certificates() == first
    eventually(lambda: total(scrape(observed, "ca_ra"), "nftrust_nf_certificates") >= 2, "counted by validity")


def test_a_token_that_is_away_shows(observed: RunningLab) -> None:
    [supervisor] = control.processes(observed.lab)["cmproxy"]
    [worker] = processes_kit.token_workers(supervisor)
    os.kill(worker, signal.SIGSTOP)
    [nf] = observed.lab.settings.nfs
    enrolment = observed.start(f"networkFunctions/{nf.nf_instance_id}", allow_re_enrolment=True)
    eventually(lambda: get(observed, "cmproxy", "/readyz") == (503, "missing: token\n"), "not ready")
    assert get(observed, "cmproxy", "/livez")[0] == 200
    assert total(scrape(observed, "cmproxy"), "nftrust_available", "token") == 0
    os.kill(worker, signal.SIGCONT)
    eventually(lambda: get(observed, "cmproxy", "/readyz")[0] == 200, "ready")
    observed.wait_for(enrolment.name, pb.Enrolment.SUCCEEDED)


def test_one_id_leads_through_the_logs_of_all_roles(observed: RunningLab) -> None:
    enrolment = enrol(observed)
    identifier = enrolment.name.rpartition("/")[2]
    [nf] = observed.lab.settings.nfs
    expected = {
        observed.lab.role("cmproxy"): {"step"},
        observed.lab.role("ca_ra"): {"end entity registered", "certificate issued", "certificate confirmed"},
        observed.lab.nf(nf): {"enrolment information accepted", "certificate confirmed"},
    }
    for folder, messages in expected.items():
        lines = [line for line in log(folder) if line.get("correlation_id") == identifier]
        assert messages <= {line["message"] for line in lines}, folder.name
    steps = [line["step"] for line in log(observed.lab.role("cmproxy")) if line.get("correlation_id") == identifier]
    assert sorted(steps) == STEPS


def log(folder: Path) -> list[dict[str, Any]]:
    """Every line is JSON."""
    return [json.loads(line) for line in (folder / control.LOG_FILE).read_text().splitlines()]


@pytest.mark.parametrize("part", ["ca_ra", "cmproxy", "nf"])
def test_what_strangers_send_to_a_listener_leaves_no_line_of_another_form(observed: RunningLab, part: str) -> None:
    settings = observed.lab.settings
    [nf] = settings.nfs
    port, folder = {
        "ca_ra": (settings.ca_ra_enrolment_port, observed.lab.role("ca_ra")),
        "cmproxy": (settings.cmproxy_port, observed.lab.role("cmproxy")),
        "nf": (nf.port, observed.lab.nf(nf)),
    }[part]
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while stranger.recv(4096):  # until it is let go
                    pass
    assert log(folder)


def test_the_agent_writes_its_metrics(observed: RunningLab) -> None:
    enrol(observed)
    [nf] = observed.lab.settings.nfs
    text = (observed.lab.nf(nf) / "metrics.prom").read_text()
    assert 'nftrust_agent_phase{phase="confirmed"} 1\n' in text
    assert "nftrust_agent_certificate_not_after_timestamp_seconds" in text
