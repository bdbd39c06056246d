"""Drives enrolments: claims due ones under a lease and performs what their state asks for.

State changes are persisted before the next effect is attempted; every effect
is idempotent at the callee. Fencing protects our rows; the callees deduplicate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cmproxy import machine
from cmproxy.machine import RetryPolicy, with_steps
from cmproxy.model import Enrolment, NetworkFunction, State, Step
from cmproxy.ports import CaRaPort, EnrolmentLease, NfPort, NfSession, NfStatus, RunnerObserver, VerifierPort
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.logs import correlation_id

log = logging.getLogger("cmproxy.runner")

NONCE_BYTES = 32
_CA_REFUSALS = {"revoked": Reason.IAK_REVOKED, "expired": Reason.IAK_EXPIRED}


class LeaseLost(Exception):
    """Another runner, or a cancellation, has taken the enrolment over."""


@dataclass(frozen=True, slots=True)
class RunnerPolicy:
    owner: str
    lease: timedelta
    retry: RetryPolicy
    concurrency: int = 64
    poll: timedelta = timedelta(milliseconds=500)
    #: How long one look at the NF's progress lasts before the CA/RA is asked.
    observation: timedelta = timedelta(seconds=5)


@dataclass(slots=True)
class Drive:
    """One claimed enrolment while it is being driven; the only place a clear IAK passes through."""

    enrolment: Enrolment
    nf: NetworkFunction
    stack: AsyncExitStack
    session: NfSession | None = None
    iak: bytes = field(default=b"", repr=False)


class Runner:
    """One per process."""

    def __init__(
        self,
        policy: RunnerPolicy,
        store: EnrolmentLease,
        nfs: NfPort,
        ca_ra: CaRaPort,
        verifier: VerifierPort,
        clock: Clock,
        observer: RunnerObserver,
    ) -> None:
        self._policy = policy
        self._store = store
        self._nfs = nfs
        self._ca_ra = ca_ra
        self._verifier = verifier
        self._clock = clock
        self._observer = observer
        self._wake = asyncio.Event()
        self._work: Mapping[State, Callable[[Drive], Awaitable[Enrolment]]] = {
            State.ATTESTING: self._attest,
            State.REGISTERING: self._register,
            State.DELIVERING: self._deliver,
            State.ENROLLING: self._observe,
        }

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; a failing database slows it down and does not end it."""
        running: set[asyncio.Task[None]] = set()
        released = False
        try:
            while True:
                self._wake.clear()
                claimed: list[Enrolment] = []
                try:
                    if not released:
                        await self._store.release_all(self._policy.owner)
                        released = True
                    free = self._policy.concurrency - len(running)
                    claimed = await self._store.claim(self._policy.owner, free) if free > 0 else []
                except NftrustError as error:
                    log.warning("enrolments cannot be claimed", extra={"reason": error.reason.name})
                except Exception:
                    log.exception("enrolments cannot be claimed")
                for enrolment in claimed:
                    task = asyncio.create_task(self._drive(enrolment))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    task.add_done_callback(lambda _: self._wake.set())
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: that of Python 3.11 forgets a cancellation which meets the wake-up.
                    async with asyncio.timeout(self._policy.poll.total_seconds()):
                        await self._wake.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _drive(self, enrolment: Enrolment) -> None:
        correlation_id.set(enrolment.id)
        try:
            nf = await self._store.network_function(enrolment.nf_instance_id)
            async with AsyncExitStack() as stack:
                drive = Drive(enrolment, nf, stack)
                keeper = asyncio.create_task(self._keep_lease(enrolment, asyncio.current_task()))
                stack.callback(keeper.cancel)
                await self._drive_on(drive)
        except LeaseLost:
            log.info("lease lost", extra={"enrolment": enrolment.name})
        except NftrustError as error:  # storage: the lease runs out and the enrolment is claimed again
            log.warning("enrolment left", extra={"enrolment": enrolment.name, "reason": error.reason.name})
        except Exception:
            log.exception("enrolment left", extra={"enrolment": enrolment.name})

    async def _keep_lease(self, enrolment: Enrolment, worker: asyncio.Task[None] | None) -> None:
        while True:
            await asyncio.sleep(self._policy.lease.total_seconds() / 3)
            with contextlib.suppress(NftrustError):
                if not await self._store.renew(enrolment) and worker is not None:
                    worker.cancel()
                    return

    async def _drive_on(self, drive: Drive) -> None:
        """State by state until it ends, waits or is parked."""
        if drive.enrolment.cleanup:
            await self._clean_up(drive)
            return
        drive.enrolment = machine.resume(drive.enrolment)
        while drive.enrolment.state in self._work:
            try:
                after = await self._work[drive.enrolment.state](drive)
            except NftrustError as error:
                after = machine.fail(drive.enrolment, error, self._clock.now(), self._policy.retry)
                log.warning("enrolment step refused", extra=_fields(after, error.reason.name))
                self._observer.refused(drive.enrolment.state.value, error.reason)
            await self._save(drive, after, hold=after.state in self._work)
            if after.end_time is not None:
                self._observer.ended(after.state.value, after.end_time - after.create_time)
            if after.cleanup:
                self.wake()

    async def _save(self, drive: Drive, after: Enrolment, *, hold: bool, pin: bytes | None = None) -> None:
        saved = await self._store.save(after, hold=hold, pin=pin)
        if saved is None:
            raise LeaseLost
        before = {step.number for step in drive.enrolment.steps}
        for step in saved.steps:
            if step.number not in before:
                log.info("step", extra={"enrolment": saved.name, "step": step.number})
                self._observer.step(step.number)
        drive.enrolment = saved

    async def _session(self, drive: Drive) -> NfSession:
        if drive.session is None:
            drive.session = await drive.stack.enter_async_context(self._nfs.connect(drive.nf))
        return drive.session

    # The working states

    async def _attest(self, drive: Drive) -> Enrolment:
        """Step 4: the Relying Party's decision."""
        ground = "attestation is not required by policy"
        if drive.nf.attestation_required:
            ground = await self._verifier.require_affirming(drive.nf)
        now = self._clock.now()
        steps = [
            Step(3, "OAM provisioned the CM proxy with the NF", _micros(drive.nf.create_time)),
            Step(4, f"CM proxy decided on attestation: {ground}", _micros(now)),
        ]
        return machine.advance(drive.enrolment, State.REGISTERING, now, steps=steps)

    async def _register(self, drive: Drive) -> Enrolment:
        """Steps 5 and 6. The intent is persisted before it is sent."""
        if drive.enrolment.intent is None:
            await self._make_intent(drive)
        assert drive.enrolment.intent is not None
        asked = self._clock.now()
        answer = await self._ca_ra.register(drive.enrolment.intent)
        refusal = _CA_REFUSALS.get(answer.registration.state)
        if refusal is not None:
            raise NftrustError(refusal)
        drive.iak = answer.iak
        now = self._clock.now()
        steps = [
            Step(5, "CM proxy registered the NF at the CA/RA", _micros(asked)),
            Step(6, f"CA/RA returned reference value and IAK, {answer.custody}", _micros(now)),
        ]
        known = replace(drive.enrolment, registration=answer.registration.name, enrolment_info=answer.enrolment_info)
        to = State.DELIVERING if answer.registration.state == "open" else State.ENROLLING
        return machine.advance(known, to, now, steps=steps)

    async def _make_intent(self, drive: Drive) -> None:
        nf = drive.nf
        session = await self._session(drive)
        info = await session.info(drive.enrolment.id, secrets.token_bytes(NONCE_BYTES))
        expected = nf.expected_transport_key
        if expected is None and not nf.pin_on_first_contact:
            raise NftrustError(Reason.TRANSPORT_KEY_UNPROVISIONED)
        if expected is not None and expected != info.transport_key_sha256:
            raise NftrustError(Reason.TRANSPORT_KEY_MISMATCH)
        intent = await self._ca_ra.registration_intent(nf, drive.enrolment, info)
        first = Step(1, "NF instantiated with its day-0 configuration", _micros(info.instantiate_time))
        after = replace(
            drive.enrolment,
            intent=intent,
            steps=with_steps(drive.enrolment.steps, [first]),
            update_time=self._clock.now(),
        )
        await self._save(drive, after, hold=True, pin=info.transport_key_sha256 if expected is None else None)

    async def _deliver(self, drive: Drive) -> Enrolment:
        """Step 7."""
        if drive.nf.delivery_mode == "tls-only" and not drive.iak:
            # The IAK was in the memory of a process that is gone: have another minted.
            return machine.advance(drive.enrolment, State.REGISTERING, self._clock.now())
        session = await self._session(drive)
        try:
            await session.deliver(drive.enrolment.enrolment_info, drive.iak)
        except NftrustError as error:
            # An answer of the NF that was lost may mean that it went on without us.
            if error.reason is not Reason.AGENT_NOT_ARMED or not await self._in_use(drive):
                raise
        drive.iak = b""
        now = self._clock.now()
        step = Step(7, "CM proxy delivered enrolment information and IAK to the NF", _micros(now))
        to = State.DELIVERED if self._ca_ra.hands_over(drive.enrolment.registration) else State.ENROLLING
        return machine.advance(drive.enrolment, to, now, steps=[step])

    async def _in_use(self, drive: Drive) -> bool:
        return (await self._ca_ra.get(drive.enrolment.registration)).state in ("issued", "confirmed")

    async def _observe(self, drive: Drive) -> Enrolment:
        """Steps 8 to 10, as the NF reports them; the CA/RA has the last word."""
        status: NfStatus | None = None
        problem: NftrustError | None = None
        try:
            async with asyncio.timeout(self._policy.observation.total_seconds()):
                status = await self._watch(drive)
        except TimeoutError:
            problem = NftrustError(Reason.PEER_UNAVAILABLE, "the NF has not finished yet")
        except NftrustError as error:
            problem = error
        registration = await self._ca_ra.get(drive.enrolment.registration)
        now = self._clock.now()
        if registration.state == "confirmed":
            done = Step(
                10, "CA/RA issued the certificate; the NF confirmed it", _micros(registration.confirm_time or now)
            )
            return machine.advance(
                drive.enrolment, State.SUCCEEDED, now, steps=[done], certificate=registration.certificate
            )
        refusal = _CA_REFUSALS.get(registration.state)
        if refusal is not None:
            raise NftrustError(refusal)
        if problem is not None:
            raise problem
        assert status is not None
        if status.registration != drive.enrolment.registration or status.phase == "armed":
            return machine.advance(drive.enrolment, State.DELIVERING, now)  # the NF has lost what it was given
        raise _refusal_of(status)

    async def _watch(self, drive: Drive) -> NfStatus:
        """Follow the NF until it is through, recording steps 8 and 9 as they come."""
        session = await self._session(drive)
        async for status in session.watch():
            if status.registration != drive.enrolment.registration:
                return status
            steps = [
                *_step(8, "NF made its key pair and CSR in its token", status.csr_time),
                *_step(9, "NF sent its certificate request to the CA/RA", status.request_time),
            ]
            merged = with_steps(drive.enrolment.steps, steps)
            if merged != drive.enrolment.steps:
                after = replace(drive.enrolment, steps=merged, update_time=self._clock.now())
                await self._save(drive, after, hold=True)
            if status.phase != "enrolling":
                return status
        raise NftrustError(Reason.NF_UNREACHABLE)

    async def _clean_up(self, drive: Drive) -> None:
        """Revoke what an ended enrolment may have left open at the CA/RA."""
        enrolment = drive.enrolment
        assert enrolment.intent is not None
        try:
            registration = enrolment.registration or (await self._ca_ra.register(enrolment.intent)).registration.name
            await self._ca_ra.revoke(registration)
        except NftrustError as error:
            if error.transient:
                delay = self._policy.retry.delay(enrolment.attempt + 1, error.retry_after)
                later = replace(enrolment, attempt=enrolment.attempt + 1, next_time=self._clock.now() + delay)
                await self._save(drive, later, hold=False)
                return
        await self._save(drive, machine.cleaned_up(enrolment, self._clock.now()), hold=False)


def _refusal_of(status: NfStatus) -> NftrustError:
    reason = Reason.__members__.get(status.reason)
    if status.phase == "failed" and reason is not None:
        return NftrustError(reason, f"the NF reports: {reason.meaning}")
    return NftrustError(Reason.PEER_UNAVAILABLE, "the NF has not finished yet")


def _step(number: int, description: str, time: datetime | None) -> list[Step]:
    return [] if time is None else [Step(number, description, _micros(time))]


def _micros(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


def _fields(enrolment: Enrolment, reason: str) -> dict[str, str]:
    return {"enrolment": enrolment.name, "state": enrolment.state.value, "reason": reason}
