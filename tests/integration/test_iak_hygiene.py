"""In wrapped mode the IAK is in clear in the two tokens and nowhere else.

A known IAK is planted in the CA's token (tests/insecure_known_iak.py, the only
difference to a real lab), delivered, and redeemed. Then it is looked for in
every file of the lab, as a kill leaves them, and in every process but two: the
CA/RA's token worker and the agent of the NF that the IAK is for, whose PKCS#11
modules hold it rightfully while they use it. These two may not dump a core;
what a core of the others would hold is their memory, which is searched.

That a search finds nothing proves nothing about custody by itself; it would
show a copy that somebody made by mistake.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from google.protobuf.json_format import Parse

from bench import machine
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import Session
from nftrust.lab import control
from nftrust.lab.layout import OPERATOR_FILE, Lab
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import PublicKey
from softhsm.setup import open_config
from tests.insecure_known_iak import PLANTED_FILE, plant
from tests.secret_search import files_with, forms, processes_with

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(240)]

WAIT_SECONDS = 60.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Two NFs: the agent of the second is as foreign to the first one's IAK as any other process."""
    made = Lab.make(tmp_path / "lab", 2)
    control.up(made, print)
    try:
        yield made
    finally:
        control.down(made)


def run_insecure_ca(lab: Lab, iak: bytes) -> None:
    """Put the CA/RA with the known IAK in the place of the lab's own."""
    ends = control.processes(lab)
    [pid] = ends["ca_ra"]
    os.kill(pid, signal.SIGTERM)
    control._children[pid].wait(WAIT_SECONDS)
    # The transport key from the NF's state: its token belongs to its agent, and a second worker may look.
    nf = TokenClient.worker(open_config(lab.token(lab.settings.nfs[0].folder)))
    try:
        nf.ready()
        spki = nf.call(PublicKey("nf-transport"))
    finally:
        nf.close()
    folder = lab.role("ca_ra")
    (folder / PLANTED_FILE).write_bytes(msgspec.json.encode(plant(open_config(lab.token("ca_ra")), iak, spki)))
    (folder / control.READY_FILE).unlink()
    command = [sys.executable, "-m", "tests.insecure_known_iak", "run", "--config", str(folder / "config.toml")]
    started = control._spawn([*command, "--ready-file", str(folder / control.READY_FILE)], folder)
    lab.write_description(ends | {"ca_ra": [started]})
    deadline = time.monotonic() + WAIT_SECONDS
    while not (folder / control.READY_FILE).exists():
        assert time.monotonic() < deadline, (folder / control.LOG_FILE).read_text()[-2000:]
        time.sleep(0.05)


def enrol(lab: Lab) -> pb.Enrolment:
    """The first NF's enrolment, to its end."""
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        stub = session.provisioning()
        body = Parse((lab.nf(lab.settings.nfs[0]) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())
        created = stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=body), timeout=20)
        request = pb.StartEnrolmentRequest(parent=created.name, request_id=str(uuid.uuid4()))
        last = stub.StartEnrolment(request, timeout=20)
        for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=last.name), timeout=WAIT_SECONDS):
            last = update.enrolment
    return last


def is_token_worker(pid: int) -> bool:
    return b"nftrust.pkcs11.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def may_dump_core(pid: int) -> bool:
    [line] = [text for text in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in text]
    return line.split()[-3:-1] != ["0", "0"]


def test_the_iak_is_in_clear_nowhere_outside_the_two_tokens(lab: Lab) -> None:
    iak = secrets.token_bytes(32)
    run_insecure_ca(lab, iak)
    processes = control.processes(lab)
    enrolment = enrol(lab)
    assert enrolment.state == pb.Enrolment.SUCCEEDED, enrolment

    everything = {pid for pids in processes.values() for top in pids for pid in machine.tree(top)}
    rightful = {pid for pid in machine.tree(processes["ca_ra"][0]) if is_token_worker(pid)} | {processes["nfs"][0]}
    assert len(rightful) == 2
    # Supervisor and front of CA/RA, CM proxy and verifier, the CM proxy's token worker, the other NF's agent.
    assert len(everything - rightful) >= 8
    assert processes_with(everything - rightful, iak) == {}
    assert not any(map(may_dump_core, rightful))
    # The rightful two have it in neither argument nor environment.
    assert all(places == ["memory"] for places in processes_with(rightful, iak).values())

    for pid in everything:  # SIGKILL: write-ahead logs stay as they are
        os.kill(pid, signal.SIGKILL)
    while any(control.alive(pid) for pids in processes.values() for pid in pids):
        time.sleep(0.02)
    assert files_with(lab.directory, iak) == []
    # The search reaches what the CA/RA wrote about this very IAK: the ciphertext that went to the NF is there.
    planted = msgspec.json.decode((lab.role("ca_ra") / PLANTED_FILE).read_bytes())
    blob = base64.b64decode(planted["vault_blob"])
    assert any(name.startswith("ca_ra/store.sqlite") for name in files_with(lab.directory, blob))


@pytest.mark.parametrize("form", range(9))
def test_the_search_finds_each_form_in_files(tmp_path: Path, form: int) -> None:
    secret = bytes(range(200, 232))
    every = sorted(forms(secret))
    assert len(every) == 9
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x" * 999 + every[form] + b"x" * 999)
    (tmp_path / "other").write_bytes(os.urandom(4096))
    assert files_with(tmp_path, secret) == ["below/file"]
    # Within a JWS payload, where the base64url text of the key is base64url again.
    inner = b'{"k":"' + base64.urlsafe_b64encode(secret).rstrip(b"=") + b'"}'
    (tmp_path / "other").write_bytes(base64.urlsafe_b64encode(inner))
    assert sorted(files_with(tmp_path, secret)) == ["below/file", "other"]


def test_the_search_finds_what_a_process_holds() -> None:
    secret = secrets.token_bytes(32)
    # The memory holds bytes that neither argument nor environment spells.
    program = (
        "import sys; held = bytes(255 - b for b in sys.stdin.buffer.read(32)); print(flush=True); sys.stdin.read()"
    )
    for arguments, environment, sent, places in (
        ([], {}, secret, ["memory"]),
        ([secret.hex()], {}, bytes(32), ["argv", "memory"]),
        ([], {"KEY": base64.b64encode(secret).decode()}, bytes(32), ["environment", "memory"]),
        ([], {}, bytes(32), None),
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(bytes(255 - byte for byte in sent))
            process.stdin.flush()
            process.stdout.readline()
            found = processes_with([process.pid], secret)
            process.stdin.write(b"\n")
            process.stdin.close()
        assert found == ({} if places is None else {process.pid: places})
