"""Which CAs the NF trusts: learnt with the enrolment, kept up to date by the signed trust bundle (docs/rollover.md)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from nf_agent.acceptance import AcceptedInfo, utc_now
from nf_agent.state import AgentState, Attempt, KnownCa, StateStore
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.messages import (
    ENROLMENT_INFO_TYP,
    RESPONSE_TYP,
    TRUST_BUNDLE_URL,
    ConfirmResponse,
    EnrolmentInfo,
    TrustBundleResponse,
    TrustedCa,
)
from nftrust.x509.authority import check_response_certificate
from nftrust.x509.keys import spki_sha256
from nftrust.x509.path import PathInvalid, load_chain

log = logging.getLogger("nf_agent.trust")

_ES256 = frozenset({"ES256"})
NONCE_BYTES = 32
#: After an enrolment the bundle is fetched soon, but not by all who were enrolled at once at one instant.
SOON_SECONDS = 5.0


class BundlePort(Protocol):
    """The CA/RA's GetTrustBundle."""

    async def trust_bundle(self, info: EnrolmentInfo, nonce: bytes, ca_id: str) -> str:
        """The signed response, from the endpoints of ``info``. Raises NftrustError as the CA/RA gave it."""
        ...


def enrolled_under(attempt: Attempt) -> EnrolmentInfo:
    """The information that the attempt was accepted with; it was verified then."""
    return jose.parse_payload(
        jose.split(attempt.enrolment_info, typ=ENROLMENT_INFO_TYP, algorithms=_ES256), EnrolmentInfo
    )


def known_cas(state: AgentState) -> tuple[KnownCa, ...]:
    """The CAs that the agent trusts, the newest first: those of the bundle, and that of an enrolment since then."""
    current, bundle = state.current, tuple(reversed(state.bundle))
    if current is None or not is_stale(state):
        return bundle
    own = _delivered_ca(enrolled_under(current))
    return (own, *(ca for ca in bundle if ca.ca_id != own.ca_id))


def present_ca(state: AgentState) -> KnownCa:
    """The CA by whose response key a renewal that begins now is to be answered: the one that issues."""
    known = known_cas(state)
    return next((ca for ca in known if ca.state == "active"), known[0])


def trust_of_renewal(state: AgentState, attempt: Attempt) -> AcceptedInfo:
    """As the enrolment information that the certificate in use came from, with what has been learnt of CAs since.

    The request is answered by the CA that it names; the successor may be issued by any CA that is trusted now.
    """
    info = enrolled_under(attempt)
    signer = attempt.signer
    if signer is None:
        return AcceptedInfo(info, *_material(_delivered_ca(info)), trust_anchors(state))
    encoded = [jose.b64url(bytes.fromhex(certificate)) for certificate in signer.chain]
    response = jose.b64url(bytes.fromhex(signer.response_certificate))
    named = replace(info, ca_id=signer.ca_id, ca_certificates=encoded, response_certificate=response)
    return AcceptedInfo(named, *_material(signer), trust_anchors(state))


def _delivered_ca(info: EnrolmentInfo) -> KnownCa:
    chain = tuple(jose.b64url_decode(certificate).hex() for certificate in info.ca_certificates)
    response = jose.b64url_decode(info.response_certificate).hex()
    return KnownCa(ca_id=info.ca_id, state="active", chain=chain, response_certificate=response)


def _material(ca: KnownCa) -> tuple[tuple[x509.Certificate, ...], ec.EllipticCurvePublicKey]:
    """The chain and the response key."""
    chain = tuple(x509.load_der_x509_certificate(bytes.fromhex(each)) for each in ca.chain)
    key = x509.load_der_x509_certificate(bytes.fromhex(ca.response_certificate)).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return chain, key


def is_stale(state: AgentState) -> bool:
    """There is no bundle yet, or it is older than the enrolment."""
    confirmed = state.current.confirm_time if state.current is not None else None
    return state.bundle_time is None or (confirmed is not None and state.bundle_time < confirmed)


def trust_anchors(state: AgentState) -> tuple[x509.Certificate, ...]:
    """The roots of the CAs that the agent trusts."""
    roots = dict.fromkeys(ca.chain[-1] for ca in known_cas(state))
    return tuple(x509.load_der_x509_certificate(bytes.fromhex(root)) for root in roots)


def accept_bundle(text: str, nonce: bytes, signer: KnownCa, anchors: Sequence[x509.Certificate]) -> tuple[KnownCa, ...]:
    """The CAs of a bundle, after checks B1 to B5; ``anchors`` are the preconfigured ones, if any.

    Raises NftrustError(RESPONSE_INVALID).
    """

    def refuse(why: str) -> NftrustError:
        return NftrustError(Reason.RESPONSE_INVALID, why)

    _, key = _material(signer)
    try:
        jws = jose.split(text, typ=RESPONSE_TYP, url=TRUST_BUNDLE_URL, algorithms=_ES256)
        jose.verify(key, jws)  # B1: by the response key of a CA that we know
        bundle = jose.parse_payload(jws, TrustBundleResponse)
    except NftrustError:
        raise refuse("the trust bundle is not signed by the CA that was asked") from None
    if bundle.request_sha256 != jose.b64url(jose.sha256(nonce)):  # B2: for this nonce
        raise refuse("the trust bundle answers another request")
    return trusted_cas(bundle.authorities, signer, anchors)


def trusted_cas(
    authorities: Sequence[TrustedCa], signer: KnownCa, anchors: Sequence[x509.Certificate]
) -> tuple[KnownCa, ...]:
    """Those that a verified message of ``signer`` names, after checks B3 to B5.

    Raises NftrustError(RESPONSE_INVALID).
    """
    entries = [ca for entry in authorities if (ca := _checked(entry)) is not None]  # B3: each whole in itself
    if anchors:  # B4: a preconfigured anchor wins
        entries = [entry for entry in entries if root_of(entry) in anchors]
    if signer.ca_id not in {entry.ca_id for entry in entries}:  # B5: with the one that signed
        raise NftrustError(Reason.RESPONSE_INVALID, "the trust bundle lacks the CA that signed it")
    return tuple(entries)


def cas_at_confirmation(
    attempt: Attempt, response: ConfirmResponse, anchors: Sequence[x509.Certificate]
) -> tuple[KnownCa, ...]:
    """The trust bundle that comes with a confirmed certificate. Raises NftrustError(RESPONSE_INVALID)."""
    signer = attempt.signer or _delivered_ca(enrolled_under(attempt))
    if not response.authorities:
        return (replace(signer, state="active"),)
    return trusted_cas(response.authorities, signer, anchors)


def root_of(ca: KnownCa) -> x509.Certificate:
    return x509.load_der_x509_certificate(bytes.fromhex(ca.chain[-1]))


def _checked(entry: TrustedCa) -> KnownCa | None:
    """None where it does not verify at this time: one that has ended does not keep us from the others."""
    try:
        encoded = [jose.b64url_decode(certificate) for certificate in entry.ca_certificates]
        response = jose.b64url_decode(entry.response_certificate)
        chain, [response_certificate] = load_chain(encoded), load_chain([response])
        check_response_certificate(response_certificate, chain, utc_now())
        issuing_key = chain[0].public_key()
        good = isinstance(issuing_key, ec.EllipticCurvePublicKey)
        good = good and entry.ca_id == jose.b64url(spki_sha256(issuing_key))  # type: ignore[arg-type]
    except (NftrustError, PathInvalid, ValueError):
        good = False
    if not good:
        log.warning("a CA of the trust bundle does not verify", extra={"ca_id": entry.ca_id})
        return None
    return KnownCa(
        ca_id=entry.ca_id,
        state=entry.state,
        chain=tuple(each.hex() for each in encoded),
        response_certificate=response.hex(),
    )


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """How often the bundle is fetched, and how long a failure may put it off."""

    interval_seconds: float
    retry_cap_seconds: float

    def next_time(self, fetched: float, draw: float) -> float:
        """Half an interval of jitter to either side; ``draw`` is uniform in [0, 1)."""
        return fetched + self.interval_seconds * (0.5 + draw)

    def retry_delay(self, failures: int, draw: float) -> float:
        """Full jitter under a ceiling that grows."""
        return max(0.05, draw * min(self.retry_cap_seconds, self.interval_seconds, 0.2 * 2.0 ** min(failures, 16)))


class TrustRefresher:
    """Fetches the trust bundle on a schedule; the first one comes with the certificate."""

    def __init__(
        self,
        states: StateStore,
        port: BundlePort,
        anchors: Sequence[x509.Certificate],
        policy: RefreshPolicy,
        change: Callable[[], asyncio.Event],
        on_refreshed: Callable[[], None],
    ) -> None:
        self._states = states
        self._port = port
        self._anchors = anchors
        self._policy = policy
        self._change = change
        self._on_refreshed = on_refreshed
        self._draw = random.random()
        self._failures = 0
        self._failed_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            change = self._change()  # before the state is read
            current = self._states.state.current
            if current is None:
                await change.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._delay(current)):
                    await change.wait()
                continue  # another state: another time
            await self._try(current)

    def _delay(self, current: Attempt) -> float:
        now = utc_now().timestamp()
        state = self._states.state
        if self._failures:
            due = self._failed_at + self._policy.retry_delay(self._failures, self._draw)
        elif is_stale(state):
            due = (current.confirm_time or now) + self._draw * min(SOON_SECONDS, self._policy.interval_seconds)
        else:
            assert state.bundle_time is not None
            due = self._policy.next_time(state.bundle_time, self._draw)
        # A clock that was set back does not put it off for longer than that.
        return min(max(0.0, due - now), 1.5 * self._policy.interval_seconds)

    async def _try(self, current: Attempt) -> None:
        try:
            bundle = await self._fetch(current)
            changed = bundle != self._states.state.bundle
            self._states.save(replace(self._states.state, bundle=bundle, bundle_time=utc_now().timestamp()))
        except NftrustError as error:
            self._note_failure(error.reason)
        except Exception:
            log.exception("the trust bundle could not be fetched")
            self._note_failure(Reason.INTERNAL)
        else:
            self._failures, self._draw = 0, random.random()
            if changed:
                log.info("trust bundle changed", extra={"cas": [ca.ca_id for ca in bundle]})
            self._on_refreshed()

    def _note_failure(self, reason: Reason) -> None:
        self._failures += 1
        self._failed_at, self._draw = utc_now().timestamp(), random.random()
        log.warning("the trust bundle could not be fetched", extra={"reason": reason.name})

    async def _fetch(self, current: Attempt) -> tuple[KnownCa, ...]:
        """Signed by whichever CA of ours the CA/RA still has. Raises NftrustError."""
        info = enrolled_under(current)
        for signer in known_cas(self._states.state):
            nonce = secrets.token_bytes(NONCE_BYTES)
            try:
                answer = await self._port.trust_bundle(info, nonce, signer.ca_id)
            except NftrustError as error:
                if error.reason is not Reason.CA_UNKNOWN:
                    raise
                continue
            return accept_bundle(answer, nonce, signer, self._anchors)
        raise NftrustError(Reason.CA_UNKNOWN)
