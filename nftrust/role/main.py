"""The command line that all server roles have: run, migrate, and what a role adds.

<role> run --config FILE        the supervisor and its fronts
<role> migrate --config FILE    create the database or bring it up to date
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from nftrust import logs
from nftrust.clock import SystemClock
from nftrust.config import LogConfig, ProbeConfig, Section, StoreConfig, TokenConfig, load
from nftrust.errors import NftrustError
from nftrust.files import write_atomically
from nftrust.pkcs11.pin import hold_pin
from nftrust.process.front import EX_CONFIG, Front, run_front
from nftrust.process.supervisor import Supervisor
from nftrust.role.health import Served, watched
from nftrust.role.metrics_files import forget_gauges, metrics_files
from nftrust.role.probe import probed
from nftrust.storage import Store, Transaction
from nftrust.storage.meta import set_high_water
from nftrust.storage.migrate import upgrade

C = TypeVar("C", bound=Section)
Handler = Callable[[Any, argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand that only one role has. ``arguments`` are (flag, add_argument keywords)."""

    name: str
    help: str
    handler: Handler
    arguments: Sequence[tuple[str, dict[str, Any]]] = ()


@dataclass(frozen=True, slots=True)
class Role(Generic[C]):
    """A server role as its ``__main__`` declares it."""

    #: The Python package, and the command's name.
    package: str
    command: str
    config_type: type[C]
    #: ``serving(config, reuse_port=…)``: the composition root.
    serving: Callable[..., AbstractAsyncContextManager[Served]]
    #: ``host:port`` of every listener.
    addresses: Callable[[C], Sequence[str]]
    commands: Sequence[Command] = ()

    def main(self, argv: Sequence[str] | None = None) -> int:
        """0: done; 2: wrong usage; 78: cannot start, the one line on standard error says why."""
        arguments = self._parser().parse_args(argv)
        try:
            config = load(self.config_type, arguments.config)
            log: LogConfig = config.log  # type: ignore[attr-defined]
            logs.configure(log)
            code: int = arguments.handler(config, arguments)
            return code
        except NftrustError as error:
            print(f"{self.command}: {error.reason.name}: {error.message} {error.reason.remedy}", file=sys.stderr)  # noqa: T201
            return EX_CONFIG

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=self.command)
        subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
        ready = ("--ready-file", {"type": Path, "help": "written once every front serves"})
        control = ("--control-fd", {"type": int, "required": True, "help": "given by the supervisor"})
        for command in (
            Command("run", "serve until SIGTERM", self._run, [ready]),
            Command("front", "one front; started by `run`", self._front, [control]),
            Command("migrate", "create the database or bring it up to date", self._migrate),
            Command("accept-clock", "after CLOCK_UNTRUSTED: the clock is right (role stopped)", self._accept_clock),
            *self.commands,
        ):
            added = subparsers.add_parser(command.name, help=command.help, description=command.help)
            added.add_argument("--config", type=Path, required=True, help="TOML file (docs/configuration.md)")
            for flag, keywords in command.arguments:
                added.add_argument(flag, **keywords)
            added.set_defaults(handler=command.handler)
        return parser

    def _run(self, config: C, arguments: argparse.Namespace) -> int:
        def on_ready() -> None:
            if arguments.ready_file is not None:
                write_atomically(arguments.ready_file, b"{}\n", 0o644)

        command = [sys.executable, "-m", self.package, "front", "--config", str(arguments.config.resolve())]
        fronts: int = config.fronts  # type: ignore[attr-defined]
        probe = _probe(config)
        addresses = [*self.addresses(config), *([] if probe is None else [probe.address])]
        with metrics_files(self.command, fronts) as folder:
            supervisor = Supervisor(
                command,
                addresses,
                fronts=fronts,
                pass_fds=_inherited_pin(config),
                on_ready=on_ready,
                on_ended=partial(forget_gauges, folder),
            )
            return supervisor.run()

    def _front(self, config: C, arguments: argparse.Namespace) -> int:
        async def serve(front: Front) -> None:
            actor = f"urn:nftrust:{self.command}"
            async with (
                self.serving(config, reuse_port=True) as served,
                watched(served, front, actor) as watch,
                probed(_probe(config), lambda: ["draining"] if front.stop.is_set() else watch.missing()),
            ):
                front.ready()
                await front.stop.wait()

        return run_front(arguments.control_fd, serve)

    def _migrate(self, config: C, arguments: argparse.Namespace) -> int:
        store: StoreConfig = config.store  # type: ignore[attr-defined]
        upgrade(store, self.package)
        return 0

    def _accept_clock(self, config: C, arguments: argparse.Namespace) -> int:
        """Lower the high-water mark to the present time (security rule 22); it is audited."""

        def work(tx: Transaction) -> None:
            set_high_water(tx, tx.now)
            tx.audit(actor=f"urn:nftrust:{self.command}", action="clock.accept", subject="clock")

        async def write() -> None:
            store = Store.open(config.store, SystemClock())  # type: ignore[attr-defined]
            try:
                await store.write(work)
            finally:
                store.close()

        asyncio.run(write())
        return 0


def _probe(config: Section) -> ProbeConfig | None:
    probe: ProbeConfig | None = config.probe  # type: ignore[attr-defined]
    return probe


def _inherited_pin(config: Section) -> tuple[int, ...]:
    """A PIN given by descriptor, held so that every front can read it under the same number."""
    token: TokenConfig | None = getattr(config, "token", None)
    if token is None or token.pin_fd is None:
        return ()
    held = hold_pin(token).pin_fd
    assert held is not None
    os.dup2(held, token.pin_fd, inheritable=True)
    os.close(held)
    return (token.pin_fd,)
