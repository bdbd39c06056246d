"""What only the CM proxy sees: its way to its peers and to each NF agent; and how the enrolments stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import grpc

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2 as diagnosis_pb
from nftrust.cli.doctor import certificates
from nftrust.cli.doctor.checks import Check, Finding, attention, broken, ok, refused
from nftrust.cli.doctor.services import TOLERANCE, Service, apart, series
from nftrust.cli.network_functions import resolve
from nftrust.cli.session import refusal
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.pki import DAY0_LIFETIME

#: Looked at where no NF is named; each is dialled.
MAX_NFS = 256
_BATCH = 64
_PROXY = "CM proxy to its peers"
_STAGES: tuple[tuple[str, frozenset[Reason], str], ...] = (
    ("nf.reach", frozenset({Reason.NF_UNREACHABLE, Reason.DEADLINE}), "the CM proxy reaches the agent"),
    (
        "nf.day0-certificate",
        frozenset(
            {
                Reason.DAY0_CHAIN_UNTRUSTED,
                Reason.DAY0_IDENTITY_MISMATCH,
                Reason.DAY0_CERTIFICATE_EXPIRED,
                Reason.DAY0_CERTIFICATE_INVALID,
                Reason.DAY0_ROOT_UNKNOWN,
            }
        ),
        "its day-0 certificate is of the provisioned root and for this NF",
    ),
    (
        "nf.transport-key",
        frozenset({Reason.TRANSPORT_KEY_MISMATCH, Reason.TRANSPORT_KEY_UNPROVISIONED, Reason.TRANSPORT_KEY_UNUSABLE}),
        "its transport key is the provisioned one",
    ),
    ("nf.trust-anchor", frozenset({Reason.TRUST_ANCHOR_DIFFERS}), "its trust anchor is the operator's root"),
)
_NAMED = frozenset[Reason]().union(*(reasons for _, reasons, _ in _STAGES))


@dataclass(frozen=True, slots=True)
class Look:
    """What the CM proxy found of an NF, and its own time then."""

    finding: diagnosis_pb.Finding
    time: datetime


@dataclass
class NetworkFunctions:
    """The NFs that OAM may see, as the CM proxy meets them."""

    proxy: Service
    ca_ra: Service
    verifier: Service
    clock: Clock
    #: As `nftrust nf show` takes it; empty: all.
    wanted: tuple[str, ...] = ()

    def checks(self) -> tuple[Check, ...]:
        certificate = "cm-proxy.client-certificate"
        ready = (certificate, *self.proxy.needs("token", "clock"))
        look = self.proxy.finding
        return (
            Check(
                certificate,
                _PROXY,
                lambda: look("client-certificate", "its client certificate is valid"),
                self.proxy.needs("version"),
            ),
            Check(
                "cm-proxy.to-ca-ra",
                _PROXY,
                lambda: look("ca-ra", "it reaches the CA/RA and is let in", "CM proxy to CA/RA"),
                (*ready, *self.ca_ra.needs("storage", "management.role")),
            ),
            Check("cm-proxy.to-verifier", _PROXY, self._to_verifier, (*ready, *self.verifier.needs("storage"))),
            Check("nf.list", _PROXY, self.network_functions, (*ready, *self.proxy.needs("storage"))),
        )

    def _to_verifier(self) -> Finding:
        if all(finding.subject != "verifier" for finding in self.proxy.diagnosis.findings):
            return ok("it uses no verifier")
        return self.proxy.finding("verifier", "it reaches the verifier and is let in", "CM proxy to verifier")

    def network_functions(self) -> Finding:
        """Which NFs there are; the CM proxy dials each."""
        try:
            known, more = self._find()
            found = [nf for nf in known if nf.state not in (pb.NetworkFunction.RETIRING, pb.NetworkFunction.RETIRED)]
            looks = {look.finding.subject: look for look in self._look([nf.name for nf in found])}
        except NftrustError as error:
            return refused(error.reason.name, error.message)
        except grpc.RpcError as failure:
            refused_by = refusal(failure)
            return refused(refused_by.reason.name, refused_by.message)
        made = [check for nf in found for check in Nf(self.proxy, self.clock, nf, looks[nf.name]).checks()]
        made += [_retirement(nf) for nf in known if nf.state == pb.NetworkFunction.RETIRING]
        text = f"{len(found)} NFs are looked at" + (", not all: name others with --nf" if more else "")
        return ok(text, tuple(made))

    def _find(self) -> tuple[list[pb.NetworkFunction], bool]:
        session = self.proxy.session
        if self.wanted:
            return [resolve(session, text) for text in self.wanted], False
        request = pb.ListNetworkFunctionsRequest(page_size=MAX_NFS)
        answer = session.provisioning().ListNetworkFunctions(request, timeout=session.timeout)
        return list(answer.network_functions), bool(answer.next_page_token)

    def _look(self, names: Iterable[str]) -> Iterator[Look]:
        waiting = list(names)
        while waiting:
            batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
            answer = self.proxy.ask(batch)
            now = answer.time.ToDatetime(UTC)
            yield from (Look(finding, now) for finding in answer.findings if finding.subject in batch)


def _retirement(nf: pb.NetworkFunction) -> Check:
    """Of an NF that is no longer dialled."""

    def look() -> Finding:
        problem = nf.retirement_error
        if problem.reason:
            return attention(f"its retirement waits: {problem.message}", problem.remedy, problem.reason)
        return ok("it is being retired")

    return Check("nf.retirement", f"NF {nf.nf_type} {nf.nf_instance_id}", look, ("nf.list",), nf.nf_instance_id)


@dataclass
class Nf:
    """One NF: what the CM proxy found, stage by stage, then what the agent says, then its last enrolment."""

    proxy: Service
    clock: Clock
    nf: pb.NetworkFunction
    seen: Look
    made: list[Check] = field(default_factory=list)

    @property
    def look(self) -> diagnosis_pb.Finding:
        return self.seen.finding

    @property
    def subject(self) -> str:
        return f"{self.nf.nf_type} {self.nf.nf_instance_id}"

    def checks(self) -> list[Check]:
        for name, reasons, words in _STAGES:
            self._add(name, self._stage(reasons, words))
        self._add("nf.agent", self.agent)
        self._add("nf.day0-expiry", self.day0_expiry)
        self._add("nf.time", self.time)
        seen = self.made[-1].key
        self._add("nf.enrolment", self.enrolment, "cm-proxy.to-ca-ra")
        self._add("nf.certificate", self.certificate, after=seen)  # an enrolment that failed may be why
        self._add("nf.told", self.told, after=seen)
        return self.made

    def _add(self, name: str, look: Callable[[], Finding], *more: str, after: str = "") -> None:
        needs = (after or self.made[-1].key,) if self.made else ("nf.list",)
        self.made.append(Check(name, f"NF {self.subject}", look, (*needs, *more), self.subject))

    def _stage(self, reasons: frozenset[Reason], words: str) -> Callable[[], Finding]:
        def look() -> Finding:
            if Reason.__members__.get(self.look.reason) in reasons:
                return refused(self.look.reason, self.look.message, f"{self.nf.agent_endpoint}: ")
            return ok(words)

        return look

    def agent(self) -> Finding:
        """Every other refusal: of the agent, or of a CM proxy that is newer than this command."""
        if self.look.reason:
            return refused(self.look.reason, self.look.message, f"{self.nf.agent_endpoint}: ")
        if not self.look.agent.version:
            return attention("the NF agent is too old to tell its version", "Bring the agent up to date.")
        if series(self.look.agent.version) != series(self.proxy.diagnosis.version):
            return attention(
                f"the NF agent has version {self.look.agent.version}, the CM proxy {self.proxy.diagnosis.version}",
                "Bring agent and CM proxy to versions that go together.",
            )
        return ok(f"its agent {self.look.agent.version} is {self.look.agent.state.lower()}")

    def day0_expiry(self) -> Finding:
        end = self.look.agent.day0_expire_time.ToDatetime(UTC)
        remedy = "`nftrust pki day0` issues a new one, should the NF ever have to be enrolled again; restart the agent."
        return certificates.expiry("the day-0 certificate", end - DAY0_LIFETIME, end, self.clock.now(), remedy)

    def time(self) -> Finding:
        """Against the CM proxy's clock, which was told in the same answer."""
        if not self.look.agent.HasField("time"):
            return ok("it tells no time")
        ahead = self.look.agent.time.ToDatetime(UTC) - self.seen.time
        if abs(ahead) > TOLERANCE:
            return broken(f"the NF's clock is {apart(ahead)} the CM proxy's", "Set the NF's clock right (NTP).")
        return ok("its clock goes with the CM proxy's")

    def certificate(self) -> Finding:
        """The one that the NF uses, whatever was issued to it since."""
        if not self.look.agent.HasField("not_after"):
            return ok("it has no certificate yet")
        start, end = (time.ToDatetime(UTC) for time in (self.look.agent.not_before, self.look.agent.not_after))
        remedy = f"`nftrust enrol {self.nf.nf_instance_id} --again` gives it another one."
        return certificates.lifetime("the NF's certificate", start, end, self.clock.now(), remedy)

    def told(self) -> Finding:
        pending = ", ".join(self.look.agent.pending_hooks)
        if pending:
            remedy = "See `command.log` in the agent's state_dir, and its log; it goes on trying."
            return attention(f"the NF does not know its certificate yet: {pending}", remedy)
        return ok("the NF has been told of its certificate")

    def enrolment(self) -> Finding:
        """The last enrolment, as far as it is not through."""
        agent = self.look.agent
        if agent.state == "ENROLLING" and agent.reason:
            return refused(agent.reason, "", "the NF's way to the CA/RA: ")
        try:
            last = self._last()
        except grpc.RpcError as failure:
            error = refusal(failure)
            return refused(error.reason.name, error.message)
        if last is None:
            return ok("it has not been asked to enrol yet")
        state = pb.Enrolment.State.Name(last.state)
        if last.state == pb.Enrolment.SUCCEEDED or not last.error.reason:
            return ok(f"its last enrolment: {state}")
        why = f"its last enrolment is {state}: {last.error.message}"
        if agent.state == "CONFIRMED":
            return attention(f"{why} (it holds a certificate)", last.error.remedy, last.error.reason)
        return broken(why, last.error.remedy, last.error.reason)

    def _last(self) -> pb.Enrolment | None:
        request = pb.ListEnrolmentsRequest(parent=self.nf.name, page_size=1)
        session = self.proxy.session
        found = session.provisioning().ListEnrolments(request, timeout=session.timeout).enrolments
        return found[0] if found else None
