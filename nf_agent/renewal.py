"""The certificate's life after enrolment: renewed with a new key in time, again and again.

What is done survives a kill at any instant, as in the first enrolment: the
request is kept before it is sent and goes out again byte for byte, so that
the agent never asks for a second successor (which the CA/RA takes for theft).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from nf_agent.acceptance import AcceptedInfo, utc_now
from nf_agent.config import AgentConfig
from nf_agent.procedure import EnrolmentPort, Procedure, Superseded, new_attempt
from nf_agent.schedule import RenewalPolicy, Validity, draw_of, renewal_time, retry_delay
from nf_agent.state import AgentState, Attempt, OldKey, Renewal, StateStore, not_after_of
from nf_agent.trust import present_ca, trust_of_renewal
from nftrust import jose
from nftrust.clock import Clock
from nftrust.errors import NftrustError, Reason
from nftrust.logs import correlation_id
from nftrust.messages import RENEW_TYP, RENEW_URL, EnrolResponse, RenewProof
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.keys import key_in_token
from nftrust.pkcs11.operations import DestroyKey, ListKeys
from nftrust.x509.nftypes import nf_types_of

log = logging.getLogger("nf_agent.renewal")

#: A step of the wall clock is noticed within this time.
LOOK_SECONDS = 30.0
#: By how much the wall clock may run away from the monotonic one.
TOLERANCE_SECONDS = 300.0
#: The request leads nowhere any more: the successor was revoked before it was confirmed; or the CA that it names is
#: retired, and as a request that was heard is answered from the store, nothing was issued for it.
_LAPSED = frozenset({Reason.CERTIFICATE_KEY_REUSED, Reason.CA_UNKNOWN})


@dataclass(frozen=True, slots=True)
class InUse:
    """What the certificate in use says of itself."""

    certificate: x509.Certificate
    sha256: bytes
    validity: Validity
    nf_type: str

    @classmethod
    def of(cls, current: Attempt) -> InUse:
        return _in_use(current.chain[0], current.certificate_time)

    @classmethod
    def read(cls, der: bytes, issued: float | None) -> InUse:
        """Of a certificate in DER that the agent got at the time ``issued``."""
        certificate = x509.load_der_x509_certificate(der)
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        # A CA dates certificates back a little: of a short one that may be more than its life.
        validity = Validity(begin if issued is None or not begin <= issued < end else issued, end)
        return cls(certificate, jose.sha256(der), validity, next(iter(nf_types_of(certificate)), ""))

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=128)  # asked at each change of the state and by whoever follows it
def _in_use(certificate: str, issued: float | None) -> InUse:
    return InUse.read(bytes.fromhex(certificate), issued)


def has_ended(current: Attempt, now: datetime) -> bool:
    """Whether the certificate in use is good no more."""
    return not_after_of(current) <= now.timestamp()


def next_renewal(state: AgentState, policy: RenewalPolicy) -> float | None:
    """When the certificate in use is renewed, or tried again; None where there is none."""
    if state.current is None:
        return None
    if state.renewal.failures or state.renewal.attempt is not None:
        return state.renewal.next_time
    used = InUse.of(state.current)
    return renewal_time(used.validity, used.nf_type, draw_of(used.sha256), policy)


class RenewalProcedure(Procedure):
    """As a first enrolment, but for the proof: by the key of the certificate in use."""

    @property
    def _attempt(self) -> Attempt:
        attempt = self.states.state.renewal.attempt
        if attempt is None or attempt.request_id != self.request_id:
            raise Superseded
        return attempt

    def _save(self, attempt: Attempt) -> None:
        state = self.states.state
        assert self._attempt.request_id == attempt.request_id
        self.states.save(replace(state, renewal=replace(state.renewal, attempt=attempt)))

    def _switched(self, attempt: Attempt) -> AgentState:
        """The phase stays: an enrolment may be under way beside it."""
        return self.states.state.with_current(attempt)

    async def _make_request(self, accepted: AcceptedInfo) -> None:
        """A fresh key pair and CSR in the token, and the proof over them by the key in use."""
        attempt, info = self._attempt, accepted.info
        current = self.states.state.current
        assert current is not None
        used = InUse.of(current)
        key = self._key = await self._fresh_key(attempt.key_label)
        csr = await asyncio.to_thread(self._sign_csr, key, info.nf_instance_id, info.fqdns)
        request = RenewProof(
            ca_id=info.ca_id,
            registration=info.registration,
            nf_instance_id=info.nf_instance_id,
            request_id=attempt.request_id,
            csr=jose.b64url(csr),
        )
        old = key_in_token(self.token, current.key_label, used.public_key)
        algorithm = jose.algorithm_for(old.public_key())
        header = jose.Header(alg=algorithm, typ=RENEW_TYP, kid=jose.b64url(used.sha256), url=RENEW_URL)
        proof = await asyncio.to_thread(jose.sign, old, header, request)
        now = utc_now().timestamp()
        self._save(replace(attempt, proof=proof, csr_time=now, request_time=now))

    async def _request_certificate(self, accepted: AcceptedInfo) -> Attempt:
        """Persisted here: what is refused from now on may be a successor that was revoked, which is then given up."""
        attempt = await super()._request_certificate(accepted)
        self._save(attempt)
        return attempt

    async def _ask(self, accepted: AcceptedInfo, proof: str) -> EnrolResponse:
        text = await self.ca_ra.renew(accepted, proof)
        return accepted.read_response(text, RENEW_URL, EnrolResponse)


@dataclass(slots=True)
class Timekeeper:
    """Wall time that does not go back while the process lives: a renewal is not put off by a clock that does."""

    clock: Clock
    _offset: float = field(init=False)

    def __post_init__(self) -> None:
        self._offset = self.clock.now().timestamp() - self.clock.monotonic()

    def now(self) -> float:
        """The later of what the wall clock says and what has passed."""
        return max(self.clock.now().timestamp(), self.clock.monotonic() + self._offset)

    @property
    def trusted(self) -> bool:
        """Whether the wall clock has not jumped (security rule 22): nothing is destroyed by one that has."""
        passed = self.clock.monotonic() + self._offset
        return abs(self.clock.now().timestamp() - passed) <= TOLERANCE_SECONDS


class Renewer:
    """Renews the certificate in use for as long as it is good, and destroys the keys of those that have ended."""

    def __init__(
        self,
        config: AgentConfig,
        states: StateStore,
        token: TokenClient,
        connect: Callable[[], AbstractAsyncContextManager[EnrolmentPort]],
        clock: Clock,
        certificate_changed: Callable[[], None],
        source: random.Random,
        *,
        anchors: Sequence[x509.Certificate] = (),
    ) -> None:
        self._config = config
        self._anchors = anchors
        self._policy = config.renewal.policy
        self._states = states
        self._token = token
        self._connect = connect
        self._time = Timekeeper(clock)
        self._certificate_changed = certificate_changed
        self._source = source
        #: SHA-256 of the certificate that is to be renewed whatever its time.
        self._hastened = b""
        self._changed = asyncio.Event()
        states.on_change(self._changed.set)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            try:
                await self.destroy_old_keys()
                wait = await self.look()
            except NftrustError as error:  # the state cannot be written, or the token is away
                log.warning("renewal waits", extra={"reason": error.reason.name})
                wait = self._policy.retry_seconds
            except Exception:
                log.exception("renewal failed unexpectedly")  # whatever it is: the certificate ends if we do
                wait = LOOK_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, LOOK_SECONDS)):
                    await self._changed.wait()

    def hasten(self) -> None:
        """Renew the certificate in use at once. Raises NftrustError(NOT_ENROLLED, CERTIFICATE_EXPIRED)."""
        state = self._states.state
        if state.current is None or state.phase in ("enrolling", "delivered"):
            raise NftrustError(Reason.NOT_ENROLLED)
        used = InUse.of(state.current)
        if used.validity.ended(self._time.now()):
            raise NftrustError(Reason.CERTIFICATE_EXPIRED)
        self._hastened = used.sha256
        self._changed.set()

    async def look(self) -> float:
        """Renew if it is time; seconds until the next look. Raises NftrustError where the state cannot be written."""
        state = self._states.state
        due = next_renewal(state, self._policy)
        if due is None or state.current is None or state.phase in ("enrolling", "delivered"):
            return LOOK_SECONDS
        now = self._time.now()
        used = InUse.of(state.current)
        validity, hastened = used.validity, used.sha256 == self._hastened
        if validity.ended(now):
            self._note_end(state)
            return LOOK_SECONDS
        if now < due and not hastened:
            return due - now
        self._hastened = b""  # one try; then its own time, or that of the back-off, counts again
        await self._try(state.current, validity)
        return 0.0

    def _note_end(self, state: AgentState) -> None:
        """It cannot be renewed any more; docs/renewal.md says how the NF gets another."""
        if state.renewal.reason != Reason.CERTIFICATE_EXPIRED.name:
            log.error("the certificate has ended without a successor")
            renewal = replace(state.renewal, reason=Reason.CERTIFICATE_EXPIRED.name)
            self._states.save(replace(state, renewal=renewal))

    async def _try(self, current: Attempt, validity: Validity) -> None:
        state = self._states.state
        attempt = state.renewal.attempt
        if attempt is None:
            attempt = replace(new_attempt(current.enrolment_info, current.registration, None), signer=present_ca(state))
            self._states.save(replace(state, renewal=replace(state.renewal, attempt=attempt)))
        correlation_id.set(attempt.correlation)
        try:
            accepted = trust_of_renewal(self._states.state, attempt)
            async with self._connect() as port:
                key_type = self._config.key_type
                procedure = RenewalProcedure(
                    self._states, self._token, port, key_type, attempt.request_id, self._anchors
                )
                await procedure.run(accepted)
        except Superseded:
            return
        except NftrustError as error:
            self._note_failure(error, validity)
        except Exception:
            log.exception("renewal failed unexpectedly")
            self._note_failure(NftrustError(Reason.INTERNAL), validity)
        else:
            log.info("certificate renewed", extra={"registration": attempt.registration})
            self._certificate_changed()

    def _note_failure(self, error: NftrustError, validity: Validity) -> None:
        """Kept, so that a restart does not begin anew with short waits."""
        state, now = self._states.state, self._time.now()
        reason = error.reason if self._time.trusted else Reason.CLOCK_UNTRUSTED
        failures = state.renewal.failures + 1
        wait = retry_delay(validity.left(now), failures, self._source.random(), self._policy, error.retry_after or 0.0)
        log.warning("renewal failed, will be tried again", extra={"reason": reason.name, "failures": failures})
        renewal = Renewal(
            attempt=state.renewal.attempt, failures=failures, reason=reason.name, next_time=now + max(wait, 0.05)
        )
        state = replace(state, renewal=renewal)
        self._states.save(_without_lapsed(state) if _is_lapsed(state, error) else state)

    async def destroy_old_keys(self) -> None:
        """Of certificates that have ended; never by a clock that has jumped."""
        state, now = self._states.state, self._time.now()
        due = [key for key in state.old_keys if key.not_after <= now]
        if not due or not self._time.trusted:
            return
        present = {key.label for key in await self._token.run(ListKeys())}
        for key in due:
            if key.label in present:
                await self._token.run(DestroyKey(key.label))
        state = self._states.state
        kept = tuple(key for key in state.old_keys if key not in due)
        self._states.save(replace(state, old_keys=kept))
        log.info("keys of ended certificates destroyed", extra={"keys": len(due)})


def _is_lapsed(state: AgentState, error: NftrustError) -> bool:
    """Whether the successor that the request stands for was revoked before we confirmed it."""
    attempt = state.renewal.attempt
    if attempt is None:
        return False
    unconfirmed = attempt.confirmation is not None and error.reason is Reason.CERTIFICATE_REVOKED
    return unconfirmed or error.reason in _LAPSED


def _without_lapsed(state: AgentState) -> AgentState:
    """The next try makes another key and request."""
    attempt = state.renewal.attempt
    assert attempt is not None
    return replace(
        state,
        renewal=replace(state.renewal, attempt=None),
        old_keys=(*state.old_keys, OldKey(label=attempt.key_label, not_after=0.0)),
    )
