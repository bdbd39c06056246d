"""`ca-ra rollover`: what a person does to replace the issuing CA (docs/rollover.md).

The CA/RA goes on serving: its fronts see in the database what has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from ca_ra.app import load_authority
from ca_ra.authority import Authorities, KnownCa
from ca_ra.authority_store import SqlAuthorityStore, next_generation
from ca_ra.config import CaRaConfig
from ca_ra.initialise import Hierarchy, import_successor, make_successor, write_issuing_csr
from nftrust.clock import GuardedClock, SystemClock
from nftrust.config import TokenConfig, load
from nftrust.errors import NftrustError, Reason
from nftrust.files import read_file
from nftrust.role.main import Command
from nftrust.storage import Store
from nftrust.storage.migrate import verify
from nftrust.x509.path import pem_chain

T = TypeVar("T")
DEFAULT_LEAD_HOURS = 72.0
MAX_LEAD_HOURS = 24.0 * 365


def _run(config: CaRaConfig, arguments: argparse.Namespace) -> int:
    verify(config.store, "ca_ra")
    _ACTIONS[arguments.action](config, arguments)
    return 0


def _with_store(config: CaRaConfig, work: Callable[[SqlAuthorityStore], Awaitable[T]]) -> T:
    async def run() -> T:
        store = Store.open(config.store, GuardedClock(SystemClock()))
        try:
            return await work(SqlAuthorityStore(store))
        finally:
            await asyncio.to_thread(store.close)

    return asyncio.run(run())


def _known(config: CaRaConfig) -> Authorities:
    async def look(store: SqlAuthorityStore) -> Authorities:
        authorities = Authorities(store, partial(load_authority, config))
        await authorities.refresh()
        return authorities

    return _with_store(config, look)


def _next(authorities: Authorities) -> int:
    return next_generation([known.stored for known in authorities.known])


def _request(config: CaRaConfig, arguments: argparse.Namespace) -> None:
    if arguments.csr is None:
        raise NftrustError(Reason.CONFIG_INVALID, "give --csr: where the request is to be written")
    write_issuing_csr(config, arguments.csr, arguments.key_type, _next(_known(config)))


def _announce(config: CaRaConfig, arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.lead_hours <= MAX_LEAD_HOURS:
        raise NftrustError(Reason.CONFIG_INVALID, f"--lead-hours: 0 to {MAX_LEAD_HOURS:.0f}")
    authorities = _known(config)
    generation = _next(authorities)
    made = _successor(config, arguments, authorities, generation)
    chain, response = pem_chain(made.chain).decode(), pem_chain([made.response_certificate]).decode()
    lead = timedelta(hours=arguments.lead_hours)
    new = _with_store(config, lambda store: store.announce(generation, chain, response, lead))
    _say(f"CA {generation} is announced; it may be activated from {_time(new.activate_after)} on")


def _successor(
    config: CaRaConfig, arguments: argparse.Namespace, authorities: Authorities, generation: int
) -> Hierarchy:
    now = datetime.now(UTC)
    if (arguments.chain is None) == (arguments.root_token is None):
        raise NftrustError(
            Reason.CONFIG_INVALID, "give --root-token for a root of our own, or --chain from an external root"
        )
    if arguments.chain is not None:
        try:
            chain = x509.load_pem_x509_certificates(read_file(arguments.chain))
        except ValueError:
            raise NftrustError(Reason.CONFIG_INVALID, f"{arguments.chain}: not PEM certificates") from None
        subjects = [known.authority.chain[0].subject for known in authorities.known]
        return import_successor(config, generation, chain, now, subjects)
    root = None if arguments.new_root else authorities.active.chain[-1]
    token = load(TokenConfig, arguments.root_token)
    return make_successor(config, token, generation, root, now, arguments.key_type)


def _activate(config: CaRaConfig, arguments: argparse.Namespace) -> None:
    generation = _with_store(config, lambda store: store.activate(force=arguments.force))
    _say(f"CA {generation} is active")


def _retire(config: CaRaConfig, arguments: argparse.Namespace) -> None:
    if arguments.generation is None:
        raise NftrustError(Reason.CONFIG_INVALID, "give --generation")
    _with_store(config, lambda store: store.retire(arguments.generation))
    _say(f"CA {arguments.generation} is retired")


def _status(config: CaRaConfig, arguments: argparse.Namespace) -> None:
    for known in _known(config).known:
        _say(f"{known.authority.generation}  {known.state.value:<10}  {_remark(known)}")


def _remark(known: KnownCa) -> str:
    certificate, stored = known.authority.chain[0], known.stored
    times = [
        ("announced", stored.announce_time if known.authority.generation > 1 else None),
        ("may be activated from", stored.activate_after if stored.activate_time is None else None),
        ("activated", stored.activate_time if known.authority.generation > 1 else None),
        ("superseded", known.supersede_time),
        ("retired", stored.retire_time),
        ("ends", certificate.not_valid_after_utc),
    ]
    told = "; ".join(f"{name} {_time(time)}" for name, time in times if time is not None)
    return f"{certificate.subject.rfc4514_string()}: {told}"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%SZ}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


_ACTIONS: dict[str, Callable[[CaRaConfig, argparse.Namespace], None]] = {
    "status": _status,
    "request": _request,
    "announce": _announce,
    "activate": _activate,
    "retire": _retire,
}
COMMAND = Command(
    "rollover",
    "replace the issuing CA: announce a new one, activate it, retire the old one (docs/rollover.md)",
    _run,
    [
        ("action", {"choices": list(_ACTIONS)}),
        ("--csr", {"type": Path, "help": "request: write the new CA's request for an external root here"}),
        ("--chain", {"type": Path, "help": "announce: what that root issued, PEM: issuing CA first, root last"}),
        ("--root-token", {"type": Path, "help": "announce: TOML file of the token of a root of our own"}),
        ("--new-root", {"action": "store_true", "help": "announce: under a new root, made in that token"}),
        ("--key-type", {"choices": ["ec-p256", "ec-p384"], "default": "ec-p256", "help": "of the new CA's keys"}),
        (
            "--lead-hours",
            {"type": float, "default": DEFAULT_LEAD_HOURS, "help": "announce: how long NFs have to learn of it"},
        ),
        ("--force", {"action": "store_true", "help": "activate: before the end of the lead time"}),
        ("--generation", {"type": int, "help": "retire: which one"}),
    ],
)
