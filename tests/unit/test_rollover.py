"""How the generations of the CA stand, and which of them issues for whom."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from ca_ra.authority import FRONT_LAG, Authority, CaState, KeyLabels, Paths, standing
from ca_ra.authority_store import next_generation
from nftrust.errors import Reason
from nftrust.messages import MAX_TRUSTED_CAS
from tests.unit.support import NOW, NfCa, authorities, refused, stored_ca

HOUR = timedelta(hours=1)
OLD, NEW = NfCa("rollover old"), NfCa("rollover new")


def authority(ca: NfCa, generation: int) -> Authority:
    options = {"public_url": "http://ca.example/", "country": "DE", "home_domain": "5gc.example"}
    return Authority.of(ca.chain, ca.response, generation=generation, **options)


FIRST, SECOND = authority(OLD, 1), authority(NEW, 2)


def test_the_states_of_a_whole_rollover() -> None:
    new = {"activate_time": NOW + HOUR}
    phases = [
        [stored_ca(1)],
        [stored_ca(1), stored_ca(2)],
        [stored_ca(1), stored_ca(2, **new)],
        [stored_ca(1, retire_time=NOW + 2 * HOUR), stored_ca(2, **new)],
    ]
    states = [[state for _, state, _ in standing(phase)] for phase in phases]
    assert states == [
        [CaState.ACTIVE],
        [CaState.ACTIVE, CaState.ANNOUNCED],
        [CaState.SUPERSEDED, CaState.ACTIVE],
        [CaState.RETIRED, CaState.ACTIVE],
    ]
    assert [time for _, _, time in standing(phases[2])] == [NOW + HOUR, None]


def test_a_withdrawn_ca_is_retired_and_the_active_one_stays() -> None:
    stored = [stored_ca(1), stored_ca(2, retire_time=NOW)]
    assert [state for _, state, _ in standing(stored)] == [CaState.ACTIVE, CaState.RETIRED]
    assert next_generation(stored) == 3


def test_one_rollover_at_a_time() -> None:
    assert next_generation([stored_ca(1)]) == 2
    with refused(Reason.ROLLOVER_OUT_OF_ORDER):
        next_generation([stored_ca(1), stored_ca(2)])


def test_no_more_cas_than_a_bundle_may_have() -> None:
    stored = [stored_ca(n, activate_time=NOW + n * HOUR) for n in range(1, MAX_TRUSTED_CAS + 1)]
    with refused(Reason.ROLLOVER_OUT_OF_ORDER):
        next_generation(stored)


def test_exactly_one_is_active_whatever_happened() -> None:
    times = [None, NOW, NOW + HOUR]
    for activated, retired in itertools.product(itertools.product(times, repeat=2), itertools.product(times, repeat=2)):
        stored = [stored_ca(1)] + [
            stored_ca(n + 2, activate_time=activated[n], retire_time=None if activated[n] == NOW + HOUR else retired[n])
            for n in range(2)
        ]
        states = [state for _, state, _ in standing(stored)]
        assert states.count(CaState.ACTIVE) == 1


def test_the_superseded_ca_issues_for_what_was_registered_before() -> None:
    superseded = NOW + HOUR
    known = authorities(FIRST, SECOND, stored=[stored_ca(1), stored_ca(2, activate_time=superseded)])
    old, new = known.known
    assert known.active is SECOND
    assert old.issues_for(NOW)
    assert old.issues_for(superseded + FRONT_LAG)  # by a front that had not noticed yet
    assert not old.issues_for(superseded + FRONT_LAG + timedelta(seconds=1))
    assert new.issues_for(NOW)
    announced = authorities(FIRST, SECOND, stored=[stored_ca(1), stored_ca(2)]).known[1]
    assert not announced.issues_for(NOW)
    retired = authorities(
        FIRST, SECOND, stored=[stored_ca(1, retire_time=superseded), stored_ca(2, activate_time=superseded)]
    ).known[0]
    assert not retired.issues_for(NOW)


async def test_a_proof_for_a_ca_that_another_front_has_activated_is_looked_up() -> None:
    known = authorities(FIRST, SECOND, stored=[stored_ca(1)])

    class Database:
        async def generations(self) -> list[object]:
            return [stored_ca(1), stored_ca(2, activate_time=NOW)]

    known._store = Database()  # type: ignore[assignment]
    found = await known.named(SECOND.ca_id)
    assert found is not None
    assert found.state is CaState.ACTIVE
    assert await known.named("unheard-of") is None


def test_a_retired_ca_is_not_trusted_and_publishes_until_its_end() -> None:
    known = authorities(FIRST, SECOND, stored=[stored_ca(1, retire_time=NOW), stored_ca(2, activate_time=NOW + HOUR)])
    assert [each.authority for each in known.trusted] == [SECOND]
    assert known.publishing(NOW) == (FIRST, SECOND)
    assert known.publishing(OLD.issuing.not_valid_after_utc) == ()


@pytest.mark.parametrize("generation", [2, 3, 12])
def test_every_generation_has_keys_and_places_of_its_own(generation: int) -> None:
    labels, first = KeyLabels.of(generation), KeyLabels.of(1)
    assert not {labels.ca, labels.response, labels.ocsp} & {first.ca, first.response, first.ocsp}
    assert Paths.of(generation).crl == f"/crl/issuing-{generation}.crl"
    assert Paths.of(1).crl == "/crl/issuing.crl"
    assert authority(NEW, generation).issuer.crl_url == f"http://ca.example/crl/issuing-{generation}.crl"
