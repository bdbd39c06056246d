"""Registration and EnrolCertificate at the CA/RA, on persistent channels: everything durable and audited."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import labs, load, machine
from bench.figures import Figure, Run, per
from nftrust.api.ca_ra.v1 import enrolment_service_pb2 as pb
from nftrust.api.ca_ra.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub
from nftrust.lab import control
from nftrust.lab.layout import Lab

CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls cost the CA/RA, in all."""

    count: int
    seconds: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.count + other.count, self.seconds + other.seconds, self.cpu + other.cpu)

    @property
    def each(self) -> float:
        """Milliseconds of CPU."""
        return per(self.cpu, self.count)


def measure(run: Run, lab: Lab) -> None:
    """Registered, then redeemed."""
    count, concurrency = run.settings["certificates"], run.settings["concurrency"]
    registered, proofs = asyncio.run(register(lab, count, concurrency))
    issued = asyncio.run(redeem(lab, proofs, concurrency))
    figures = {
        "register": (registered, "RegisterEndEntity: statement, day-0 chain, IAK, signed information, commit, audit"),
        "ca_ra": (issued, "EnrolCertificate: proof, CSR, lint, signature, signed response, commit, audit"),
    }
    for name, (cost, meaning) in figures.items():
        rate = Figure(name=f"issuance.{name}_rate", value=cost.count / cost.seconds, unit="/s", meaning=meaning)
        cpu = Figure(name=f"issuance.{name}_cpu", value=cost.each, unit="ms CPU", meaning="of it, all of the CA/RA")
        run.figures += [rate, cpu]


async def register(lab: Lab, count: int, concurrency: int) -> tuple[Cost, list[str]]:
    """So many software NFs registered; their proofs."""
    nfs = load.make_nfs(lab, count)
    before, started = usage(lab), time.perf_counter()
    answers = await load.register(lab, nfs, concurrency)
    cost = Cost(count, time.perf_counter() - started, usage(lab) - before)
    return cost, [load.make_proof(nf, answer) for nf, answer in zip(nfs, answers, strict=True)]


async def redeem(lab: Lab, proofs: list[str], concurrency: int) -> Cost:
    """A certificate for each proof."""
    channels = [labs.enrolment_channel(lab) for _ in range(CHANNELS)]
    stubs: list[Any] = [EnrolmentServiceStub(channel) for channel in channels]
    calls = [
        partial(stubs[index % CHANNELS].EnrolCertificate, pb.EnrolCertificateRequest(proof=proof))
        for index, proof in enumerate(proofs)
    ]
    warm = pb.GetTrustBundleRequest(nonce=bytes(16))
    await load.at_once([partial(stub.GetTrustBundle, warm) for stub in stubs], CHANNELS)
    before, started = usage(lab), time.perf_counter()
    await load.at_once(calls, concurrency)
    cost = Cost(len(proofs), time.perf_counter() - started, usage(lab) - before)
    for channel in channels:
        await channel.close()
    return cost


def usage(lab: Lab) -> float:
    """CPU seconds that the CA/RA's processes have used."""
    return machine.usage(machine.tree(control.processes(lab)["ca_ra"][0])).cpu
