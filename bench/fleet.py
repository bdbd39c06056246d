"""A fleet: many NF agents in one process, enrolled by the CM proxy and the CA/RA of a lab.

``python -m bench.fleet LAB FOLDER --nfs N --rounds R``, a process of its own,
makes N new NFs in FOLDER (the agent's own code, a token each, day-0
certificates by the lab's root), serves them all from one event loop, and has
OAM start R enrolments of each; every one is all ten steps. What it measured
goes to standard output as JSON.

A PKCS#11 module holds one token per process. Each agent loads a copy of the
module's file instead, which has a state of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench import labs, machine
from bench.figures import Figure, Run, per
from nf_agent.agent import NfAgent
from nf_agent.config import AgentConfig
from nf_agent.initialise import initialise
from nftrust import pki
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1.provisioning_service_pb2_grpc import ProvisioningServiceStub
from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.files import read_file, write_atomically
from nftrust.lab import control
from nftrust.lab.layout import ADDRESS, DAY0_ROOT, HOME_DOMAIN, HOST, TENANT, Lab, free_ports
from nftrust.x509.path import pem_chain
from softhsm import create_token

ENROLMENT_SECONDS = 120.0
#: A folder of random name is made in it, for its owner alone.
TOKEN_FOLDERS = Path("/dev/shm")
WANTED_PER_SECOND = 40.0
FIRST, FURTHER = "first", "further"
ROLES = {"ca_ra": "CA/RA", "cmproxy": "CM proxy", "nfs": "NFs, and OAM's watching"}


@dataclass(frozen=True, slots=True)
class Member:
    """One NF of the fleet, initialised."""

    config: AgentConfig
    transport_key_sha256: bytes

    def provisioned(self) -> pb.NetworkFunction:
        """Step 3: the NF as OAM knows it."""
        return pb.NetworkFunction(
            nf_instance_id=self.config.nf_instance_id,
            nf_type="AMF",
            fqdns=[f"f{self.config.nf_instance_id[:8]}.amf.{HOME_DOMAIN}"],
            agent_endpoint=f"{HOST}:{self.config.listener.address.rpartition(':')[2]}",
            tenant=TENANT,
            day0_root=DAY0_ROOT,
            transport_key_sha256=self.transport_key_sha256,
        )


def make(lab: Lab, folder: Path, tokens: Path, count: int) -> list[Member]:
    """Step 1 for ``count`` NFs: state in ``folder``, tokens in ``tokens``."""
    names = [f"nf{index}" for index in range(count)]
    places = [folder / name for name in names], [tokens / name for name in names], free_ports(count)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        members = list(pool.map(_instantiate, [lab.pki] * count, *places))
    with pki.Pki.open(lab.pki) as opened:
        for member in members:
            request = read_file(member.config.state_dir / "day0.csr")
            certificate = opened.day0_certificate(request, member.config.nf_instance_id)
            write_atomically(member.config.listener.tls.certificate, pem_chain([certificate]), 0o644)
    return members


def _instantiate(trust: Path, folder: Path, token_folder: Path, port: int) -> Member:
    """`nf-agent init`, then the copy of the module that the agent is to load."""
    folder.mkdir(mode=0o700, parents=True)
    token = create_token(token_folder, "nftrust-fleet")
    tls = ServerTlsConfig(
        certificate=folder / "day0.pem", private_key=folder / "day0.key", client_ca=trust / "services-ca.pem"
    )
    config = AgentConfig(
        nf_instance_id=str(uuid.uuid4()),
        state_dir=folder / "state",
        token=token,
        listener=ListenerConfig(address=f"{ADDRESS}:{port}", tls=tls),
        deployment="lab",
    )
    made = initialise(config)
    module = token_folder / "libsofthsm2.so"
    shutil.copyfile(token.module, module)
    return Member(replace(config, token=replace(token, module=module)), made.transport_key_sha256)


def measure(run: Run, lab: Lab) -> None:
    """Whole enrolments: the rate, CPU by role, and how long each takes; first ones apart from further ones."""
    settings = ["--nfs", str(run.settings["fleet"]), "--rounds", str(run.settings["rounds"])]
    command = [sys.executable, "-m", "bench.fleet", str(lab.directory), str(lab.directory / "fleet"), *settings]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    for kind, found in json.loads(told).items():
        what = f"{int(found['count'])} {kind} enrolments, {run.settings['fleet']} NFs in one process"
        wanted = WANTED_PER_SECOND if kind == FURTHER else None
        run.figures += [
            Figure(name=f"fleet.{kind}_rate", value=found["rate"], unit="/s", meaning=what, at_least=wanted),
            Figure(name=f"fleet.{kind}_cpu", value=found["cpu"], unit="ms CPU", meaning="of each, on all sides"),
            *(
                Figure(name=f"fleet.{kind}_{role}", value=found[role], unit="ms CPU", meaning=f"of it, the {title}")
                for role, title in ROLES.items()
            ),
            Figure(name=f"fleet.{kind}_median", value=found["median"], unit="s", meaning="median time of one"),
            Figure(name=f"fleet.{kind}_slowest", value=found["slowest"], unit="s", meaning="the slowest"),
        ]


async def enrol(lab: Lab, members: list[Member], rounds: int) -> dict[str, Any]:
    """Serve the fleet; ``rounds`` enrolments of each NF, the first round measured apart."""
    async with AsyncExitStack() as stack:
        for member in members:  # one after the other: each token's settings are in the environment while it starts
            await stack.enter_async_context(NfAgent.open(member.config))
        channel = labs.oam_channel(lab, "cmproxy")
        stack.push_async_callback(channel.close)
        stub: Any = ProvisioningServiceStub(channel)
        for member in members:
            request = pb.CreateNetworkFunctionRequest(network_function=member.provisioned())
            await stub.CreateNetworkFunction(request, timeout=30)
        first = await _timed(lab, stub, members, 1)
        return {FIRST: first, FURTHER: await _timed(lab, stub, members, rounds)}


async def _timed(lab: Lab, stub: Any, members: list[Member], rounds: int) -> dict[str, float]:
    pids = {role: machine.tree(control.processes(lab)[role][0]) for role in ("ca_ra", "cmproxy")}
    pids["nfs"] = [os.getpid()]
    before = {role: machine.usage(found) for role, found in pids.items()}
    started = time.perf_counter()
    seconds = [*chain.from_iterable(await asyncio.gather(*(_rounds(stub, each, rounds) for each in members)))]
    wall = time.perf_counter() - started
    count = len(seconds)
    cpu = {role: per((machine.usage(found) - before[role]).cpu, count) for role, found in pids.items()}
    return cpu | {
        "count": count,
        "cpu": sum(cpu.values()),
        "rate": count / wall,
        "median": statistics.median(seconds),
        "slowest": max(seconds),
    }


async def _rounds(stub: Any, member: Member, rounds: int) -> list[float]:
    """StartEnrolment to SUCCEEDED, one after the other; the seconds of each."""
    parent = f"networkFunctions/{member.config.nf_instance_id}"
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        request = pb.StartEnrolmentRequest(parent=parent, allow_re_enrolment=True, request_id=str(uuid.uuid4()))
        name = (await stub.StartEnrolment(request, timeout=30)).name
        last = pb.Enrolment()
        async for update in stub.WatchEnrolment(pb.WatchEnrolmentRequest(name=name), timeout=ENROLMENT_SECONDS):
            last = update.enrolment
        if last.state != pb.Enrolment.SUCCEEDED:
            raise RuntimeError(f"{name}: {pb.Enrolment.State.Name(last.state)} {last.error.reason}")
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("lab", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nfs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    lab = Lab.open(arguments.lab)
    # A production NF's token has no disk to wait for; SoftHSM flushes each key to one.
    with tempfile.TemporaryDirectory(prefix="nftrust-fleet-", dir=TOKEN_FOLDERS) as tokens:
        members = make(lab, arguments.folder, Path(tokens), arguments.nfs)
        figures = asyncio.run(enrol(lab, members, arguments.rounds))
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
