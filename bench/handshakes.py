"""What a TLS connection costs the CA/RA: the cheapest call on fresh ones, beside the same on persistent ones.

A call costs more alone than among others; both are made with as many under
way, so that what differs is the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench import labs, load
from bench.figures import Figure, Run
from bench.issuance import Cost, usage
from nftrust.files import read_file
from nftrust.lab.layout import Lab

UNDER_WAY = 16


def measure(run: Run, lab: Lab) -> None:
    """Health checks on the enrolment listener."""
    count = run.settings["certificates"]
    persistent = asyncio.run(_persistent(lab, count))
    target = lab.description({})["ca_ra"]["enrolment"]
    credentials = grpc.ssl_channel_credentials(read_file(lab.pki / "services-ca.pem"))
    fresh = asyncio.run(_many(lab, count // 2, partial(_fresh, target, credentials)))
    for name, value, meaning in (
        ("call_cpu", persistent.each, f"a health check on a persistent channel, {UNDER_WAY} under way (CA/RA)"),
        ("fresh_cpu", fresh.each, "TLS handshake (server-authenticated) and the same call (CA/RA)"),
        ("cpu", fresh.each - persistent.each, "the connection alone"),
    ):
        run.figures.append(Figure(name=f"handshakes.{name}", value=value, unit="ms CPU", meaning=meaning))


async def _persistent(lab: Lab, count: int) -> Cost:
    channels = [labs.enrolment_channel(lab) for _ in range(UNDER_WAY)]
    try:
        await asyncio.gather(*map(_check, channels))
        turns = iter(range(count))
        return await _many(lab, count, lambda: _check(channels[next(turns) % UNDER_WAY]))
    finally:
        for channel in channels:
            await channel.close()


async def _fresh(target: str, credentials: grpc.ChannelCredentials) -> None:
    # With gRPC's own patience: a handshake that is given up and made again would count twice.
    async with grpc.aio.secure_channel(target, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        await _check(channel)


async def _check(channel: Any) -> None:
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)


async def _many(lab: Lab, count: int, call: Callable[[], Awaitable[None]]) -> Cost:
    before, started = usage(lab), time.perf_counter()
    await load.at_once([call] * count, UNDER_WAY)
    return Cost(count, time.perf_counter() - started, usage(lab) - before)
