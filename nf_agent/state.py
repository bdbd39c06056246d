"""What the agent remembers: one JSON file, replaced atomically and durably.

It holds no secret: the IAK is in it only wrapped for the token's transport key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509

from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically

TRANSPORT_KEY = "nf-transport"
STATE_FILE = "state.json"
Phase = Literal["armed", "enrolling", "confirmed", "failed", "delivered"]


class KnownCa(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A CA that the NF trusts (docs/rollover.md). Certificates are DER, hexadecimal."""

    ca_id: str
    #: As of the last bundle: announced, active or superseded.
    state: str
    #: Issuing CA first, root last.
    chain: tuple[str, ...]
    response_certificate: str


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One enrolment, from delivery on. Times are seconds since the epoch."""

    enrolment_info: str
    registration: str
    #: Under which the CM proxy logs this enrolment; so do we, and the CA/RA.
    correlation: str = ""
    #: Label of the token-held IAK; only in the tls-only mode.
    iak_label: str | None = None
    request_id: str
    key_label: str
    #: The request, persisted before it is sent, so that a repetition is the same bytes.
    proof: str | None = None
    confirmation: str | None = None
    #: DER, hexadecimal: certificate, issuing CA, root.
    chain: tuple[str, ...] = ()
    csr_time: float | None = None
    request_time: float | None = None
    certificate_time: float | None = None
    confirm_time: float | None = None
    #: The CA/RA's signed answer to the confirmation.
    confirmed: str = ""
    #: Of a renewal: the CA whose response key answers it. None: that of the enrolment information.
    signer: KnownCa | None = None


class Renewal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The renewal of the certificate in use, once it has begun. Times are seconds since the epoch."""

    #: The request for the successor; None: to be made.
    attempt: Attempt | None = None
    #: In a row, those of earlier processes included.
    failures: int = 0
    #: Of the last failure.
    reason: str = ""
    #: When it is tried again.
    next_time: float = 0.0


class OldKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key in the token that is to be destroyed once its certificate has ended."""

    label: str
    not_after: float


class AgentState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's whole memory."""

    nf_instance_id: str
    instantiate_time: float
    phase: Phase = "armed"
    #: Why the last attempt failed, or is being retried.
    reason: str = ""
    #: The attempt under way, or the last one.
    attempt: Attempt | None = None
    #: The confirmed attempt whose certificate is in use.
    current: Attempt | None = None
    renewal: Renewal = Renewal()
    old_keys: tuple[OldKey, ...] = ()
    #: What the CA/RA's trust bundle named when it was fetched last, by generation, and when that was.
    bundle: tuple[KnownCa, ...] = ()
    bundle_time: float | None = None

    def with_current(self, confirmed: Attempt) -> AgentState:
        """Switch over: this certificate is in use from now on, and the key of the one before is old."""
        old = []
        if self.current is not None and self.current.key_label != confirmed.key_label:
            old.append(OldKey(label=self.current.key_label, not_after=not_after_of(self.current)))
        given_up = self.renewal.attempt
        if given_up is not None and given_up.key_label != confirmed.key_label:
            old.append(OldKey(label=given_up.key_label, not_after=0.0))
        return msgspec.structs.replace(
            self,
            current=confirmed,
            renewal=Renewal(),
            old_keys=(*self.old_keys, *old),
        )


def not_after_of(attempt: Attempt) -> float:
    """The end of its certificate."""
    certificate = x509.load_der_x509_certificate(bytes.fromhex(attempt.chain[0]))
    return certificate.not_valid_after_utc.timestamp()


class StateStore:
    """Reads and replaces :class:`AgentState`; the same object for every part of the agent."""

    def __init__(self, directory: Path, state: AgentState) -> None:
        self._path = directory / STATE_FILE
        self._state = state
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def open(cls, directory: Path, nf_instance_id: str) -> StateStore:
        """Raises NftrustError(STATE_CORRUPT, STATE_FOREIGN, KEY_MISSING where never initialised)."""
        state = read_state(directory)
        if state is None:
            raise NftrustError(Reason.KEY_MISSING, f"{directory}: not initialised; run `nf-agent init`")
        if state.nf_instance_id != nf_instance_id:
            raise NftrustError(Reason.STATE_FOREIGN)
        return cls(directory, state)

    @property
    def state(self) -> AgentState:
        return self._state

    def save(self, state: AgentState) -> None:
        """Durable before it returns; else nothing changes. Raises NftrustError as write_atomically does."""
        write_atomically(self._path, msgspec.json.format(msgspec.json.encode(state), indent=1))
        self._adopt(state)

    def note(self, reason: str) -> None:
        """Say why the attempt has to wait. It is told even if it cannot be kept: nothing rests on it."""
        state = msgspec.structs.replace(self._state, reason=reason)
        try:
            self.save(state)
        except NftrustError:
            self._adopt(state)

    def rearm(self) -> None:
        """Accept another delivery although a certificate is held (security rule 4: re-armed locally)."""
        self.save(msgspec.structs.replace(self._state, phase="armed", reason=""))

    def _adopt(self, state: AgentState) -> None:
        self._state = state
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)


def read_state(directory: Path) -> AgentState | None:
    """The stored state, or None where there is none. Raises NftrustError(STATE_CORRUPT)."""
    try:
        raw = (directory / STATE_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(raw, type=AgentState)
    except msgspec.MsgspecError:
        raise NftrustError(Reason.STATE_CORRUPT) from None
