"""A token that fails in every way a module can: callers hear TOKEN_UNAVAILABLE, and it heals without a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.client import TokenClient
from tests.contract.test_pkcs11_life import heals, reason, until
from tests.shim_kit import CRASH, FAULTS, HANG, PIN_CHANGED, Fault, Shim
from tests.token_fixtures import opened

pytestmark = [pytest.mark.token, pytest.mark.process]

MAKERS = pytest.mark.parametrize("make", [TokenClient.in_process, TokenClient.worker])
MAC = op.Mac("key", b"data")


@pytest.fixture
def shim(fresh_token: TokenConfig, tmp_path: Path) -> Shim:
    return Shim(fresh_token, tmp_path / "shim")


CASES = [
    pytest.param(make, fault, id=f"{fault.name}-{make.__name__}")
    for make in (TokenClient.in_process, TokenClient.worker)
    for fault in FAULTS
    # A module that crashes in the NF agent's process ends it: see tests/e2e/test_token_faults.py.
    if not (fault is CRASH and make == TokenClient.in_process)
]


@pytest.mark.parametrize(("make", "fault"), CASES)
def test_a_fault_is_an_outage_and_no_more(make: Callable[[TokenConfig], TokenClient], fault: Fault, shim: Shim) -> None:
    with opened(make, shim.config) as client:
        client.call(op.GenerateSecret("key", "mac"))
        before = client.call(MAC)
        with shim.failing(fault):
            pending = [client.submit([MAC]) for _ in range(5)]
            if fault is HANG:
                until(lambda: not client.available)
            else:
                for future in pending:
                    error = future.exception(20)
                    assert isinstance(error, NftrustError)
                    assert error.reason is Reason.TOKEN_UNAVAILABLE
        heals(client, MAC)
        assert client.call(MAC) == before
        until(lambda: client.available)


@MAKERS
def test_a_pin_that_is_refused_after_an_outage_is_tried_once(
    make: Callable[[TokenConfig], TokenClient], shim: Shim
) -> None:
    with opened(make, shim.config) as client:
        client.call(op.GenerateSecret("key", "mac"))
        before = shim.logins
        with shim.failing(PIN_CHANGED):
            reason(lambda: client.call(MAC))
            until(lambda: shim.logins > before)
            for _ in range(5):
                time.sleep(0.2)  # longer than the first pauses before another start
                assert reason(lambda: client.call(MAC)) is Reason.TOKEN_UNAVAILABLE
        assert shim.logins == before + 1


@MAKERS
def test_nobody_queues_behind_a_token_that_hangs(make: Callable[[TokenConfig], TokenClient], shim: Shim) -> None:
    """Callers hear UNAVAILABLE at once, rather than run into their deadlines."""
    with opened(make, shim.config) as client:
        client.call(op.GenerateSecret("key", "mac"))
        with shim.failing(HANG):
            stuck = client.submit([MAC])
            until(lambda: not client.available)
            refused = client.submit([MAC])
            assert refused.done()
            error = refused.exception()
            assert isinstance(error, NftrustError)
            assert (error.reason, error.retry_after) == (Reason.TOKEN_UNAVAILABLE, 1.0)
            assert not stuck.done()
        assert len(stuck.result(20)[0]) == 32
        heals(client, MAC)


def test_a_token_that_goes_on_hanging_costs_its_callers_a_refusal_each(shim: Shim) -> None:
    """The worker is killed, and the next one hangs at its login."""
    client = TokenClient.worker(shim.config, reply_limit=0.3)
    try:
        client.ready()
        client.call(op.GenerateSecret("key", "mac"))
        first = client.worker_pid
        with shim.failing(HANG):
            in_flight = client.submit([MAC])
            until(in_flight.running)
            queued = client.submit([MAC])
            until(lambda: client.worker_pid not in (first, None))
            for future in (in_flight, queued, client.submit([MAC])):
                assert reason(lambda asked=future: asked.result(20)) is Reason.TOKEN_UNAVAILABLE  # type: ignore[misc]
        heals(client, MAC)
    finally:
        client.close()


def test_a_client_closes_while_its_token_hangs(shim: Shim) -> None:
    client = TokenClient.worker(shim.config)
    client.ready()
    client.call(op.GenerateSecret("key", "mac"))
    with shim.failing(HANG):
        pending = client.submit([MAC])
        until(pending.running)
        closing = threading.Thread(target=client.close)
        closing.start()
        closing.join(30)
        assert not closing.is_alive(), "long before the hanging worker would be given up"
        assert client.worker_pid is None
        assert isinstance(pending.exception(1), NftrustError)
