"""When certificates are renewed: the window, its spread, and the back-off."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nf_agent import AgentConfig
from nf_agent.schedule import RenewalPolicy, Validity, draw_of, renewal_time, retry_delay
from nftrust.errors import NftrustError, Reason

DAY = 86400.0
VALIDITY = Validity(1_000_000.0, 1_000_000.0 + 90 * DAY)
POLICY = RenewalPolicy()


@pytest.mark.parametrize("nf_type", ["AMF", "NRF", "SMF", "UDM", "5G_EIR"])
def test_a_renewal_falls_into_the_window(nf_type: str) -> None:
    opening = VALIDITY.not_before + POLICY.earliest * VALIDITY.seconds
    closing = VALIDITY.not_before + POLICY.latest * VALIDITY.seconds
    for draw in (0.0, 0.5, 1 - 2**-53):
        assert opening <= renewal_time(VALIDITY, nf_type, draw, POLICY) <= closing


def test_every_outage_shorter_than_a_third_of_the_validity_leaves_time() -> None:
    closing = VALIDITY.not_before + POLICY.latest * VALIDITY.seconds
    assert VALIDITY.left(closing) > VALIDITY.seconds / 3


def test_the_windows_of_nf_types_differ() -> None:
    types = ["AMF", "SMF", "NRF", "UDM", "AUSF", "PCF"]
    assert len({renewal_time(VALIDITY, nf_type, 0.5, POLICY) for nf_type in types}) == len(types)


def test_a_fleet_of_one_type_that_was_enrolled_at_one_instant_is_spread() -> None:
    """At most twice the mean, in each day, with every certificate renewed at the same rate from then on."""
    source = random.Random(4)
    times = [renewal_time(VALIDITY, "AMF", source.random(), POLICY) for _ in range(9000)]
    days = [int((time - VALIDITY.not_before) // DAY) for time in times]
    mean_interval = sum(times) / len(times) - VALIDITY.not_before
    assert max(days.count(day) for day in set(days)) < 2 * len(times) * DAY / mean_interval


def test_the_draw_of_a_certificate_is_its_own_and_stays() -> None:
    draws = {draw_of(bytes([number]) * 32) for number in range(256)}
    assert len(draws) == 256
    assert min(draws) >= 0
    assert max(draws) < 1
    assert draw_of(bytes(range(32))) == draw_of(bytes(range(32)))


def test_the_wait_grows_is_drawn_from_zero_on_and_has_a_ceiling() -> None:
    left = 30 * DAY
    longest = [retry_delay(left, failures, 1 - 2**-53, POLICY) for failures in range(1, 40)]
    assert longest[0] == pytest.approx(POLICY.retry_seconds)
    assert longest == sorted(longest)
    assert longest[-1] == pytest.approx(POLICY.retry_share * left)
    assert retry_delay(left, 12, 0.0, POLICY) == 0


def test_no_wait_reaches_the_end_of_the_certificate() -> None:
    source = random.Random(7)
    for _ in range(200):
        left = source.uniform(1, 60 * DAY)
        for failures in range(1, 60):
            delay = retry_delay(left, failures, source.random(), POLICY, at_least=source.choice([0.0, 5.0, 1e9]))
            assert 0 <= delay < left
            left -= delay


def test_the_ca_ra_may_ask_for_patience() -> None:
    assert retry_delay(30 * DAY, 6, 0.0, POLICY, at_least=5.0) == 5.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"earliest": 0.0}, "earliest"),
        ({"earliest": -0.2}, "earliest"),
        ({"earliest": 1.0}, "earliest"),
        ({"latest": 1.0}, "latest"),
        ({"latest": 1.5}, "latest"),
        ({"earliest": 0.7, "latest": 0.6}, "latest"),
        ({"earliest": 0.5, "latest": 0.5}, "latest"),
        ({"retry_seconds": 0.0}, "retry_seconds"),
        ({"retry_share": 1.0}, "retry_share"),
        ({"retry_share": 0.0}, "retry_share"),
        ({"earliest": float("nan")}, "earliest"),
        ({"latest": float("nan")}, "latest"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        RenewalPolicy(**changes)


@pytest.mark.parametrize("key", ["earliest", "latest", "retry_seconds", "retry_share"])
def test_an_agent_with_impossible_settings_does_not_start(tmp_path: Path, key: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'nf_instance_id = "11111111-1111-4111-8111-111111111111"\nstate_dir = "s"\n'
        'token = {module = "m", label = "l", pin_file = "p"}\n'
        'listener = {address = "127.0.0.1:1", tls = {certificate = "c", private_key = "k", client_ca = "a"}}\n'
        f"renewal = {{{key} = -1.0}}\n"
    )
    with pytest.raises(NftrustError, match=key) as refusal:
        AgentConfig.from_file(path)
    assert refusal.value.reason is Reason.CONFIG_INVALID
