"""Start, loss and recovery of a token: PINs, missing tokens, killed and hung workers, many processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import token as token_module
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.token import Token
from tests.token_fixtures import opened

pytestmark = [pytest.mark.token, pytest.mark.process]

MAKERS = pytest.mark.parametrize("make", [TokenClient.in_process, TokenClient.worker])
SPY = next(
    (
        place
        for place in map(Path, ("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so"))
        if place.exists()
    ),
    Path("/usr/lib/pkcs11-spy.so"),
)


def spied(config: TokenConfig, log: Path) -> TokenConfig:
    """The same token behind OpenSC's spy, which writes each PKCS#11 call into ``log``.

    A copy of its own: the spy opens its log once for all that load the same file.
    """
    module = Path(shutil.copy(SPY, log.with_suffix(".so")))
    environment = {**config.environment, "PKCS11SPY": str(config.module), "PKCS11SPY_OUTPUT": str(log)}
    return msgspec.structs.replace(config, module=module, environment=environment)


def calls(log: Path, function: str) -> int:
    """How often the function was called, by the spy's log."""
    return sum(line.endswith(f": {function}") for line in log.read_text().splitlines())


def reason(action: Callable[[], object]) -> Reason:
    with pytest.raises(NftrustError) as caught:
        action()
    return caught.value.reason


def start_error(make: Callable[[TokenConfig], TokenClient], config: TokenConfig) -> Reason:
    client = make(config)
    try:
        return reason(client.ready)
    finally:
        client.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def heals(client: TokenClient, operation: op.Operation[object]) -> None:
    """Wait until the operation succeeds; meanwhile nothing but TOKEN_UNAVAILABLE is said."""

    def works() -> bool:
        error = client.submit([operation]).exception(20)
        assert error is None or (isinstance(error, NftrustError) and error.reason is Reason.TOKEN_UNAVAILABLE)
        return error is None

    until(works)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@MAKERS
def test_a_wrong_pin_is_tried_exactly_once(
    make: Callable[[TokenConfig], TokenClient], any_token: TokenConfig, tmp_path: Path
) -> None:
    log = tmp_path / "spy.log"
    assert any_token.pin_file is not None
    pin = any_token.pin_file.read_bytes()
    any_token.pin_file.write_bytes(b"not the PIN")
    client = make(spied(any_token, log))
    try:
        assert reason(client.ready) is Reason.PIN_INCORRECT
        any_token.pin_file.write_bytes(pin)
        for _ in range(3):
            # Longer than the first pauses before another start.
            time.sleep(0.2)
            assert reason(lambda: client.call(op.ListKeys())) is Reason.TOKEN_UNAVAILABLE
            assert reason(client.ready) is Reason.PIN_INCORRECT
    finally:
        client.close()
    assert calls(log, "C_Login") == 1
    assert calls(log, "C_Finalize") <= 1
    # Started again by a person, with the right PIN, it works.
    with opened(make, any_token) as client:
        assert client.call(op.ListKeys()) == []


@MAKERS
def test_the_module_is_told_to_lock(
    make: Callable[[TokenConfig], TokenClient], any_token: TokenConfig, tmp_path: Path
) -> None:
    log = tmp_path / "spy.log"
    with opened(make, spied(any_token, log)):
        pass
    assert calls(log, "C_Login") == 1
    assert "CKF_OS_LOCKING_OK" in log.read_text() or "flags: 2" in log.read_text()


@MAKERS
def test_what_is_missing_is_named(
    make: Callable[[TokenConfig], TokenClient], fresh_token: TokenConfig, tmp_path: Path
) -> None:
    def changed(**fields: object) -> TokenConfig:
        return msgspec.structs.replace(fresh_token, **fields)

    (tmp_path / "text.so").write_text("not a library")
    assert start_error(make, changed(label="absent")) is Reason.TOKEN_MISSING
    assert start_error(make, changed(module=tmp_path / "absent.so")) is Reason.TOKEN_MISSING
    assert start_error(make, changed(module=tmp_path / "text.so")) is Reason.TOKEN_MISSING
    assert start_error(make, changed(lock_file=tmp_path / "no" / "lock")) is Reason.TOKEN_MISSING
    assert start_error(make, changed(pin_file=tmp_path / "absent")) is Reason.CONFIG_INVALID


@MAKERS
def test_a_token_that_comes_later_is_found(
    make: Callable[[TokenConfig], TokenClient], fresh_token: TokenConfig, tmp_path: Path
) -> None:
    tokens, away = tmp_path / "token" / "tokens", tmp_path / "away"
    tokens.rename(away)
    client = make(fresh_token)
    try:
        assert reason(client.ready) in {Reason.TOKEN_MISSING, Reason.TOKEN_UNAVAILABLE}
        assert not client.available
        away.rename(tokens)
        heals(client, op.ListKeys())
        assert client.available
    finally:
        client.close()


@MAKERS
def test_a_token_that_goes_and_comes_back_heals(
    make: Callable[[TokenConfig], TokenClient], fresh_token: TokenConfig, tmp_path: Path
) -> None:
    """Whatever is asked first of the token that is gone, the answer is TOKEN_UNAVAILABLE, never KEY_MISSING."""
    place = next((tmp_path / "token" / "tokens").iterdir())
    with opened(make, fresh_token) as client:
        client.call(op.GenerateSecret("kek", "kek"))
        client.call(op.GenerateSecret("mac", "mac"))
        client.call(op.GenerateKeyPair("signing", "ec-p256"))
        minted = client.call(op.MintIak("kek", None))
        mac = client.call(op.Mac("mac", b""))
        operations: list[op.Operation[object]] = [
            op.SignDigest("signing", "ecdsa", "sha256", bytes(32)),
            op.Mac("mac", b""),
            op.VerifyMac("mac", b"", mac),
            op.MintIak("kek", None),
            op.VerifyIakMac("kek", minted.vault_blob, b"", bytes(32)),
            op.PublicKey("signing"),
            op.ListKeys(),
        ]
        for warm in (True, False):
            for operation in operations:
                if warm:
                    client.call(operation)
                place.rename(tmp_path / "away")
                assert reason(lambda asked=operation: client.call(asked)) is Reason.TOKEN_UNAVAILABLE, operation  # type: ignore[misc]
                (tmp_path / "away").rename(place)
                heals(client, op.Mac("mac", b""))
        assert client.call(op.Mac("mac", b"")) == mac


def stopped_with(client: TokenClient, operation: op.Operation[object]) -> tuple[int, Future[object]]:
    """The worker, stopped, with the operation in flight."""
    pid = client.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    in_flight = client.submit([operation])
    until(in_flight.running)
    return pid, in_flight


@pytest.fixture
def signing_client(any_token: TokenConfig) -> Iterator[TokenClient]:
    with opened(TokenClient.worker, any_token) as client:
        client.call(op.GenerateKeyPair("signing", "ec-p256"))
        yield client


SIGN = op.SignDigest("signing", "ecdsa", "sha256", bytes(32))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_costs_what_was_in_flight_and_heals(
    signing_client: TokenClient, number: signal.Signals
) -> None:
    pid, in_flight = stopped_with(signing_client, SIGN)
    queued = [signing_client.submit([SIGN]) for _ in range(5)]
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    assert reason(lambda: in_flight.result(20)) is Reason.TOKEN_UNAVAILABLE
    assert all(len(future.result(20)[0]) == 64 for future in queued)
    assert signing_client.worker_pid != pid
    assert not alive(pid)


def test_a_worker_killed_in_the_middle_of_real_work_heals(signing_client: TokenClient) -> None:
    """While a key pair is being made, which takes a second and holds the token's lock."""
    made = signing_client.submit([op.GenerateKeyPair("rsa", "rsa-3072")])
    until(made.running)
    pid = signing_client.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert reason(lambda: made.result(20)) is Reason.TOKEN_UNAVAILABLE
    assert len(signing_client.call(SIGN)) == 64
    signing_client.call(op.GenerateKeyPair("rsa", "ec-p256"))


def test_a_hung_worker_is_killed(any_token: TokenConfig) -> None:
    client = TokenClient.worker(any_token, reply_limit=0.3)
    try:
        client.ready()
        client.call(op.GenerateSecret("mac", "mac"))
        pid, in_flight = stopped_with(client, op.Mac("mac", b""))
        assert reason(lambda: in_flight.result(20)) is Reason.TOKEN_UNAVAILABLE
        heals(client, op.Mac("mac", b""))
        assert client.worker_pid != pid
        assert not alive(pid)
    finally:
        client.close()


def test_a_worker_that_died_idle_is_replaced_before_anybody_notices(signing_client: TokenClient) -> None:
    for _ in range(3):
        pid = signing_client.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda gone=pid: not alive(gone))  # type: ignore[misc]
        assert len(signing_client.call(SIGN)) == 64


def test_a_worker_outlives_the_signals_of_a_drain(signing_client: TokenClient) -> None:
    pid = signing_client.worker_pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert len(signing_client.call(SIGN)) == 64
    assert signing_client.worker_pid == pid


PARENT = """
import sys, msgspec
from pathlib import Path
from softhsm import create_token
from nftrust.pkcs11.client import TokenClient
client = TokenClient.worker(create_token(Path(sys.argv[1]), "fresh"))
client.ready()
print(client.worker_pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_dies_with_its_parent(fresh_token: TokenConfig, tmp_path: Path, stopped: bool) -> None:
    """Also one that hangs in the module and reads no more."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "token")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        if stopped:
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
    until(lambda: not alive(worker))


def test_the_pin_is_in_no_argument_and_no_environment(signing_client: TokenClient, any_token: TokenConfig) -> None:
    assert any_token.pin_file is not None
    pin = any_token.pin_file.read_bytes().strip()
    process = Path(f"/proc/{signing_client.worker_pid}")
    assert pin not in (process / "cmdline").read_bytes()
    assert pin not in (process / "environ").read_bytes()


@MAKERS
def test_a_pin_from_a_pipe_serves_every_start(
    make: Callable[[TokenConfig], TokenClient], fresh_token: TokenConfig, tmp_path: Path
) -> None:
    assert fresh_token.pin_file is not None
    reader, writer = os.pipe()
    os.write(writer, fresh_token.pin_file.read_bytes())
    os.close(writer)
    place = next((tmp_path / "token" / "tokens").iterdir())
    with opened(make, msgspec.structs.replace(fresh_token, pin_file=None, pin_fd=reader)) as client:
        os.close(reader)
        client.call(op.GenerateSecret("mac", "mac"))
        place.rename(tmp_path / "away")
        assert reason(lambda: client.call(op.Mac("mac", b""))) is Reason.TOKEN_UNAVAILABLE
        (tmp_path / "away").rename(place)
        heals(client, op.Mac("mac", b""))


def test_many_processes_start_write_and_find_at_once(any_token: TokenConfig) -> None:
    """The storm in which SoftHSM 2.6.1 fails without the file lock: nothing fails, nothing is lost."""
    clients = [TokenClient.worker(any_token) for _ in range(6)]
    try:
        for client in clients:
            client.ready()
        futures = [
            [client.submit([op.GenerateSecret(f"key-{number}-{turn}", "mac")]) for turn in range(4)]
            + [client.submit([op.Mac(f"key-{number}-{turn}", b"x")]) for turn in range(4)]
            for number, client in enumerate(clients)
        ]
        for future in (future for each in futures for future in each):
            future.result(60)
        names = {key.label for key in clients[0].call(op.ListKeys())}
        assert names == {f"key-{number}-{turn}" for number in range(6) for turn in range(4)}
        # Each sees what another made, and what another destroyed.
        clients[5].call(op.Mac("key-0-0", b"x"))
        clients[0].call(op.DestroyKey("key-0-0"))
        assert reason(lambda: clients[5].call(op.Mac("key-0-0", b"x"))) is Reason.KEY_MISSING
        clients[3].call(op.GenerateSecret("key-0-0", "mac"))
        assert clients[5].call(op.Mac("key-0-0", b"x")) == clients[0].call(op.Mac("key-0-0", b"x"))
        assert all(client.available for client in clients)
    finally:
        for client in clients:
            client.close()


def test_one_label_is_won_by_one_process(any_token: TokenConfig) -> None:
    clients = [TokenClient.worker(any_token) for _ in range(4)]
    try:
        for client in clients:
            client.ready()
        futures = [client.submit([op.GenerateKeyPair("ca", "ec-p256")]) for client in clients]
        outcomes = [future.exception(30) for future in futures]
        assert [error.reason for error in outcomes if isinstance(error, NftrustError)] == [Reason.KEY_EXISTS] * 3
        assert outcomes.count(None) == 1
    finally:
        for client in clients:
            client.close()


def test_a_worn_module_is_started_anew_between_batches(
    fresh_token: TokenConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_module, "WORN_AFTER_OBJECTS", 10)
    log = tmp_path / "spy.log"
    with opened(TokenClient.in_process, spied(fresh_token, log)) as client:
        client.call(op.GenerateSecret("kek", "kek"))
        for _ in range(20):
            client.call(op.MintIak("kek", None))
    assert calls(log, "C_Initialize") >= 3


def test_a_token_belongs_to_its_thread_and_its_module_to_one_token(any_token: TokenConfig) -> None:
    token = Token.open(any_token)
    try:
        assert reason(lambda: Token.open(any_token)) is Reason.TOKEN_UNAVAILABLE
        errors: list[BaseException] = []

        def use() -> None:
            try:
                token.execute(op.ListKeys())
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert token.execute(op.ListKeys()) == []
    finally:
        token.close()
    Token.open(any_token).close()
