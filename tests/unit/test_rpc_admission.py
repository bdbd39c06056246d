"""What one peer, and all together, may have in progress."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from nftrust.errors import NftrustError, Reason
from nftrust.rpc.admission import Admission, Limits
from nftrust.rpc.peer import Peer

OAM = Peer("oam", "lab", "urn:nftrust:oam:lab", address="192.0.2.1")
STRANGER = Peer(address="192.0.2.1")
OTHER = Peer(address="192.0.2.2")
LIMITS = Limits(calls=5, calls_per_peer=3, streams_per_peer=2, rate_per_peer=4.0)


def refusal(admission: Admission, peer: Peer) -> Reason:
    with pytest.raises(NftrustError) as caught, admission.admitted(peer):
        pass
    assert caught.value.retry_after
    return caught.value.reason


def test_a_peer_has_its_share_and_leaves_the_others_theirs() -> None:
    admission = Admission(LIMITS)
    with ExitStack() as stack:
        for _ in range(LIMITS.calls_per_peer):
            stack.enter_context(admission.admitted(STRANGER))
        assert refusal(admission, STRANGER) is Reason.RATE_LIMITED
        stack.enter_context(admission.admitted(OTHER))
        with admission.admitted(OAM):  # a name of its own, whatever its address
            assert refusal(admission, OTHER) is Reason.OVERLOADED
        stack.enter_context(admission.admitted(OTHER))
    with admission.admitted(STRANGER):
        pass


def test_calls_a_second() -> None:
    admission = Admission(LIMITS)
    for _ in range(8):  # two seconds' worth
        with admission.admitted(OTHER):
            pass
    assert refusal(admission, OTHER) is Reason.RATE_LIMITED
    with admission.admitted(STRANGER):
        pass


def test_streams_have_a_bound_of_their_own() -> None:
    admission = Admission(LIMITS)
    with admission.streaming(OAM), admission.streaming(OAM):
        with pytest.raises(NftrustError) as caught, admission.streaming(OAM):
            pass
        assert caught.value.reason is Reason.RATE_LIMITED
        with admission.streaming(OTHER):
            pass
    with admission.streaming(OAM):
        pass


def test_one_network_is_one_peer() -> None:
    admission = Admission(Limits(calls_per_peer=1))
    with admission.admitted(Peer(address="2001:db8::1")):
        assert refusal(admission, Peer(address="2001:db8::2")) is Reason.RATE_LIMITED
        with admission.admitted(Peer(address="2001:db8:0:1::1")):
            pass


def test_nothing_is_kept_of_peers_that_have_gone() -> None:
    admission = Admission(Limits())
    for number in range(100):
        peer = Peer(address=f"192.0.2.{number}")
        with admission.admitted(peer), admission.streaming(peer):
            pass
    assert not admission._calls
    assert not admission._streams
    assert admission._total == 0


def test_a_refused_call_counts_for_nothing() -> None:
    admission = Admission(Limits(calls=1))
    with admission.admitted(OAM):
        for _ in range(3):
            refusal(admission, OTHER)
    with admission.admitted(OTHER):
        pass


async def half_sent(admission: Admission, peer: Peer) -> str:
    """A call whose request never comes."""
    try:
        with admission.admitted(peer):
            async with asyncio.timeout(60) as scope:
                with admission.receiving(peer, scope):
                    await asyncio.Event().wait()
    except TimeoutError:
        return "gave way"
    raise AssertionError


async def started(admission: Admission, peer: Peer, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(half_sent(admission, peer)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_requests_that_do_not_come_give_way_the_oldest_first() -> None:
    admission = Admission(LIMITS)
    tasks = await started(admission, STRANGER, LIMITS.calls_per_peer)
    with admission.admitted(STRANGER):
        assert await tasks[0] == "gave way"
        assert not any(task.done() for task in tasks[1:])
        with admission.admitted(STRANGER):
            assert await tasks[1] == "gave way"
            with admission.admitted(STRANGER):
                assert await tasks[2] == "gave way"
                # Calls that are being served do not give way.
                assert refusal(admission, STRANGER) is Reason.RATE_LIMITED
    assert not admission._receiving
    assert not admission._calls


async def test_where_all_places_are_taken_who_waits_most_gives_way() -> None:
    admission = Admission(LIMITS)
    few = await started(admission, OTHER, 2)
    most = await started(admission, STRANGER, 3)
    with admission.admitted(OAM):
        assert await most[0] == "gave way"
        assert not any(task.done() for task in few)
    for task in (*few, *most):
        task.cancel()
    await asyncio.gather(*few, *most, return_exceptions=True)
    assert not admission._receiving
    assert admission._total == 0
