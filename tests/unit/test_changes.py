"""What watchers of an enrolment are told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from cmproxy.changes import Changes
from cmproxy.model import Enrolment, State
from nftrust.errors import NftrustError, Reason
from tests.unit.support import ENROLMENT, NF_ID, NOW

AT_ONCE = timedelta(0)
FIRST = Enrolment(
    id=ENROLMENT,
    nf_instance_id=NF_ID,
    tenant="default",
    state=State.ATTESTING,
    working=State.ATTESTING,
    allow_re_enrolment=False,
    create_time=NOW,
    update_time=NOW,
    next_time=NOW,
)
SECOND, THIRD = replace(FIRST, revision=1), replace(FIRST, revision=2)


async def test_a_watcher_gets_the_newest_state_and_never_an_older_one() -> None:
    changes = Changes()
    with changes.watch(ENROLMENT) as feed:
        changes.publish(THIRD)  # before it has read the present state
        feed.put(SECOND)
        assert await feed.next() == THIRD
        changes.publish(THIRD)
        waiting = asyncio.create_task(feed.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        changes.publish(replace(THIRD, revision=3))
        assert (await waiting).revision == 3


async def test_all_watchers_are_told_and_nobody_is_kept_afterwards() -> None:
    changes = Changes()
    with changes.watch(ENROLMENT) as one, changes.watch(ENROLMENT) as other:
        changes.publish(FIRST)
        assert await one.next() == await other.next() == FIRST
    assert not changes._feeds
    changes.publish(SECOND)


async def test_what_others_commit_is_found_by_asking() -> None:
    changes, asked = Changes(), []

    async def newer(known: Mapping[str, int]) -> list[Enrolment]:
        asked.append(dict(known))
        return [THIRD] if known[ENROLMENT] < THIRD.revision else []

    with changes.watch(ENROLMENT) as feed:
        feed.put(FIRST)
        assert await feed.next() == FIRST
        following = asyncio.create_task(changes.follow(newer, AT_ONCE))
        assert await asyncio.wait_for(feed.next(), 30) == THIRD
    following.cancel()
    assert asked[0] == {ENROLMENT: 0}


async def test_a_database_that_is_away_ends_the_watch_and_not_the_following() -> None:
    changes, away = Changes(), True

    async def newer(known: Mapping[str, int]) -> list[Enrolment]:
        if away:
            raise NftrustError(Reason.STORAGE_UNAVAILABLE)
        return [SECOND]

    following = asyncio.create_task(changes.follow(newer, AT_ONCE))
    with changes.watch(ENROLMENT) as feed, pytest.raises(NftrustError) as caught:
        await asyncio.wait_for(feed.next(), 30)
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    away = False
    with changes.watch(ENROLMENT) as feed:
        assert await asyncio.wait_for(feed.next(), 30) == SECOND
    following.cancel()
