"""What the agent takes from a trust bundle, and when it asks for one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from nf_agent.state import AgentState, Attempt, KnownCa, StateStore
from nf_agent.trust import (
    RefreshPolicy,
    TrustRefresher,
    accept_bundle,
    cas_at_confirmation,
    is_stale,
    known_cas,
    present_ca,
    trust_anchors,
    trust_of_renewal,
)
from nftrust import jose
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically
from nftrust.messages import (
    ENROLMENT_INFO_TYP,
    RESPONSE_TYP,
    TRUST_BUNDLE_URL,
    ConfirmResponse,
    EnrolmentInfo,
    Payload,
    TrustBundleResponse,
    TrustedCa,
)
from nftrust.x509.keys import spki_sha256
from nftrust.x509.path import der
from tests.unit.support import HOME, NF_ID, NfCa, refused

OLD, NEW, STRANGER = NfCa("trust old"), NfCa("trust new"), NfCa("trust stranger")
NONCE = bytes(range(32))


def ca_id(ca: NfCa) -> str:
    return jose.b64url(spki_sha256(ca.issuing_key.public_key()))


def known(ca: NfCa) -> KnownCa:
    chain = tuple(der(certificate).hex() for certificate in ca.chain)
    return KnownCa(ca_id=ca_id(ca), state="active", chain=chain, response_certificate=der(ca.response).hex())


def entry(ca: NfCa, **changes: Any) -> TrustedCa:
    fields: dict[str, Any] = {
        "ca_id": ca_id(ca),
        "state": "active",
        "ca_certificates": [jose.b64url(der(certificate)) for certificate in ca.chain],
        "response_certificate": jose.b64url(der(ca.response)),
    }
    return TrustedCa(**(fields | changes))


def signed(
    key: ec.EllipticCurvePrivateKey, payload: Payload, typ: str = RESPONSE_TYP, url: str = TRUST_BUNDLE_URL
) -> str:
    return jose.sign(key, jose.Header(alg="ES256", typ=typ, url=url), payload)


def bundle(*entries: TrustedCa, nonce: bytes = NONCE, key: ec.EllipticCurvePrivateKey = OLD.response_key) -> str:
    answer = TrustBundleResponse(
        request_sha256=jose.b64url(jose.sha256(nonce)), ca_id=entries[0].ca_id, authorities=list(entries)
    )
    return signed(key, answer)


def accept(text: str, anchors: Sequence[x509.Certificate] = ()) -> tuple[KnownCa, ...]:
    return accept_bundle(text, NONCE, known(OLD), anchors)


def test_a_bundle_signed_by_a_known_ca_names_those_to_trust() -> None:
    assert accept(bundle(entry(OLD), entry(NEW))) == (known(OLD), known(NEW))


@pytest.mark.parametrize(
    "text",
    [
        bundle(entry(OLD), entry(NEW), key=NEW.response_key),  # B1: by a CA that is only in the bundle itself
        bundle(entry(OLD), entry(STRANGER), key=STRANGER.response_key),
        bundle(entry(OLD), entry(NEW), key=OLD.issuing_key),
        bundle(entry(OLD), nonce=bytes(32)),  # B2: a replay
        bundle(entry(NEW)),  # B5
        "garbage",
        "",
    ],
)
def test_any_other_is_refused(text: str) -> None:
    with refused(Reason.RESPONSE_INVALID):
        accept(text)


def test_another_response_is_no_bundle() -> None:
    answer = TrustBundleResponse(
        request_sha256=jose.b64url(jose.sha256(NONCE)), ca_id=ca_id(OLD), authorities=[entry(OLD)]
    )
    for typ, url in ((ENROLMENT_INFO_TYP, TRUST_BUNDLE_URL), (RESPONSE_TYP, "/other")):
        with refused(Reason.RESPONSE_INVALID):
            accept(signed(OLD.response_key, answer, typ, url))


@pytest.mark.parametrize(
    "changes",
    [
        {"ca_id": ca_id(STRANGER)},
        {"response_certificate": jose.b64url(der(STRANGER.response))},
        {"response_certificate": jose.b64url(der(NEW.issuing))},  # without the EKU
        {"ca_certificates": [jose.b64url(der(NEW.issuing)), jose.b64url(der(OLD.root))]},
        {"ca_certificates": ["AAAA", "AAAA"]},
        {"response_certificate": ""},
    ],
)
def test_a_ca_that_does_not_verify_is_left_out(changes: dict[str, Any]) -> None:
    assert accept(bundle(entry(OLD), entry(NEW, **changes))) == (known(OLD),)


def test_a_ca_at_its_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    short = NfCa("trust short", lifetime=NEW.lifetime / 100)
    end = short.issuing.not_valid_after_utc + timedelta(seconds=1)
    monkeypatch.setattr("nf_agent.trust.utc_now", lambda: end)
    assert accept(bundle(entry(OLD), entry(short))) == (known(OLD),)


def test_a_preconfigured_anchor_wins() -> None:
    text = bundle(entry(OLD), entry(NEW))
    assert accept(text, [OLD.root]) == (known(OLD),)
    assert accept(text, [OLD.root, NEW.root]) == (known(OLD), known(NEW))
    with refused(Reason.RESPONSE_INVALID):
        accept(text, [STRANGER.root])


# What the agent knows


def enrolment_info(ca: NfCa) -> str:
    info = EnrolmentInfo(
        protocol="grpc",
        endpoints=["localhost:1"],
        tls_trust_anchors=["pem"],
        ca_certificates=entry(ca).ca_certificates,
        response_certificate=entry(ca).response_certificate,
        ca_id=ca_id(ca),
        ca_name="CA",
        registration="registrations/1",
        reference="r",
        nf_instance_id=NF_ID,
        nf_type="AMF",
        fqdns=[f"one.amf.{HOME}"],
        certificate_profile="nf",
        transport_key_sha256=jose.b64url(bytes(32)),
        delivery_mode="wrapped",
        mac_algorithm="HS256",
        re_enrolment=False,
        wrapped_iak="",
        expire_time=0,
    )
    return jose.sign(ca.response_key, jose.Header(alg="ES256", typ=ENROLMENT_INFO_TYP), info)


def state(ca: NfCa = OLD, **changes: Any) -> AgentState:
    current = Attempt(
        enrolment_info=enrolment_info(ca),
        registration="registrations/1",
        request_id="1",
        key_label="nf-1",
        confirm_time=changes.pop("confirm_time", 1000.0),
    )
    return AgentState(nf_instance_id=NF_ID, instantiate_time=0.0, phase="confirmed", current=current, **changes)


def test_before_the_first_bundle_the_ca_of_the_enrolment_is_known() -> None:
    assert known_cas(state()) == (known(OLD),)
    assert trust_anchors(state()) == (OLD.root,)


def test_the_bundle_decides_from_then_on() -> None:
    rolled = state(bundle=(known(OLD), known(NEW)), bundle_time=2000.0)
    assert known_cas(rolled) == (known(NEW), known(OLD))
    assert set(trust_anchors(rolled)) == {OLD.root, NEW.root}
    gone = state(bundle=(known(NEW),), bundle_time=2000.0)  # the CA of the enrolment is retired
    assert trust_anchors(gone) == (NEW.root,)


def test_an_enrolment_since_the_bundle_counts() -> None:
    again = state(NEW, bundle=(known(OLD),), bundle_time=500.0)
    assert is_stale(again)
    assert known_cas(again) == (known(NEW), known(OLD))


# The confirmation


def confirmed(*entries: TrustedCa) -> ConfirmResponse:
    return ConfirmResponse(
        request_sha256=jose.b64url(bytes(32)),
        registration="registrations/1",
        certificate="certificates/1",
        confirm_time_us=1000,
        authorities=list(entries),
    )


def bundle_of(response: ConfirmResponse, *anchors: x509.Certificate, signer: KnownCa | None = None) -> list[KnownCa]:
    current = state().current
    assert current is not None
    return list(cas_at_confirmation(replace(current, signer=signer), response, anchors))


def test_a_confirmation_without_cas_is_of_the_only_one() -> None:
    assert bundle_of(confirmed()) == [known(OLD)]
    assert bundle_of(confirmed(), signer=replace(known(NEW), state="announced")) == [known(NEW)]


def test_a_confirmation_during_a_rollover_names_them_all() -> None:
    assert bundle_of(confirmed(entry(OLD), entry(NEW))) == [known(OLD), known(NEW)]
    assert bundle_of(confirmed(entry(OLD), entry(NEW)), OLD.root) == [known(OLD)]
    with refused(Reason.RESPONSE_INVALID):
        bundle_of(confirmed(entry(NEW)))


# A renewal


def test_a_renewal_is_answered_by_the_ca_that_issues_and_goes_under_any_that_is_trusted() -> None:
    rolled = state(bundle=(replace(known(OLD), state="superseded"), known(NEW)), bundle_time=2000.0)
    assert rolled.current is not None
    attempt = replace(rolled.current, signer=present_ca(rolled))
    trust = trust_of_renewal(rolled, attempt)
    assert (trust.info.ca_id, trust.response_key) == (ca_id(NEW), NEW.response_key.public_key())
    assert set(trust.anchors) == {OLD.root, NEW.root}
    assert trust.info.endpoints == ["localhost:1"]


def test_before_an_activation_the_old_ca_answers() -> None:
    announced = state(bundle=(known(OLD), replace(known(NEW), state="announced")), bundle_time=2000.0)
    assert present_ca(announced) == known(OLD)


def test_a_request_stays_with_the_ca_that_it_names() -> None:
    """Also where the bundle has forgotten it since: a request that was heard is answered as it was then."""
    forgotten = state(bundle=(known(NEW),), bundle_time=2000.0)
    assert forgotten.current is not None
    for signer in (known(OLD), None):  # None: of a version that kept no signer
        trust = trust_of_renewal(forgotten, replace(forgotten.current, signer=signer))
        assert (trust.info.ca_id, trust.response_key) == (ca_id(OLD), OLD.response_key.public_key())
        assert trust.anchors == (NEW.root,)


# When it asks


def test_the_interval_is_jittered_by_half_and_failures_back_off() -> None:
    policy = RefreshPolicy(interval_seconds=100.0, retry_cap_seconds=30.0)
    assert [policy.next_time(1000.0, draw) for draw in (0.0, 0.5, 1.0)] == [1050.0, 1100.0, 1150.0]
    longest = [policy.retry_delay(failures, 1.0) for failures in range(1, 20)]
    assert longest == sorted(longest)
    assert longest[-1] == 30.0
    assert policy.retry_delay(20, 0.0) > 0


@dataclass
class CaRa:
    """GetTrustBundle of a CA/RA that knows ``cas``; refuses as often as it is told."""

    cas: list[NfCa]
    refusals: list[Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def trust_bundle(self, info: EnrolmentInfo, nonce: bytes, ca_id_: str) -> str:
        self.asked.append(ca_id_)
        if self.refusals:
            raise self.refusals.pop(0)
        signer = next((ca for ca in self.cas if ca_id(ca) == ca_id_), None)
        if signer is None:
            raise NftrustError(Reason.CA_UNKNOWN)
        return bundle(*(entry(ca) for ca in self.cas), nonce=nonce, key=signer.response_key)


@contextlib.asynccontextmanager
async def refreshing(directory: Path, before: AgentState, ca_ra: CaRa) -> AsyncIterator[tuple[StateStore, list[int]]]:
    """A refresher at work on a stored state; and how often it said that it has refreshed."""
    states = StateStore(directory, before)
    states.save(before)
    changed = asyncio.Event()
    told: list[int] = []

    def change() -> asyncio.Event:
        return changed

    policy = RefreshPolicy(interval_seconds=0.05, retry_cap_seconds=0.02)
    refresher = TrustRefresher(states, ca_ra, (), policy, change, lambda: told.append(1))
    running = asyncio.create_task(refresher.run())
    try:
        yield states, told
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_new_ca_is_learnt_and_an_old_one_forgotten(tmp_path: Path) -> None:
    ca_ra = CaRa([OLD])
    async with refreshing(tmp_path, state(confirm_time=time.time()), ca_ra) as (states, told):
        await until(lambda: states.state.bundle == (known(OLD),))
        ca_ra.cas = [OLD, NEW]
        await until(lambda: set(trust_anchors(states.state)) == {OLD.root, NEW.root})
        ca_ra.cas = [NEW]  # the old one is retired: its response key signs no more
        await until(lambda: trust_anchors(states.state) == (NEW.root,))
        assert told
    kept = StateStore.open(tmp_path, NF_ID).state
    assert kept.bundle == (known(NEW),)


async def test_failures_do_not_end_it(tmp_path: Path) -> None:
    down = [NftrustError(Reason.PEER_UNAVAILABLE), RuntimeError("unexpected"), NftrustError(Reason.CA_UNKNOWN)]
    ca_ra = CaRa([OLD, NEW], list(down))
    async with refreshing(tmp_path, state(confirm_time=time.time()), ca_ra) as (states, _):
        await until(lambda: states.state.bundle == (known(OLD), known(NEW)))
    assert len(ca_ra.asked) > len(down)


async def test_what_a_stranger_signs_changes_nothing(tmp_path: Path) -> None:
    """Who holds the CA/RA's TLS key alone cannot plant a trust anchor (security rule 12)."""
    ca_ra = CaRa([OLD, STRANGER])

    async def lie(info: EnrolmentInfo, nonce: bytes, ca_id_: str) -> str:
        ca_ra.asked.append(ca_id_)
        return bundle(entry(OLD), entry(STRANGER), nonce=nonce, key=STRANGER.response_key)

    ca_ra.trust_bundle = lie  # type: ignore[method-assign]
    before = state(confirm_time=time.time())
    async with refreshing(tmp_path, before, ca_ra) as (states, told):
        await until(lambda: len(ca_ra.asked) >= 3)
        assert states.state == before
        assert told == []


async def test_nothing_is_asked_before_there_is_a_certificate(tmp_path: Path) -> None:
    ca_ra = CaRa([OLD])
    async with refreshing(tmp_path, replace(state(), current=None), ca_ra) as (_, told):
        await asyncio.sleep(0.2)
        assert (ca_ra.asked, told) == ([], [])


def test_an_older_state_file_is_read(tmp_path: Path) -> None:
    """One without a bundle, of a version that had none."""
    write_atomically(tmp_path / "state.json", b'{"nf_instance_id": "%s", "instantiate_time": 1.0}' % NF_ID.encode())
    assert StateStore.open(tmp_path, NF_ID).state.bundle == ()
