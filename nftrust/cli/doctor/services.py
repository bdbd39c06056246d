"""A role behind its management listener: does it let us in, which version, what time, and what does it lack?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nftrust import __version__
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as pb
from nftrust.api.diagnosis.v1.diagnosis_service_pb2_grpc import DiagnosisServiceStub
from nftrust.cli.doctor.checks import Check, Finding, attention, broken, cannot_tell, ok, refused
from nftrust.cli.doctor.listener import Listener
from nftrust.cli.session import Session, refusal
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.rpc.status import RemoteError

#: Clocks further apart than this are worth a line; security decisions fail at some minutes.
TOLERANCE = timedelta(seconds=30)


def series(version: str) -> list[str]:
    """The part of a version that has to be the same on both sides of a hop: `0.1` of `0.1.7`."""
    return version.split(".")[:2]


@dataclass
class Clocks:
    """How far each role's clock is ahead of this machine's."""

    clock: Clock
    ahead: dict[str, timedelta] = field(default_factory=dict)

    def add(self, name: str, told: datetime, asked: datetime, answered: datetime) -> None:
        self.ahead[name] = told - (asked + (answered - asked) / 2)

    @property
    def reference(self) -> timedelta:
        """The median of all clocks, this machine's among them: one that is wrong does not move it."""
        return timedelta(seconds=statistics.median([0.0, *(each.total_seconds() for each in self.ahead.values())]))

    def check(self) -> Check:
        return Check("oam.time", "clocks", self._own)

    def _own(self) -> Finding:
        if not self.ahead:
            return cannot_tell("no role has told its time", "Mend what is broken above, then look again.")
        if len(self.ahead) > 1 and abs(self.reference) > TOLERANCE:
            return broken(
                f"the clock of this machine is {apart(-self.reference)} those of the roles",
                "Set this machine's clock right (NTP).",
            )
        return ok("this machine's clock goes with those of the roles")

    def of(self, name: str, title: str) -> Finding:
        """A role's clock against the others."""
        reference = self.reference if len(self.ahead) > 1 else timedelta()
        difference = self.ahead[name] - reference
        if abs(difference) > TOLERANCE:
            return broken(
                f"the clock of the {title} is {apart(difference)} the others", "Set that machine's clock right (NTP)."
            )
        return ok(f"its clock is {abs(difference.total_seconds()):.1f} s from the others")


def apart(difference: timedelta) -> str:
    seconds = abs(difference.total_seconds())
    return f"{seconds:.0f} s {'ahead of' if difference > timedelta() else 'behind'}"


@dataclass
class Service:
    """One server role."""

    listener: Listener
    session: Session
    clocks: Clocks
    has_token: bool = True
    diagnosis: pb.Diagnosis = field(default_factory=pb.Diagnosis)

    @property
    def id(self) -> str:
        return self.listener.role

    @property
    def title(self) -> str:
        return {"ca-ra": "CA/RA", "cm-proxy": "CM proxy", "verifier": "verifier"}[self.id]

    def needs(self, *names: str) -> tuple[str, ...]:
        """Keys of this role's checks."""
        return tuple(f"{self.id}.{name}" for name in names)

    @property
    def whole(self) -> tuple[str, ...]:
        """What has to be well before it is worth asking the role for anything else."""
        return self.needs("clock", "storage", *(("token",) if self.has_token else ()))

    def checks(self) -> tuple[Check, ...]:
        own = [("clock", "its clock is trusted"), ("storage", "its database answers"), ("token", "its token answers")]
        reached = self.needs("version")
        return (
            *self.listener.checks(),
            Check(f"{self.id}.admission", self.title, self.admission, (self.listener.well,)),
            Check(f"{self.id}.version", self.title, self.version, self.needs("admission")),
            *(
                Check(f"{self.id}.{subject}", self.title, lambda s=subject, w=words: self.finding(s, w), reached)  # type: ignore[misc]
                for subject, words in own
                if subject != "token" or self.has_token
            ),
            Check(f"{self.id}.serving", self.title, self.serving, self.whole),
        )

    def admission(self) -> Finding:
        """Any answer of the health service means that we are let in."""
        try:
            self._health()
        except NftrustError as error:
            return self._not_admitted(error)
        return ok("it lets us in")

    def _not_admitted(self, error: NftrustError) -> Finding:
        if error.reason is Reason.DEADLINE:
            remedy = "It hangs, or the way to it is slow: look into its log."
            return broken(f"the {self.title} does not answer in time", remedy, error.reason.name)
        if isinstance(error, RemoteError) and not error.remote_reason and error.code is grpc.StatusCode.UNAVAILABLE:
            return broken(
                f"the {self.title} breaks off the handshake: it does not take OAM's certificate",
                f"Check `management.tls.client_ca` of the {self.title}: it has to be the services CA.",
            )
        return refused(error.reason.name, error.message, f"the {self.title} does not let us in: ")

    def _health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self.session.channel(self.listener.target))
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=self.session.timeout)
        except grpc.RpcError as error:
            raise refusal(error) from None
        return int(answer.status)

    def ask(self, network_functions: Sequence[str] = ()) -> pb.Diagnosis:
        """Raises NftrustError."""
        stub = DiagnosisServiceStub(self.session.channel(self.listener.target))
        request = pb.GetDiagnosisRequest(network_functions=network_functions)
        try:
            # The role itself waits for its peers, each with a deadline of its own.
            answer: pb.Diagnosis = stub.GetDiagnosis(request, timeout=3 * self.session.timeout)
        except grpc.RpcError as error:
            raise refusal(error) from None
        return answer

    def version(self) -> Finding:
        asked = self.clocks.clock.now()
        try:
            self.diagnosis = self.ask()
        except NftrustError as error:
            if error.reason is Reason.PEER_INCOMPATIBLE:
                return broken(
                    f"the {self.title} is too old to be asked: it serves no DiagnosisService",
                    f"Bring the {self.title} up to version {__version__}.",
                    error.reason.name,
                )
            return refused(error.reason.name, error.message)
        told = self.diagnosis.time.ToDatetime(UTC)
        self.clocks.add(self.id, told, asked, self.clocks.clock.now())
        if series(self.diagnosis.version) != series(__version__):
            return attention(
                f"the {self.title} has version {self.diagnosis.version[:64]}, this command {__version__}",
                "Bring all roles and this command to one version.",
            )
        return ok(f"it has version {self.diagnosis.version[:64]}")

    def finding(self, subject: str, words: str, where: str = "") -> Finding:
        """What the role says of ``subject``; ``where`` leads a trouble, the role's name where it is empty."""
        for finding in self.diagnosis.findings:
            if finding.subject == subject:
                if finding.reason:
                    return refused(finding.reason, finding.message, f"{where or self.title}: ")
                return ok(words)
        return cannot_tell(f"the {self.title} says nothing of its {subject}", "Look into its log.")

    def serving(self) -> Finding:
        """The health of the whole server: the front that answered may be well while another is not."""
        try:
            status = self._health()
        except NftrustError as error:
            return self._not_admitted(error)
        if status != health_pb2.HealthCheckResponse.SERVING:
            return broken(
                f"the {self.title} says NOT_SERVING although the front that answered is well",
                "Another of its fronts lacks token or database, or it is draining: look into its log.",
            )
        return ok("it says SERVING")

    def time_check(self) -> Check:
        return Check(f"{self.id}.time", "clocks", lambda: self.clocks.of(self.id, self.title), self.needs("version"))
