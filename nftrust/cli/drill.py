"""`nftrust drill reissue`: every network function gets a new certificate.

What is left is what the CA/RA says: NFs whose newest certificate is not newer
than the newest one of all at the drill's start. So a drill that was
interrupted goes on where it was, and nothing is renewed twice. Only that mark
is kept, beside the operator's configuration; it is of the CA/RA's clock.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import click
import grpc
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nftrust.api.ca_ra.v1 import certificate_service_pb2 as certificate_pb
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.cmproxy.v1.provisioning_service_pb2_grpc import ProvisioningServiceStub
from nftrust.cli.certificates import certificates
from nftrust.cli.network_functions import OUTPUT, all_network_functions
from nftrust.cli.output import emit_json, emit_table
from nftrust.cli.session import RENEWAL_SECONDS, Session, refusal
from nftrust.errors import NftrustError, Reason
from nftrust.files import write_atomically

EXIT_LEFT, EXIT_INTERRUPTED = 3, 130
STATE_FILE = "drill-reissue.json"
#: How often a line is printed where there is no terminal.
PLAIN_SECONDS = 2.0
_SHOWN = 20


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a drill remembers: when the last certificate before it was issued, microseconds since 1970."""

    last_before: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which NFs a drill has to do with."""

    #: Names of network functions whose certificate is of before the drill.
    due: tuple[str, ...]
    #: How many have a newer one.
    done: int
    #: In service, but without a certificate of this CA/RA that could be renewed.
    without: tuple[str, ...]


def plan(nfs: Iterable[pb.NetworkFunction], issued: Iterable[certificate_pb.Certificate], mark: Mark) -> Plan:
    """``issued``: those that are not revoked, the newest first."""
    newest: dict[str, certificate_pb.Certificate] = {}
    for certificate in issued:
        if certificate.HasField("confirm_time"):
            newest.setdefault(certificate.nf_instance_id, certificate)
    due, without, done = [], [], 0
    for nf in nfs:
        if nf.state in (pb.NetworkFunction.RETIRING, pb.NetworkFunction.RETIRED):
            continue
        held = newest.get(nf.nf_instance_id)
        if held is None:
            without.append(nf.name)
        elif held.create_time.ToMicroseconds() > mark.last_before:
            done += 1
        else:
            due.append(nf.name)
    return Plan(tuple(due), done, tuple(without))


@dataclass
class Tally:
    """What has come of it so far."""

    total: int
    #: Reissued, by this run and by those before it.
    done: int
    #: Seconds that each renewal of this run took.
    seconds: list[float] = field(default_factory=list)
    #: Why an NF is left, by its name.
    failed: dict[str, NftrustError] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def rate(self) -> float:
        """Certificates a second, in this run."""
        return len(self.seconds) / max(time.monotonic() - self.started, 1e-9)

    def percentile(self, share: float) -> float:
        """Of the seconds, by nearest rank; 0 before the first."""
        ranked = sorted(self.seconds)
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0

    def line(self) -> str:
        figures = f"{self.rate:.1f}/s, p50 {self.percentile(0.5):.2f} s, p99 {self.percentile(0.99):.2f} s"
        return f"{self.done} of {self.total} reissued, {self.left} left, {len(self.failed)} failed; {figures}"


def run(
    due: Sequence[str],
    renew: Callable[[str], None],
    tally: Tally,
    advanced: Callable[[Tally], None],
    *,
    concurrency: int,
) -> None:
    """Renew each, at most ``concurrency`` at a time.

    After an interruption (KeyboardInterrupt) no other is begun; it is raised again when those under way have ended.
    """
    waiting = iter(due)
    under_way: dict[Future[float], str] = {}

    def timed(name: str) -> float:
        started = time.monotonic()
        renew(name)
        return time.monotonic() - started

    def settle(ended: Iterable[Future[float]]) -> None:
        for future in ended:
            name = under_way.pop(future)
            try:
                tally.seconds.append(future.result())
                tally.done += 1
            except NftrustError as error:
                tally.failed[name] = error
            advanced(tally)

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="reissue") as pool:
        try:
            while True:
                while len(under_way) < concurrency and (name := next(waiting, None)) is not None:
                    under_way[pool.submit(timed, name)] = name
                if not under_way:
                    return
                settle(wait(under_way, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            settle(wait(tuple(under_way)).done)
            raise


@click.group()
def drill() -> None:
    """Exercises with the whole network."""


@drill.command()
@click.option("--concurrency", type=click.IntRange(1, 128), default=16, show_default=True, help="NFs at a time.")
@click.option("--new", is_flag=True, help="Begin anew, though a drill that was interrupted is not through.")
@OUTPUT
@click.pass_obj
def reissue(config: str, concurrency: int, new: bool, output: str) -> int:
    """Have every NF get a new certificate, with a new key.

    Interrupt it as you like: the next run goes on with those that are left. Exit status 3 where some are.
    """
    path = Path(config)
    memory = path.parent / STATE_FILE
    with Session.open(path) as session:
        issued = list(certificates(session, certificate_pb.ListCertificatesRequest(exclude_revoked=True)))
        known = None if new else _recall(memory)
        mark = known or _begin(memory, issued)
        found = plan(all_network_functions(session), issued, mark)
        tally = Tally(total=len(found.due) + found.done, done=found.done)
        if output == "text":
            click.echo(
                f"the drill {'begins' if known is None else 'goes on'}: {len(found.due)} of {tally.total} NFs are left"
            )
        interrupted = _carry_out(session, found, tally, concurrency, quiet=output == "json")
    if not tally.left:
        memory.unlink(missing_ok=True)
    _report(found, tally, output)
    if interrupted:
        click.echo("interrupted; run it again to go on", err=True)
        return EXIT_INTERRUPTED
    return EXIT_LEFT if tally.left else 0


def _recall(memory: Path) -> Mark | None:
    """Of a drill that is not through. Raises NftrustError(STATE_CORRUPT)."""
    try:
        return msgspec.json.decode(memory.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError):
        raise NftrustError(Reason.STATE_CORRUPT, f"{memory}: cannot be read; --new begins anew") from None


def _begin(memory: Path, issued: Iterable[certificate_pb.Certificate]) -> Mark:
    mark = Mark(max((each.create_time.ToMicroseconds() for each in issued), default=0))
    write_atomically(memory, msgspec.json.encode(mark))
    return mark


def _carry_out(session: Session, found: Plan, tally: Tally, concurrency: int, *, quiet: bool) -> bool:
    """Whether it was interrupted."""
    # One channel for all: gRPC's are made for many calls at once.
    stub = ProvisioningServiceStub(session.channel(session.config.cmproxy))

    def renew(name: str) -> None:
        try:
            stub.RenewNetworkFunction(pb.RenewNetworkFunctionRequest(name=name), timeout=RENEWAL_SECONDS)
        except grpc.RpcError as failure:
            raise refusal(failure) from None

    with _progress(tally, quiet) as advanced:
        try:
            run(found.due, renew, tally, advanced, concurrency=concurrency)
        except KeyboardInterrupt:
            return True
    return False


def _progress(tally: Tally, quiet: bool) -> AbstractContextManager[Callable[[Tally], None]]:
    if quiet:
        return nullcontext(lambda _: None)
    return _Bar(tally) if sys.stdout.isatty() else nullcontext(_PlainLines())


class _PlainLines:
    """For a pipe or a log: a line now and then."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() - self._told >= PLAIN_SECONDS:
            self._told = time.monotonic()
            click.echo(tally.line())


class _Bar(AbstractContextManager[Callable[[Tally], None]]):
    """For a terminal."""

    def __init__(self, tally: Tally) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("", total=tally.total, completed=tally.done)

    def __enter__(self) -> Callable[[Tally], None]:
        self._progress.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _advance(self, tally: Tally) -> None:
        figures = f"{tally.rate:.1f}/s  p50 {tally.percentile(0.5):.2f} s  p99 {tally.percentile(0.99):.2f} s"
        failed = f"  {len(tally.failed)} failed" if tally.failed else ""
        self._progress.update(self._task, completed=tally.done, description=figures + failed)


def _report(found: Plan, tally: Tally, output: str) -> None:
    if output == "json":
        emit_json(
            {
                "reissued": tally.done,
                "left": tally.left,
                "failed": {name: error.reason.name for name, error in tally.failed.items()},
                "without_certificate": list(found.without),
                "rate": round(tally.rate, 3),
                "p50_seconds": round(tally.percentile(0.5), 3),
                "p99_seconds": round(tally.percentile(0.99), 3),
            }
        )
        return
    click.echo(tally.line())
    for reason, count in Counter(error.reason for error in tally.failed.values()).most_common():
        click.echo(f"{count} failed with {reason.name}: {reason.meaning} {reason.remedy}")
    if tally.failed:
        rows = [(name, error.reason.name) for name, error in list(tally.failed.items())[:_SHOWN]]
        emit_table(["NETWORK FUNCTION", "REASON"], rows)
        if len(tally.failed) > _SHOWN:
            click.echo(f"and {len(tally.failed) - _SHOWN} more (--output json has all)")
    if found.without:
        click.echo(f"{len(found.without)} NFs in service have no certificate of this CA/RA: enrol them")
