"""The NF agent as a component: the embedding API and the composition root.

async with NfAgent.open(AgentConfig.from_file(path)) as agent:
    agent.on_change(reload_tls)  # with the present credential, and with each new one
    credential = await agent.credential()  # waits for the first one
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace

from nf_agent.acceptance import AcceptedInfo, Expectations, accept_enrolment_info, require_alive, utc_now
from nf_agent.ca_ra import GrpcEnrolmentPort
from nf_agent.config import AgentConfig
from nf_agent.credential import Credential, credential_of
from nf_agent.foreign import ForeignDelivery, ForeignExpectations, accept_foreign_info, is_foreign
from nf_agent.hooks import Callback, Callbacks, CommandHook, CredentialFiles, Hook, Hooks
from nf_agent.metrics import exposition
from nf_agent.procedure import Procedure, Superseded, new_attempt
from nf_agent.renewal import Renewer, has_ended
from nf_agent.service import AgentServicer, serve
from nf_agent.state import TRANSPORT_KEY, AgentState, Attempt, StateStore
from nf_agent.trust import RefreshPolicy, TrustRefresher, trust_anchors
from nf_agent.validity import Condition, ValidityWatch, condition_of
from nftrust import jose
from nftrust.clock import SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file, write_atomically
from nftrust.logs import correlation_id
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import ImportSecret, ListKeys, ProveCustody, PublicKey
from nftrust.pkcs11.uri import key_uri

log = logging.getLogger("nf_agent")


class NfAgent:
    """One NF's agent: serves the CM proxy, enrols at the CA/RA, keeps the credential."""

    def __init__(
        self,
        config: AgentConfig,
        states: StateStore,
        token: TokenClient,
        expected: Expectations,
        foreign: ForeignExpectations,
    ) -> None:
        self.config = config
        self._states = states
        self._token = token
        self._expected = expected
        self._foreign = foreign
        self._renewer = Renewer(
            config,
            states,
            token,
            lambda: GrpcEnrolmentPort(config.request_timeout_seconds),
            SystemClock(),
            self._publish,
            random.Random(secrets.randbits(64)),
            anchors=expected.trust_anchors,
        )
        self._changed = asyncio.Event()
        self._delivering = asyncio.Lock()
        self._callbacks = Callbacks(config.hooks.timeout_seconds)
        self._hooks = self._make_hooks()
        self._delivery_callbacks: list[Callable[[ForeignDelivery], None]] = []
        #: The bound port of the listener, once it serves.
        self.port = 0
        self._failures = 0
        #: What the last delivery was checked into, until the first try with it.
        self._accepted: tuple[str, AcceptedInfo] | None = None
        states.on_change(self._wake)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: AgentConfig) -> AsyncIterator[Self]:
        """Start everything; stop it at the end of the block.

        Raises NftrustError(TOKEN_MISSING, PIN_INCORRECT, TOKEN_CUSTODY_UNPROVEN, KEY_MISSING,
        STATE_FOREIGN, STATE_CORRUPT, PORT_IN_USE, CONFIG_INVALID).
        """
        states = StateStore.open(config.state_dir, config.nf_instance_id)
        token = TokenClient.in_process(config.token)
        try:
            await asyncio.to_thread(token.ready)
            if config.minimum_delivery_mode == "wrapped":
                await token.run(ProveCustody())
            transport_key = await token.run(PublicKey(TRANSPORT_KEY))
            anchors: tuple[x509.Certificate, ...] = ()
            if config.trust_anchor is not None:
                anchors = tuple(x509.load_pem_x509_certificates(read_file(config.trust_anchor)))
            expected = Expectations(
                config.nf_instance_id, jose.sha256(transport_key), config.minimum_delivery_mode, anchors
            )
            agent = cls(config, states, token, expected, _foreign_expectations(config, expected))
            async with agent._running(transport_key):
                yield agent
        finally:
            await asyncio.to_thread(token.close)

    @contextlib.asynccontextmanager
    async def _running(self, transport_key: bytes) -> AsyncIterator[None]:
        day0_chain = x509.load_pem_x509_certificates(read_file(self.config.listener.tls.certificate))
        day0_key = load_pem_private_key(read_file(self.config.listener.tls.private_key), None)
        if not isinstance(day0_key, ec.EllipticCurvePrivateKey):
            raise NftrustError(Reason.CONFIG_INVALID, "the day-0 key is not an EC key")
        anchors = self._expected.trust_anchors
        servicer = AgentServicer(self, self.config, transport_key, day0_key, day0_chain, anchors)
        server = serve(self.config, servicer)
        await server.start()
        self.port = server.port
        self._write_metrics()

        async def judged(condition: Condition) -> None:
            await server.set_serving(condition.healthy)
            self._wake()

        watch = ValidityWatch(lambda: self.state, lambda: self.change, judged)
        running = (self._work(), self._renewer.run(), self._hooks.run(), watch.run(), self._refresh_trust())
        workers = [asyncio.create_task(run) for run in running]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await server.stop()

    # What an embedding NF uses

    @property
    def state(self) -> AgentState:
        """The agent's present state."""
        return self._states.state

    @property
    def condition(self) -> Condition:
        """Whether the certificate in use is good now."""
        return condition_of(self._states.state)

    @property
    def pending_hooks(self) -> frozenset[str]:
        """Hooks that have yet to tell the NF of the certificate in use."""
        return self._hooks.pending

    async def credential(self) -> Credential:
        """Wait until there is a confirmed certificate, then return it."""
        while (credential := self._present()) is None:
            await self.change.wait()
        return credential

    def on_change(self, callback: Callback) -> None:
        """Call back, from the event loop, with the present credential if there is one, and with each new one.

        A callback that raises is called again, with back-off.
        """
        self._callbacks.add(callback)
        self._hooks.certificate_changed()

    def on_delivery(self, callback: Callable[[ForeignDelivery], None]) -> None:
        """Call back with what is delivered for a foreign CA/RA; at once if it was delivered before.

        From then on the NF's own CMP client is in charge: the agent does not enrol there.
        """
        self._delivery_callbacks.append(callback)
        if self._states.state.phase == "delivered":
            callback(self.delivery())

    def delivery(self) -> ForeignDelivery:
        """What was delivered for a foreign CA/RA. Raises NftrustError(AGENT_NOT_ARMED) where nothing was,
        ENROLMENT_INFO_INVALID or IAK_EXPIRED as at delivery.
        """
        state = self._states.state
        if state.phase != "delivered" or state.attempt is None:
            raise NftrustError(Reason.AGENT_NOT_ARMED)
        info, chain = accept_foreign_info(state.attempt.enrolment_info, self._foreign, utc_now())
        return ForeignDelivery(info, chain, key_uri(self.config.token, TRANSPORT_KEY), self._token)

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of :attr:`state`; take it before reading the state."""
        return self._changed

    def rearm(self) -> None:
        """Accept another delivery although a certificate is held (security rule 4: re-armed locally)."""
        self._states.rearm()

    # What the CM proxy does through the service

    async def renew(self) -> bytes:
        """Renew at once; SHA-256 of the certificate that is then in use.

        Raises NftrustError: NOT_ENROLLED, CERTIFICATE_EXPIRED, or why the try failed.
        """
        self._renewer.hasten()
        before = self._states.state
        assert before.current is not None
        while True:
            change = self.change
            state = self._states.state
            if state.current is not None and state.current.chain[0] != before.current.chain[0]:
                return jose.sha256(bytes.fromhex(state.current.chain[0]))
            if state.renewal.failures > before.renewal.failures:
                raise NftrustError(Reason[state.renewal.reason])
            await change.wait()

    async def deliver(self, enrolment_info: str, iak: bytes) -> None:
        """Step 7. Raises NftrustError(ENROLMENT_INFO_INVALID, AGENT_NOT_ARMED)."""
        async with self._delivering:
            await self._deliver(enrolment_info, iak)

    async def _deliver(self, enrolment_info: str, iak: bytes) -> None:
        state = self._states.state
        under_way = state.phase in ("enrolling", "delivered")
        if under_way and state.attempt and state.attempt.enrolment_info == enrolment_info:
            return
        if is_foreign(enrolment_info):
            self._deliver_foreign(enrolment_info, iak)
            return
        now = utc_now()
        accepted = accept_enrolment_info(enrolment_info, self._expected, bool(iak), now)
        require_alive(accepted, now)
        registration = accepted.info.registration
        # A certificate that has ended is none: its successor is a new enrolment (docs/renewal.md).
        held = state.current is not None and state.phase != "armed" and not has_ended(state.current, now)
        # Another key for an IAK that has gone out once is what a thief would come with (security rule 13).
        replayed = any(
            known is not None and known.registration == registration for known in (state.current, _sent(state))
        )
        if replayed or (held and not accepted.info.re_enrolment):
            raise NftrustError(Reason.AGENT_NOT_ARMED)
        label = None
        if iak:
            label = f"iak-{jose.sha256(registration.encode()).hex()[:32]}"
            if not any(key.label == label for key in await self._token.run(ListKeys())):
                await self._token.run(ImportSecret(label, iak))
        attempt = new_attempt(enrolment_info, registration, label)
        self._accepted = enrolment_info, accepted
        self._states.save(replace(self._states.state, phase="enrolling", reason="", attempt=attempt))
        log.info("enrolment information accepted", extra={"registration": registration})

    def _deliver_foreign(self, enrolment_info: str, iak: bytes) -> None:
        info, _ = accept_foreign_info(enrolment_info, self._foreign, utc_now())
        if iak:
            raise NftrustError(Reason.ENROLMENT_INFO_INVALID, "the IAK is not delivered as the mode says")
        state = self._states.state
        held = state.phase == "delivered" or (state.current is not None and state.phase != "armed")
        replayed = state.attempt is not None and state.attempt.registration == info.registration
        if (replayed and state.phase != "armed") or (held and not info.re_enrolment):
            raise NftrustError(Reason.AGENT_NOT_ARMED)
        attempt = new_attempt(enrolment_info, info.registration, None)
        self._states.save(replace(state, phase="delivered", reason="", attempt=attempt))
        log.info("foreign CA/RA: enrolment information accepted", extra={"registration": info.registration})
        for callback in self._delivery_callbacks:
            try:
                callback(self.delivery())
            except Exception:
                log.exception("a callback of the embedding NF failed")

    # The worker

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._write_metrics()

    def metrics(self) -> str:
        """The agent's metrics in Prometheus's text format, for an NF that serves its own."""
        return exposition(self._states.state, self._failures, self._hooks.failures, self._hooks.pending)

    def _write_metrics(self) -> None:
        """A monitoring system that cannot be told does not hold up an enrolment."""
        if self.config.metrics_file is not None:
            with contextlib.suppress(NftrustError):
                write_atomically(self.config.metrics_file, self.metrics().encode(), 0o644)

    async def _work(self) -> None:
        """Run attempts until cancelled; a delivery in the middle replaces the attempt."""
        while True:
            change = self.change
            attempt = self._states.state.attempt
            if attempt is None or self._states.state.phase != "enrolling":
                await change.wait()
                continue
            run = asyncio.create_task(self._run_attempt(attempt))
            while not run.done() and self._is_current(attempt):
                change = self.change
                waiting = asyncio.create_task(change.wait())
                await asyncio.wait({run, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    def _is_current(self, attempt: Attempt) -> bool:
        state = self._states.state
        return state.attempt is not None and state.attempt.request_id == attempt.request_id

    async def _run_attempt(self, attempt: Attempt) -> None:
        """Try until confirmed, refused for good, or the IAK's end; full-jitter back-off."""
        correlation_id.set(attempt.correlation)
        async with GrpcEnrolmentPort(self.config.request_timeout_seconds) as port:
            procedure = Procedure(
                self._states,
                self._token,
                port,
                self.config.key_type,
                attempt.request_id,
                self._expected.trust_anchors,
            )
            await self._try_on(procedure, attempt)

    async def _try_on(self, procedure: Procedure, attempt: Attempt) -> None:
        failures = 0
        while (error := await self._try(procedure, attempt)) is not None:
            failures += 1
            self._note_retry(attempt, error.reason)
            self._failures += 1
            self._write_metrics()
            log.warning("attempt failed, will be retried", extra={"reason": error.reason.name})
            cap = min(self.config.retry_cap_seconds, 0.2 * 2 ** min(failures, 12))
            await asyncio.sleep(max(random.uniform(0, cap), error.retry_after or 0.05))

    async def _try(self, procedure: Procedure, attempt: Attempt) -> NftrustError | None:
        """Why it has to be tried again; None at the attempt's end, whichever that is."""
        try:
            await procedure.run(self._accept_again(attempt))
            self._publish()
        except Superseded:
            return None
        except NftrustError as refusal:
            return refusal if refusal.transient else self._fail(refusal)
        except Exception:
            log.exception("attempt failed unexpectedly")
            return NftrustError(Reason.INTERNAL)
        return None

    def _accept_again(self, attempt: Attempt) -> AcceptedInfo:
        """The delivered information, checked as at delivery, and anew for each try but the first.

        A request that went out may outlive the IAK.
        """
        fresh, self._accepted = self._accepted, None
        if fresh is not None and fresh[0] == attempt.enrolment_info:
            return fresh[1]
        now = utc_now()
        accepted = accept_enrolment_info(attempt.enrolment_info, self._expected, attempt.iak_label is not None, now)
        if attempt.proof is None:
            require_alive(accepted, now)
        return accepted

    def _note_retry(self, attempt: Attempt, reason: Reason) -> None:
        """For whoever asks how far the NF is."""
        if self._is_current(attempt) and self._states.state.reason != reason.name:
            self._states.note(reason.name)

    def _fail(self, error: NftrustError) -> NftrustError | None:
        """The attempt ends without a certificate; or why that cannot be kept, which is then tried again."""
        try:
            self._states.save(replace(self._states.state, phase="failed", reason=error.reason.name))
        except NftrustError as unwritten:
            return unwritten
        log.error("enrolment refused", extra={"reason": error.reason.name})
        return None

    # The hooks

    def _publish(self) -> None:
        """Another certificate is in use, and the state says so."""
        credential = self._present()
        assert credential is not None
        log.info("certificate confirmed", extra={"serial": f"{credential.certificate.serial_number:x}"})
        self._hooks.certificate_changed()

    def _make_hooks(self) -> Hooks:
        config = self.config.hooks
        files = CredentialFiles(config.directory or self.config.state_dir)
        others: list[Hook] = [self._callbacks]
        if config.command:
            environment = self.config.token.environment | config.environment
            state_dir, limit = self.config.state_dir, config.timeout_seconds
            others.append(CommandHook(config.command, environment, files, state_dir, limit))
        cap = self.config.retry_cap_seconds
        return Hooks(self._present, files, others, retry_cap_seconds=cap, on_progress=self._wake)

    def _present(self) -> Credential | None:
        """The credential in use."""
        current = self._states.state.current
        if current is None:
            return None
        return credential_of(current, self._token, self.config.token, trust_anchors(self._states.state))

    async def _refresh_trust(self) -> None:
        """Until cancelled."""
        config = self.config
        policy = RefreshPolicy(config.trust_refresh_seconds, config.retry_cap_seconds)
        async with GrpcEnrolmentPort(config.request_timeout_seconds) as port:
            await TrustRefresher(
                self._states,
                port,
                self._expected.trust_anchors,
                policy,
                lambda: self.change,
                self._hooks.certificate_changed,
            ).run()


def _sent(state: AgentState) -> Attempt | None:
    """The attempt, if its request has gone out or may have."""
    return state.attempt if state.attempt is not None and state.attempt.proof is not None else None


def _foreign_expectations(config: AgentConfig, expected: Expectations) -> ForeignExpectations:
    """Raises NftrustError(CONFIG_INVALID)."""
    foreign, client_ca = config.foreign_ca_ra, config.listener.tls.client_ca
    return ForeignExpectations(
        expected.nf_instance_id,
        expected.transport_key_sha256,
        x509.load_pem_x509_certificates(read_file(client_ca)) if client_ca is not None else (),
        config.cm_proxies,
        None if foreign is None else x509.load_pem_x509_certificate(read_file(foreign.trust_anchor)),
    )
