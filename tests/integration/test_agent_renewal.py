"""The NF agent renews its certificate: with a real token, at a real CA/RA, whatever fails in between."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from nf_agent.renewal import has_ended, next_renewal
from nf_agent.schedule import RenewalPolicy
from nf_agent.state import StateStore
from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.pkcs11.client import TokenClient
from softhsm import create_token
from tests.lab_kit import CALL_SECONDS, RunningLab
from tests.renewal_kit import Killed, RealNf
from tests.shim_kit import TOKEN_GONE, Shim

pytestmark = [pytest.mark.process, pytest.mark.token]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """A token that can be taken away."""
    directory = tmp_path_factory.mktemp("renewing")
    return Shim(create_token(directory / "token", "nftrust-renewing"), directory / "shim")


@pytest.fixture(scope="module")
def real_nf(running_lab: RunningLab, shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNf]:
    token = TokenClient.in_process(shim.config)
    try:
        token.ready()
        yield RealNf.make(running_lab, tmp_path_factory.mktemp("agent"), shim.config, token)
    finally:
        token.close()


@pytest.fixture
async def nf(real_nf: RealNf) -> RealNf:
    """With a fresh certificate and nothing broken."""
    real_nf.clock.ahead = real_nf.clock.jumped = timedelta(0)
    real_nf.faults.clear()
    await real_nf.enrol()
    real_nf.changes.clear()
    return real_nf


async def test_it_renews_in_time_with_a_new_key_and_switches_over(nf: RealNf) -> None:
    before, old_label = nf.serial, nf.state.current and nf.state.current.key_label
    renewer = await nf.renewer()
    assert await renewer.look() > 0  # not yet
    assert nf.serial == before
    nf.make_due()
    await renewer.look()
    assert nf.serial != before
    assert nf.changes == [nf.serial]
    assert nf.state.current is not None
    assert nf.state.current.key_label != old_label
    assert nf.state.renewal.attempt is None
    renewed = await nf.certificate()
    assert renewed.predecessor == f"certificates/{before}"
    assert renewed.HasField("confirm_time")
    nf.restarted()
    assert nf.serial == renewed.name.removeprefix("certificates/")


async def test_the_key_of_a_certificate_is_destroyed_at_its_end_and_not_before(nf: RealNf) -> None:
    assert nf.state.current is not None
    old = nf.state.current.key_label
    await nf.renew()
    renewer = await nf.renewer()
    await renewer.destroy_old_keys()
    assert old in await nf.labels()
    [known] = [key for key in nf.state.old_keys if key.label == old]
    nf.clock.move_to(known.not_after + 1)
    nf.clock.jumped = timedelta(hours=1)  # a clock that jumps destroys nothing
    await renewer.destroy_old_keys()
    assert old in await nf.labels()
    nf.clock.jumped = timedelta(0)
    await renewer.destroy_old_keys()
    assert old not in await nf.labels()
    assert nf.state.current.key_label in await nf.labels()
    assert old not in {key.label for key in nf.state.old_keys}


@pytest.mark.parametrize("fault", ["renew unsent", "renew unanswered", "confirm unsent", "confirm unanswered"])
async def test_a_message_that_is_lost_is_no_alarm(nf: RealNf, fault: str) -> None:
    before = nf.serial
    nf.faults.append(fault)
    await nf.renew()
    assert nf.serial == before
    assert nf.state.renewal.failures == 1
    assert nf.state.renewal.reason == "PEER_UNAVAILABLE"
    await nf.renew()
    assert nf.serial != before
    assert nf.state.renewal.failures == 0
    assert (await nf.certificate()).predecessor == f"certificates/{before}"


@pytest.mark.parametrize("fault", ["renew killed", "confirm killed"])
async def test_a_kill_at_any_instant_leads_to_the_same_successor(nf: RealNf, fault: str) -> None:
    before = nf.serial
    nf.faults.append(fault)
    with pytest.raises(Killed):
        await nf.renew()
    nf.restarted()
    sent = nf.state.renewal.attempt
    assert sent is not None
    await nf.renew()
    assert nf.serial != before
    assert nf.state.current is not None
    assert nf.state.current.request_id == sent.request_id
    assert len([each for each in await nf.certificates() if each.predecessor == f"certificates/{before}"]) == 1


async def test_a_key_made_before_a_kill_is_made_anew(nf: RealNf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the key and the request over it: nothing has gone out."""
    save = StateStore.save

    def killed(self: StateStore, state: object) -> None:
        attempt = state.renewal.attempt  # type: ignore[attr-defined]
        if attempt is not None and attempt.proof is not None:
            raise Killed
        save(self, state)  # type: ignore[arg-type]

    monkeypatch.setattr(StateStore, "save", killed)
    with pytest.raises(Killed):
        await nf.renew()
    monkeypatch.undo()
    nf.restarted()
    before = nf.serial
    await nf.renew()
    assert nf.serial != before


async def test_the_token_pulled_away_during_a_renewal(nf: RealNf, shim: Shim) -> None:
    before = nf.serial
    renewing = await nf.renewer()
    nf.make_due()
    with shim.failing(TOKEN_GONE):
        await renewing.look()
        assert nf.state.renewal.reason == "TOKEN_UNAVAILABLE"
    async with asyncio.timeout(60):
        while nf.serial == before:
            await asyncio.sleep(0.2)  # the token's own pace: each failed renewal is later in the certificate's life
            nf.make_due()
            await renewing.look()
    assert (await nf.certificate()).predecessor == f"certificates/{before}"


async def test_failures_are_kept_over_a_restart(nf: RealNf) -> None:
    for count in range(1, 4):
        nf.faults.append("renew unsent")
        await nf.renew()
        nf.restarted()
        assert nf.state.renewal.failures == count
    due = next_renewal(nf.state, RenewalPolicy())
    assert due is not None
    assert due == nf.state.renewal.next_time


async def test_an_enrolment_that_begins_during_a_renewal_goes_on(nf: RealNf) -> None:
    nf.faults.append("confirm unsent")
    await nf.renew()
    pending = nf.state.renewal.attempt
    assert pending is not None
    nf.states.save(msgspec.structs.replace(nf.state, phase="enrolling"))
    renewer = await nf.renewer()
    nf.make_due()
    assert await renewer.look() > 0  # not while it is under way
    assert nf.state.renewal.attempt == pending
    await nf.enrol()
    assert nf.state.renewal.attempt is None
    await renewer.destroy_old_keys()
    assert pending.key_label not in await nf.labels()


# Refusals


async def test_a_revoked_certificate_is_not_renewed_and_the_state_says_why(nf: RealNf) -> None:
    before = nf.serial
    request = certificate_pb.RevokeCertificateRequest(
        name=f"certificates/{before}", reason=certificate_pb.CESSATION_OF_OPERATION
    )
    await asyncio.to_thread(nf.running_lab.oam.certificates.RevokeCertificate, request, timeout=CALL_SECONDS)
    await nf.renew()
    assert nf.serial == before
    assert nf.state.renewal.reason == "CERTIFICATE_REVOKED"
    await nf.renew()
    assert nf.state.renewal.failures == 2


async def test_a_successor_that_was_revoked_before_its_confirmation_is_given_up(nf: RealNf) -> None:
    before = nf.serial
    nf.faults.append("confirm unsent")
    await nf.renew()
    [lapsed, *_] = await nf.certificates()
    request = certificate_pb.RevokeCertificateRequest(name=lapsed.name, reason=certificate_pb.CESSATION_OF_OPERATION)
    await asyncio.to_thread(nf.running_lab.oam.certificates.RevokeCertificate, request, timeout=CALL_SECONDS)
    await nf.renew()
    assert nf.serial == before
    assert nf.state.renewal.attempt is None
    await nf.renew()
    assert nf.serial not in (before, lapsed.name.removeprefix("certificates/"))
    await (await nf.renewer()).destroy_old_keys()
    in_use = [label for label in await nf.labels() if label == nf.state.current.key_label]  # type: ignore[union-attr]
    assert len(in_use) == 1


async def test_an_ended_certificate_is_not_renewed_and_counts_as_none(nf: RealNf) -> None:
    before = nf.serial
    assert nf.state.current is not None
    renewer = await nf.renewer()
    nf.clock.move_to(nf.state.current.certificate_time or 0.0)
    assert not has_ended(nf.state.current, nf.clock.now())
    nf.clock.ahead = timedelta(days=4000)
    await renewer.look()
    await renewer.look()
    assert nf.serial == before
    assert nf.state.renewal.reason == "CERTIFICATE_EXPIRED"
    assert nf.state.renewal.failures == 0
    assert has_ended(nf.state.current, nf.clock.now())


# Theft


async def test_a_copied_state_with_the_same_token_freezes_the_nf(nf: RealNf, tmp_path: Path) -> None:
    """Both prove the same key and ask for a key of their own."""
    copy = RealNf(nf.running_lab, tmp_path, nf.token_config, nf.token, nf.nf, nf.states)
    shutil.copy(nf.directory / "state.json", tmp_path / "state.json")
    copy.restarted()
    await nf.renew()
    renewed = nf.serial
    await copy.renew()
    assert copy.state.renewal.reason == "CERTIFICATE_SUPERSEDED"
    assert copy.serial != renewed
    assert all(each.HasField("revoke_time") for each in await nf.certificates())
    await nf.renew()
    assert nf.serial == renewed
    assert nf.state.renewal.reason == "END_ENTITY_SUSPENDED"


# Clocks


async def test_a_clock_that_goes_back_does_not_put_a_renewal_off(nf: RealNf) -> None:
    before = nf.serial
    renewer = await nf.renewer()
    nf.make_due()
    nf.clock.jumped = timedelta(days=-365)
    await renewer.look()
    assert nf.serial != before


async def test_a_failure_under_a_clock_that_has_jumped_says_so(nf: RealNf) -> None:
    renewer = await nf.renewer()
    nf.make_due()
    nf.clock.jumped = timedelta(hours=1)
    nf.faults.append("renew unsent")
    await renewer.look()
    assert nf.state.renewal.reason == "CLOCK_UNTRUSTED"


async def test_the_loop_renews_by_itself_again_and_again(nf: RealNf) -> None:
    seen = {nf.serial}
    nf.faults.extend(["renew unsent", "confirm unanswered"])
    async with nf.running(), asyncio.timeout(60):
        while len(seen) < 3:
            nf.make_due()
            nf.states.note("")  # wakes the loop, as any change does
            await asyncio.sleep(0.05)
            seen.add(nf.serial)
    assert nf.changes[0] in seen
