"""Drives enrolments: claims due ones under a lease and performs what their state asks for.

What is persisted before an effect is attempted suffices to attempt it again,
and every effect is idempotent at the callee. So a state that follows from
repeatable answers alone is not written down by itself (see _unwritten).
Fencing protects our rows; the callees deduplicate.
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
from cmproxy.model import Claimed, Enrolment, NetworkFunction, State, Step
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
    #: The steps that have been told of.
    told: set[int]
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
        self._running: set[asyncio.Task[None]] = set()
        #: Nothing is driven before an earlier life's leases are released, nor after the end.
        self._open = False
        #: There was more to claim than places.
        self._crowded = False
        self._work: Mapping[State, Callable[[Drive], Awaitable[Enrolment]]] = {
            State.ATTESTING: self._attest,
            State.REGISTERING: self._register,
            State.DELIVERING: self._deliver,
            State.ENROLLING: self._observe,
        }

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    @property
    def spare(self) -> str:
        """The owner of a lease that would be driven at once; empty where there is no place for one more."""
        return self._policy.owner if self._open and self._places > 0 else ""

    def drive(self, claimed: Claimed) -> None:
        """Drive what is leased to us. After the runner's end the lease is left to whoever starts next."""
        if not self._open:
            return
        task = asyncio.create_task(self._drive(claimed))
        self._running.add(task)
        task.add_done_callback(self._driven)

    async def run(self) -> None:
        """Until cancelled; a failing database slows it down and does not end it."""
        try:
            while True:
                self._wake.clear()
                try:
                    if not self._open:
                        await self._store.release_all(self._policy.owner)
                        self._open = True
                    await self._claim()
                except NftrustError as error:
                    log.warning("enrolments cannot be claimed", extra={"reason": error.reason.name})
                except Exception:
                    log.exception("enrolments cannot be claimed")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._policy.poll.total_seconds()):
                        await self._wake.wait()
        finally:
            self._open = False
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def _places(self) -> int:
        return self._policy.concurrency - len(self._running)

    async def _claim(self) -> None:
        places = self._places
        claimed = await self._store.claim(self._policy.owner, places) if places > 0 else []
        self._crowded = len(claimed) >= places
        for each in claimed:
            self.drive(each)

    def _driven(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._crowded:
            self._wake.set()

    async def _drive(self, claimed: Claimed) -> None:
        enrolment = claimed.enrolment
        correlation_id.set(enrolment.id)
        try:
            if enrolment.cleanup:
                await self._clean_up(enrolment)
                return
            if claimed.nf is None:
                raise NftrustError(Reason.NF_NOT_FOUND)
            async with AsyncExitStack() as stack:
                drive = Drive(enrolment, claimed.nf, stack, {step.number for step in enrolment.steps})
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
        drive.enrolment = machine.resume(drive.enrolment)
        while drive.enrolment.state in self._work:
            try:
                after = await self._work[drive.enrolment.state](drive)
            except NftrustError as error:
                after = machine.fail(drive.enrolment, error, self._clock.now(), self._policy.retry)
                log.warning("enrolment step refused", extra=_fields(after, error.reason.name))
                self._observer.refused(drive.enrolment.state.value, error.reason)
            if self._unwritten(drive.enrolment.state, after):
                drive.enrolment = after
                continue
            await self._save(drive, after, hold=after.state in self._work)
            if after.end_time is not None:
                self._observer.ended(after.state.value, after.end_time - after.create_time)
            if after.cleanup:
                self.wake()

    def _unwritten(self, before: State, after: Enrolment) -> bool:
        """Whether the new state is left to the next write: whoever takes over from the old one gets the same answers.

        That is so for the verifier, and for our CA/RA, which answers a repeated
        registration from its store. A foreign one may give another secret each time.
        """
        if before is State.ATTESTING:
            return after.state is State.REGISTERING
        registered = before is State.REGISTERING and after.state is State.DELIVERING
        return registered and not self._ca_ra.hands_over(after.registration)

    async def _save(self, drive: Drive, after: Enrolment, *, hold: bool, pin: bytes | None = None) -> None:
        drive.enrolment = saved = await self._write(after, hold=hold, pin=pin)
        for step in saved.steps:
            if step.number not in drive.told:
                drive.told.add(step.number)
                log.info("step", extra={"enrolment": saved.name, "step": step.number})
                self._observer.step(step.number)

    async def _write(self, after: Enrolment, *, hold: bool, pin: bytes | None = None) -> Enrolment:
        """Raises LeaseLost."""
        saved = await self._store.save(after, hold=hold, pin=pin)
        if saved is None:
            raise LeaseLost
        return saved

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
            if error.reason is not Reason.AGENT_NOT_ARMED or not await self._was_given(session, drive):
                raise
        drive.iak = b""
        now = self._clock.now()
        step = Step(7, "CM proxy delivered enrolment information and IAK to the NF", _micros(now))
        to = State.DELIVERED if self._ca_ra.hands_over(drive.enrolment.registration) else State.ENROLLING
        return machine.advance(drive.enrolment, to, now, steps=[step])

    async def _was_given(self, session: NfSession, drive: Drive) -> bool:
        """Whether the NF has had the registration already; what became of it is seen next."""
        registration = drive.enrolment.registration
        if self._ca_ra.hands_over(registration):
            return False
        async for status in session.watch():
            return status.registration == registration
        return False

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
        registration = None if status is None else self._ca_ra.confirmed(drive.enrolment, status.confirmation)
        if registration is None:
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
        """Follow the NF until it is through, noting steps 8 and 9."""
        session = await self._session(drive)
        async for status in session.watch():
            if status.registration != drive.enrolment.registration:
                return status
            steps = [
                *_step(8, "NF made its key pair and CSR in its token", status.csr_time),
                *_step(9, "NF sent its certificate request to the CA/RA", status.request_time),
            ]
            # Not written by itself: the NF can be asked for it again.
            drive.enrolment = replace(drive.enrolment, steps=with_steps(drive.enrolment.steps, steps))
            if status.phase != "enrolling":
                return status
        raise NftrustError(Reason.NF_UNREACHABLE)

    async def _clean_up(self, enrolment: Enrolment) -> None:
        """Revoke what an ended enrolment may have left open at the CA/RA."""
        assert enrolment.intent is not None
        try:
            registration = enrolment.registration or (await self._ca_ra.register(enrolment.intent)).registration.name
            await self._ca_ra.revoke(registration)
        except NftrustError as error:
            if error.transient:
                delay = self._policy.retry.delay(enrolment.attempt + 1, error.retry_after)
                later = replace(enrolment, attempt=enrolment.attempt + 1, next_time=self._clock.now() + delay)
                await self._write(later, hold=False)
                return
        await self._write(machine.cleaned_up(enrolment, self._clock.now()), hold=False)


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
