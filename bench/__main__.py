"""`make bench`: the CA/RA beside the raw token, then whole enrolments; `floods`: these beside hostile peers.

`make soak`: memory and handles over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.json_format import Parse

from bench import agent, floods, load, machine
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as enrolment_pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.cli.session import Session
from nftrust.lab import control
from nftrust.lab.layout import OPERATOR_FILE, Lab
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import GenerateKeyPair, SignDigest
from softhsm import create_token

CONCURRENCY = 64
CHANNELS = 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["all", "floods", "soak"], default="all")
    parser.add_argument("--certificates", type=int, default=1500)
    parser.add_argument("--nfs", type=int, default=8, help="NF agents for whole enrolments")
    parser.add_argument("--fleet", type=int, default=32, help="NF agents in one process")
    parser.add_argument("--rounds", type=int, default=10, help="enrolments of each NF")
    parser.add_argument("--seconds", type=int, default=600, help="length of the soak")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="nftrust-bench-") as folder:
        lab = Lab.make(Path(folder) / "lab", arguments.nfs, allow_tls_only_iak=True)
        control.up(lab, lambda text: print(f"· {text}", file=sys.stderr))
        try:
            if arguments.what == "soak":
                figures = soak(lab, arguments.seconds)
            elif arguments.what == "floods":
                figures = under_floods(lab, arguments.rounds)
            else:
                figures = measure(lab, arguments)
        finally:
            control.down(lab)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(lab: Lab, arguments: argparse.Namespace) -> dict[str, float]:
    """Everything, printed as it comes."""
    figures = agent.measure(lab)
    with tempfile.TemporaryDirectory(prefix="nftrust-token-") as folder:
        figures |= raw_token(Path(folder), 4 * arguments.certificates)
    figures |= asyncio.run(certificates(lab, arguments.certificates))
    ratio = figures["ca_cpu_ms"] / figures["token_cpu_ms"]
    print(f"CPU per certificate is {ratio:.1f}× the raw token signature's (same run)")
    figures["cpu_ratio"] = ratio
    figures |= enrolments(lab, arguments.rounds)
    figures |= fleet(lab, arguments.fleet, arguments.rounds)
    for role in control.SERVERS:
        memory = machine.proportional_memory(machine.tree(control.processes(lab)[role][0]))
        print(f"{role:<9} proportional memory of the tree {memory:6.0f} MB")
        figures[f"{role}_pss_mb"] = memory
    return figures


def raw_token(folder: Path, count: int) -> dict[str, float]:
    """P-256 signatures by the same worker in batches, nothing else."""
    client = TokenClient.worker(create_token(folder / "token", "bench"))
    try:
        client.ready()
        client.call(GenerateKeyPair("key", "ec-p256"))
        operation = SignDigest("key", "ecdsa", "sha256", bytes(32))
        assert client.worker_pid is not None

        async def run() -> None:
            await load.at_once([lambda: client.run(operation)] * count, CONCURRENCY)

        before, started = machine.usage([client.worker_pid]), time.perf_counter()
        asyncio.run(run())
        wall = time.perf_counter() - started
        cpu = (machine.usage([client.worker_pid]) - before).cpu
    finally:
        client.close()
    print(f"raw token   {count / wall:8.0f} signatures/s   {1000 * cpu / count:6.3f} ms CPU each (worker)")
    return {"token_per_s": count / wall, "token_cpu_ms": 1000 * cpu / count}


async def certificates(lab: Lab, count: int) -> dict[str, float]:
    """EnrolCertificate on persistent channels: proof, CSR, lint, signature, commit, audit."""
    nfs = load.make_nfs(lab, count)
    pids = machine.tree(control.processes(lab)["ca_ra"][0])
    before, started = machine.usage(pids), time.perf_counter()
    answers = await load.register(lab, nfs, CONCURRENCY)
    wall = time.perf_counter() - started
    cpu = (machine.usage(pids) - before).cpu
    print(f"registered  {count / wall:8.0f} end entities/s {1000 * cpu / count:6.2f} ms CPU each (CA/RA)")
    figures = {"register_per_s": count / wall, "register_cpu_ms": 1000 * cpu / count}
    proofs = [load.make_proof(nf, answer) for nf, answer in zip(nfs, answers, strict=True)]
    channels = load.enrolment_channels(lab, CHANNELS)
    stubs: list[Any] = [EnrolmentServiceStub(channel) for channel in channels]
    calls = [
        partial(stubs[index % CHANNELS].EnrolCertificate, enrolment_pb.EnrolCertificateRequest(proof=proof))
        for index, proof in enumerate(proofs)
    ]
    warm = enrolment_pb.GetTrustBundleRequest(nonce=bytes(16))
    await load.at_once([partial(stub.GetTrustBundle, warm) for stub in stubs], CHANNELS)
    before, started = machine.usage(pids), time.perf_counter()
    await load.at_once(calls, CONCURRENCY)
    wall = time.perf_counter() - started
    cpu = (machine.usage(pids) - before).cpu
    for channel in channels:
        await channel.close()
    print(f"issued      {count / wall:8.0f} certificates/s {1000 * cpu / count:6.2f} ms CPU each (CA/RA)")
    return figures | {"ca_per_s": count / wall, "ca_cpu_ms": 1000 * cpu / count}


def enrolments(lab: Lab, rounds: int) -> dict[str, float]:
    """Whole enrolments, NF agents with tokens of their own, all on this machine."""
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        _provision(lab, session)
        started = time.perf_counter()
        _enrol_rounds(lab, session, rounds)
        wall = time.perf_counter() - started
    count = rounds * len(lab.settings.nfs)
    print(f"enrolled    {count / wall:8.1f} whole enrolments/s ({len(lab.settings.nfs)} NF agents, {count} enrolments)")
    return {"enrolments_per_s": count / wall}


def fleet(lab: Lab, nfs: int, rounds: int) -> dict[str, float]:
    """Whole enrolments, all NF agents in one process of their own: CPU by role, first enrolments apart."""
    command = [sys.executable, "-m", "bench.fleet", str(lab.directory), str(lab.directory / "fleet")]
    options = ["--nfs", str(nfs), "--rounds", str(rounds)]
    told = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True).stdout
    figures: dict[str, float] = {}
    for name, found in json.loads(told).items():
        cpu = " + ".join(f"{found[f'{role}_cpu_ms']:.1f}" for role in ("ca_ra", "cmproxy", "load"))
        print(f"fleet       {found['per_s']:8.1f} whole enrolments/s ({nfs} NFs, {name}: {found['count']})", end=" ")
        print(f"{found['cpu_ms']:6.1f} ms CPU each (CA/RA + CM proxy + NFs: {cpu})")
        figures |= {f"fleet_{name}_{key}": value for key, value in found.items()}
    return figures


def _provision(lab: Lab, session: Session) -> None:
    stub = session.provisioning()
    for nf in lab.settings.nfs:
        body = Parse((lab.nf(nf) / control.PROVISION_FILE).read_bytes(), pb.NetworkFunction())
        stub.CreateNetworkFunction(pb.CreateNetworkFunctionRequest(network_function=body), timeout=10)


def _enrol_rounds(lab: Lab, session: Session, rounds: int) -> None:
    stub = session.provisioning()

    def enrol(nf_instance_id: str) -> None:
        for _ in range(rounds):
            parent = f"networkFunctions/{nf_instance_id}"
            request = pb.StartEnrolmentRequest(parent=parent, allow_re_enrolment=True, request_id=str(uuid.uuid4()))
            started = stub.StartEnrolment(request, timeout=10)
            last = pb.Enrolment()
            for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=started.name), timeout=60):
                last = update.enrolment
            if last.state != pb.Enrolment.SUCCEEDED:
                raise RuntimeError(f"{started.name}: {last.error.reason}")

    ids = [nf.nf_instance_id for nf in lab.settings.nfs]
    with ThreadPoolExecutor(max_workers=len(ids)) as pool:
        list(pool.map(enrol, ids))


def under_floods(lab: Lab, rounds: int) -> dict[str, float]:
    """One enrolment at a time of every NF at once, with and without hostile peers."""
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        _provision(lab, session)
        _enrol_rounds(lab, session, 1)
    return floods.measure(lab, rounds, lambda session: _enrol_rounds(lab, session, 1))


def soak(lab: Lab, seconds: int) -> dict[str, float]:
    """Enrol over and over; memory and handles at the first tenth against the end."""
    figures: dict[str, float] = {}
    first: dict[str, tuple[float, int]] = {}
    with Session.open(lab.directory / OPERATOR_FILE) as session:
        _provision(lab, session)
        end = time.monotonic() + seconds
        warm = time.monotonic() + seconds / 10
        count = 0
        while time.monotonic() < end:
            _enrol_rounds(lab, session, 5)
            count += 5 * len(lab.settings.nfs)
            if not first and time.monotonic() > warm:
                first = _footprints(lab)
        last = _footprints(lab)
    print(f"{count} enrolments in {seconds} s")
    for name, (memory, handles) in last.items():
        before = first.get(name, (memory, handles))
        print(f"{name:<9} {before[0]:6.0f} → {memory:6.0f} MB   {before[1]:4d} → {handles:4d} handles")
        figures[f"{name}_growth"] = memory / before[0]
    return figures


def _footprints(lab: Lab) -> dict[str, tuple[float, int]]:
    found = {}
    for name, pids in control.processes(lab).items():
        trees = [pid for top in pids for pid in machine.tree(top)]
        found[name] = (machine.proportional_memory(trees), machine.handles(trees))
    return found


if __name__ == "__main__":
    sys.exit(main())
