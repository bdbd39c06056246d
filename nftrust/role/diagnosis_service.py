"""DiagnosisService: a role tells OAM its version, its time and what it lacks (docs/doctor.md).

A probe is asked and raises what is wrong; it changes nothing. Only stable
reasons and our own words leave the role.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from nftrust import __version__
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as pb
from nftrust.api.diagnosis.v1.diagnosis_service_pb2_grpc import (
    DiagnosisServiceServicer,
    add_DiagnosisServiceServicer_to_server,
)
from nftrust.clock import Clock, SystemClock
from nftrust.errors import NftrustError, Reason, invalid_field
from nftrust.pkcs11.client import TokenClient
from nftrust.rpc.server import ServiceBinding
from nftrust.storage import Store

METHOD = "/nftrust.api.diagnosis.v1.DiagnosisService/GetDiagnosis"
MAX_NETWORK_FUNCTIONS = 64

log = logging.getLogger(__name__)

#: Raises NftrustError where something is wrong.
Probe = Callable[[], Awaitable[None]]
#: Of one network function by its resource name, in the scope of the current peer.
NfProbe = Callable[[str], Awaitable[pb.AgentReport]]


def own_probes(store: Store, clock: Clock, token: TokenClient | None = None) -> dict[str, Probe]:
    """What every role needs: its clock, its database, its token."""

    async def look_at_clock() -> None:
        clock.now()

    async def look_at_token() -> None:
        if token is not None and not token.available:
            raise NftrustError(Reason.TOKEN_UNAVAILABLE)

    probes: dict[str, Probe] = {"clock": look_at_clock, "storage": store.check}
    return probes if token is None else {**probes, "token": look_at_token}


class DiagnosisServicer(DiagnosisServiceServicer):
    """Asks every probe at once; ``wall`` is the clock that is told, not the guarded one."""

    def __init__(self, probes: Mapping[str, Probe], nf_probe: NfProbe | None = None, wall: Clock | None = None) -> None:
        self._probes = probes
        self._nf_probe = nf_probe
        self._wall = wall or SystemClock()

    async def GetDiagnosis(
        self, request: pb.GetDiagnosisRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.Diagnosis:
        names = list(dict.fromkeys(request.network_functions))
        if len(names) > MAX_NETWORK_FUNCTIONS or (names and self._nf_probe is None):
            raise invalid_field("network_functions", f"at most {MAX_NETWORK_FUNCTIONS}, and of a CM proxy only")
        looks = [_look(subject, probe) for subject, probe in self._probes.items()]
        looks += [self._look_at_nf(name) for name in names]
        findings: Sequence[pb.Finding] = await asyncio.gather(*looks)
        time = Timestamp()
        time.FromDatetime(self._wall.now())
        return pb.Diagnosis(version=__version__, time=time, findings=findings)

    async def _look_at_nf(self, name: str) -> pb.Finding:
        report = pb.AgentReport()

        async def probe() -> None:
            assert self._nf_probe is not None
            report.CopyFrom(await self._nf_probe(name))

        finding = await _look(name[:256], probe)
        if not finding.reason:
            finding.agent.CopyFrom(report)
        return finding


async def _look(subject: str, probe: Probe) -> pb.Finding:
    try:
        await probe()
    except NftrustError as error:
        return pb.Finding(subject=subject, reason=error.reason.name, message=error.message)
    except Exception:
        log.exception("a probe failed unexpectedly", extra={"subject": subject})
        return pb.Finding(subject=subject, reason=Reason.INTERNAL.name, message=Reason.INTERNAL.meaning)
    return pb.Finding(subject=subject)


def diagnosis_binding(probes: Mapping[str, Probe], nf_probe: NfProbe | None = None) -> ServiceBinding:
    """The service, ready to be served."""
    descriptor = pb.DESCRIPTOR.services_by_name["DiagnosisService"]
    return ServiceBinding(add_DiagnosisServiceServicer_to_server, DiagnosisServicer(probes, nf_probe), descriptor)
