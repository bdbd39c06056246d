"""The command `nf-agent`."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from nf_agent.agent import NfAgent
from nf_agent.config import AgentConfig
from nf_agent.initialise import initialise
from nf_agent.renewal import InUse, next_renewal
from nf_agent.state import AgentState, Attempt, StateStore
from nf_agent.validity import Condition, condition_of
from nftrust import logs
from nftrust.errors import NftrustError
from nftrust.files import write_atomically
from nftrust.pkcs11.uri import key_uri

EX_CONFIG = 78


def main(argv: list[str] | None = None) -> int:
    """0: done; 1: `status`, and no certificate is valid; 2: wrong usage; 78: cannot start, standard error says why."""
    arguments = _parser().parse_args(argv)
    try:
        config = AgentConfig.from_file(arguments.config)
        logs.configure(config.log)
        code: int = arguments.run(config, arguments)
        return code
    except NftrustError as error:
        print(f"nf-agent: {error.reason.name}: {error.message} {error.reason.remedy}", file=sys.stderr)
        return EX_CONFIG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nf-agent", description="Gives a 5G network function its certificate.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("init", _init, "make the keys of a new NF instance and the request for its day-0 certificate"),
        ("run", _run, "serve the CM proxy and enrol"),
        ("status", _status, "print the stored state; exit status 1 unless a certificate is valid"),
        ("rearm", _rearm, "accept another delivery although a certificate is held (agent stopped)"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="TOML file (docs/configuration.md)")
        command.set_defaults(run=run)
        if run is _run:
            command.add_argument("--ready-file", type=Path, help="written once the agent serves")
    return parser


def _init(config: AgentConfig, arguments: argparse.Namespace) -> int:
    made = initialise(config)
    print(f"NF instance id        {config.nf_instance_id}")
    print(f"transport key SHA-256 {made.transport_key_sha256.hex()}")
    print(f"day-0 request         {made.day0_csr}")
    return 0


def _run(config: AgentConfig, arguments: argparse.Namespace) -> int:
    # The token's module is in this process: a core dump would hold the PIN and the module's keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return asyncio.run(_serve(config, arguments.ready_file))


async def _serve(config: AgentConfig, ready_file: Path | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with NfAgent.open(config):
        if ready_file is not None:
            write_atomically(ready_file, b"{}\n", 0o644)
        await stop.wait()
    return 0


def _status(config: AgentConfig, arguments: argparse.Namespace) -> int:
    """Of the stored state, so that it tells the truth of an agent that is dead, too."""
    state = StateStore.open(config.state_dir, config.nf_instance_id).state
    print(f"phase        {state.phase} {state.reason}".rstrip())
    if state.attempt is not None:
        print(f"registration {state.attempt.registration}")
    condition = condition_of(state)
    print(f"certificate  {condition.value}")
    if state.current is not None:
        _print_certificate(state, state.current, config)
    valid = condition in (Condition.VALID, Condition.EXPIRING)
    return 0 if valid or state.phase == "delivered" else 1


def _print_certificate(state: AgentState, current: Attempt, config: AgentConfig) -> None:
    used = InUse.of(current)
    print(f"serial       {used.certificate.serial_number:x}")
    print(f"key          {key_uri(config.token, current.key_label)}")
    print(f"valid until  {used.certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}")
    due = next_renewal(state, config.renewal.policy)
    assert due is not None
    print(f"renewal      {datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M:%SZ}")
    if state.renewal.failures or state.renewal.reason:
        print(f"failed       {state.renewal.failures} times, {state.renewal.reason}")


def _rearm(config: AgentConfig, arguments: argparse.Namespace) -> int:
    StateStore.open(config.state_dir, config.nf_instance_id).rearm()
    return 0


if __name__ == "__main__":
    sys.exit(main())
