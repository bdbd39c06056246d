"""An NF agent's parts in the test's own process, with a real token, against the running lab's CA/RA."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509

from nf_agent.acceptance import AcceptedInfo, Expectations, accept_enrolment_info, utc_now
from nf_agent.ca_ra import GrpcEnrolmentPort
from nf_agent.config import AgentConfig
from nf_agent.procedure import Procedure, new_attempt
from nf_agent.renewal import Renewer, next_renewal
from nf_agent.state import STATE_FILE, TRANSPORT_KEY, AgentState, StateStore
from nftrust import jose
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.ca_ra.v1 import registration_service_pb2 as pb
from nftrust.config import ListenerConfig, ServerTlsConfig, TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import GenerateKeyPair, ListKeys, PublicKey
from tests.lab_kit import CALL_SECONDS, RunningLab
from tests.soft_nf import SoftNf

TIMEOUT_SECONDS = 20.0


@dataclass
class SettableClock:
    """Wall time that the test sets; by default the true one. The monotonic clock goes with it unless told otherwise."""

    ahead: timedelta = timedelta(0)
    jumped: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead + self.jumped

    def monotonic(self) -> float:
        return (datetime.now(UTC) + self.ahead).timestamp()

    def move_to(self, time: float) -> None:
        """As time passes."""
        self.ahead = datetime.fromtimestamp(time, UTC) - datetime.now(UTC)


class FlakyPort(GrpcEnrolmentPort):
    """The CA/RA, where the network fails as the test says: before the call, or after it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(TIMEOUT_SECONDS)
        self.faults = faults

    async def renew(self, accepted: AcceptedInfo, proof: str) -> str:
        return await self._through("renew", super().renew(accepted, proof))

    async def confirm(self, accepted: AcceptedInfo, proof: str) -> str:
        return await self._through("confirm", super().confirm(accepted, proof))

    async def _through(self, name: str, call: object) -> str:
        assert asyncio.iscoroutine(call)
        if f"{name} unsent" in self.faults:
            self.faults.remove(f"{name} unsent")
            call.close()
            raise NftrustError(Reason.PEER_UNAVAILABLE)
        answer = str(await call)
        for fault in (f"{name} unanswered", f"{name} killed"):
            if fault in self.faults:
                self.faults.remove(fault)
                raise Killed if fault.endswith("killed") else NftrustError(Reason.PEER_UNAVAILABLE)
        return answer


class Killed(BaseException):
    """The process ends here."""


@dataclass
class RealNf:
    """One NF with its token and state; each enrolment begins a new line of certificates."""

    running_lab: RunningLab
    directory: Path
    token_config: TokenConfig
    token: TokenClient
    nf: SoftNf
    states: StateStore
    clock: SettableClock = field(default_factory=SettableClock)
    faults: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, running_lab: RunningLab, directory: Path, config: TokenConfig, token: TokenClient) -> RealNf:
        if not any(key.label == TRANSPORT_KEY for key in token.call(ListKeys())):
            token.call(GenerateKeyPair(TRANSPORT_KEY, "rsa-transport"), timeout=120.0)
        nf = running_lab.soft_nf()
        state = AgentState(nf_instance_id=nf.nf_instance_id, instantiate_time=utc_now().timestamp())
        write_atomically(directory / STATE_FILE, msgspec.json.encode(state))
        states = StateStore.open(directory, nf.nf_instance_id)
        return cls(running_lab, directory, config, token, nf, states)

    @property
    def config(self) -> AgentConfig:
        unused = Path("/nonexistent")
        return AgentConfig(
            nf_instance_id=self.nf.nf_instance_id,
            state_dir=self.directory,
            token=self.token_config,
            listener=ListenerConfig(
                address="127.0.0.1:1", tls=ServerTlsConfig(certificate=unused, private_key=unused, client_ca=unused)
            ),
        )

    @property
    def state(self) -> AgentState:
        return self.states.state

    @property
    def serial(self) -> str:
        """Of the certificate in use."""
        assert self.state.current is not None
        return f"{x509.load_der_x509_certificate(bytes.fromhex(self.state.current.chain[0])).serial_number:x}"

    async def expected(self) -> Expectations:
        transport_key = await self.token.run(PublicKey(TRANSPORT_KEY))
        return Expectations(self.nf.nf_instance_id, jose.sha256(transport_key), "wrapped", ())

    async def enrol(self) -> None:
        """Steps 5 to 10; OAM registers, lifts a suspension, and allows it again and again."""
        stub = self.running_lab.oam.registrations
        transport_key = await self.token.run(PublicKey(TRANSPORT_KEY))
        request_id = str(uuid.uuid4())
        statement = self.nf.statement(request_id, transport_key=jose.b64url(transport_key))
        request = self.nf.request(request_id=request_id, nf_statement=statement, allow_re_enrolment=True)
        if self.state.current is not None:
            reinstate = pb.ReinstateEndEntityRequest(nf_instance_id=self.nf.nf_instance_id)
            await asyncio.to_thread(stub.ReinstateEndEntity, reinstate, timeout=CALL_SECONDS)
        answer = await asyncio.to_thread(stub.RegisterEndEntity, request, timeout=CALL_SECONDS)
        accepted = accept_enrolment_info(answer.enrolment_info, await self.expected(), False, utc_now())
        attempt = new_attempt(answer.enrolment_info, accepted.info.registration, None)
        self.states.save(msgspec.structs.replace(self.state, phase="enrolling", attempt=attempt))
        async with GrpcEnrolmentPort(TIMEOUT_SECONDS) as port:
            await Procedure(self.states, self.token, port, "ec-p256", attempt.request_id).run(accepted)

    async def renewer(self) -> Renewer:
        """As after the start of the agent; the network fails as ``faults`` says."""
        return Renewer(
            self.config,
            self.states,
            self.token,
            lambda: FlakyPort(self.faults),
            self.clock,
            lambda: self.changes.append(self.serial),
            random.Random(1),
        )

    def restarted(self) -> None:
        """What a new process would read."""
        self.states = StateStore.open(self.directory, self.nf.nf_instance_id)

    def make_due(self) -> None:
        """The clock passes the time of the next renewal, or try."""
        due = next_renewal(self.state, self.config.renewal.policy)
        assert due is not None
        self.clock.move_to(due + 0.1)

    async def renew(self) -> None:
        """One try, at its time."""
        renewer = await self.renewer()
        self.make_due()
        await renewer.look()

    async def certificates(self) -> list[certificate_pb.Certificate]:
        """At the CA/RA, the newest first."""
        request = certificate_pb.ListCertificatesRequest(nf_instance_id=self.nf.nf_instance_id)
        stub = self.running_lab.oam.certificates
        answer = await asyncio.to_thread(stub.ListCertificates, request, timeout=CALL_SECONDS)
        return list(answer.certificates)

    async def certificate(self) -> certificate_pb.Certificate:
        """The one in use."""
        request = certificate_pb.GetCertificateRequest(name=f"certificates/{self.serial}")
        stub = self.running_lab.oam.certificates
        found: certificate_pb.Certificate = await asyncio.to_thread(stub.GetCertificate, request, timeout=CALL_SECONDS)
        return found

    async def labels(self) -> set[str]:
        """The keys in the token."""
        return {key.label for key in await self.token.run(ListKeys())}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Renewer]:
        """The loop at work."""
        renewer = await self.renewer()
        loop = asyncio.create_task(renewer.run())
        try:
            yield renewer
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
