"""A lab to break and to mend, for the tests of `nftrust doctor`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.field_mask_pb2 import FieldMask

import ca_ra.app
import cmproxy.app
import verifier.app
from ca_ra.config import CaRaConfig
from cmproxy.config import CmProxyConfig
from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2, diagnosis_service_pb2_grpc
from nftrust.cli.doctor.checks import Result, Verdict
from nftrust.cli.doctor.command import diagnose
from nftrust.clock import Clock, SystemClock
from nftrust.config import ListenerConfig, ServerTlsConfig, load
from nftrust.files import write_atomically
from nftrust.lab import control
from nftrust.lab.layout import ADDRESS, HOST, NfSettings
from nftrust.role.diagnosis_service import METHOD, DiagnosisServicer
from nftrust.rpc.authz import infrastructure
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.x509.path import pem_chain
from nftrust.x509.services import issue_service
from tests.lab_kit import CALL_SECONDS, WAIT_SECONDS, RunningLab, free_port, read_toml, write_toml
from tests.shim_kit import Shim
from verifier.config import VerifierConfig

PATIENCE_SECONDS = 30.0


class ShiftedClock(SystemClock):
    """The machine's clock, wrong by so much."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


@dataclass
class Patient:
    """What doctor is run on, and with what."""

    running: RunningLab
    shims: dict[str, Shim]
    directory: Path
    config: Path
    clock: Clock
    role_configs: tuple[Path, ...] = ()
    #: The latest time, in microseconds, that a copied database of the role has seen.
    marks: dict[str, str] = field(default_factory=dict)

    # Looking

    def results(self) -> list[Result]:
        return list(diagnose(self.config, (), self.role_configs, self.clock))

    def broken(self) -> dict[str, Result]:
        return {
            result.check.id: result
            for result in self.results()
            if result.finding and result.finding.verdict is Verdict.BROKEN
        }

    def until_broken(self, expected: Iterable[str]) -> dict[str, Result]:
        """What is broken, as soon as it is what is expected: some troubles take a moment to be noticed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self.broken()
            if set(found) == set(expected) or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    # Breaking; everything is mended at the end of the block

    @contextlib.contextmanager
    def operator(self, **changes: Any) -> Iterator[None]:
        """Another configuration of OAM's; None removes a key."""
        before = self.config
        self.config = self.directory / "operator.toml"
        merged = read_toml(before) | {name: str(value) for name, value in changes.items()}
        write_toml(self.config, merged)
        try:
            yield
        finally:
            self.config = before

    @contextlib.contextmanager
    def files(self, *paths: Path) -> Iterator[None]:
        """These files may be changed in the block."""
        kept = {path: (path.read_bytes(), path.stat().st_mode & 0o777) for path in paths}
        try:
            yield
        finally:
            for path, (content, mode) in kept.items():
                write_atomically(path, content, mode)

    @contextlib.contextmanager
    def access(self, **changes: Any) -> Iterator[None]:
        """The access file with other values; principals without a scope keep theirs."""
        path = self.running.lab.directory / "access.toml"
        with self.files(path):
            write_toml(path, read_toml(path) | changes)
            yield

    def principals(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read_toml(self.running.lab.directory / "access.toml")["principal"]
        return found

    @contextlib.contextmanager
    def moved(self, path: Path) -> Iterator[None]:
        aside = path.with_suffix(".aside")
        path.rename(aside)
        try:
            yield
        finally:
            aside.rename(path)

    @contextlib.contextmanager
    def updated(self, nf: NfSettings, **changes: Any) -> Iterator[None]:
        """The network function, provisioned otherwise."""
        stub = self.running.oam.provisioning
        name = f"networkFunctions/{nf.nf_instance_id}"

        def change(fields: dict[str, Any]) -> None:
            etag = stub.GetNetworkFunction(pb.GetNetworkFunctionRequest(name=name), timeout=CALL_SECONDS).etag
            message = pb.NetworkFunction(name=name, nf_instance_id=nf.nf_instance_id, etag=etag, **fields)
            mask = FieldMask(paths=list(fields))
            request = pb.UpdateNetworkFunctionRequest(network_function=message, update_mask=mask)
            stub.UpdateNetworkFunction(request, timeout=CALL_SECONDS)

        known = self.running.network_function(nf)
        change(changes)
        try:
            yield
        finally:
            change({field: getattr(known, field) for field in changes})

    def server_files(self, role: str, name: str, hosts: list[str], now: datetime | None = None) -> None:
        """Another certificate, of the same key, for a role's listeners."""
        folder = self.running.lab.role(role)
        public = load_pem_private_key((folder / "server.key").read_bytes(), None).public_key()
        write_atomically(folder / "server.pem", self.service(public, name, hosts, now), 0o644)

    def service(self, public: Any, role: str, hosts: list[str], now: datetime | None = None) -> bytes:
        services = self.running.pki.services
        lifetime = timedelta(days=1)
        start = now or datetime.now(UTC)
        made = issue_service(services, public, role=role, name="lab", hosts=hosts, now=start, lifetime=lifetime)
        return pem_chain([made])

    # Processes

    def stop(self, role: str) -> None:
        self._stop(control.processes(self.running.lab)[role][0])

    def start(self, role: str) -> None:
        started = dict(control.processes(self.running.lab))
        started[role] = [control.start_server(self.running.lab, role)]
        self.running.lab.write_description(started)
        self._wait(self.running.lab.role(role))

    def stop_agent(self, nf: NfSettings) -> None:
        self._stop(control.processes(self.running.lab)["nfs"][self._index(nf)])

    def start_agent(self, nf: NfSettings) -> None:
        started = dict(control.processes(self.running.lab))
        started["nfs"] = list(started["nfs"])
        started["nfs"][self._index(nf)] = control.start_agent(self.running.lab, nf)
        self.running.lab.write_description(started)
        self._wait(self.running.lab.nf(nf))

    @contextlib.contextmanager
    def agent_configured(self, nf: NfSettings, *keys_and_value: str) -> Iterator[None]:
        """The NF's agent runs with another value under these keys."""
        *sections, key, value = keys_and_value
        path = self.running.lab.nf(nf) / "config.toml"
        with self.files(path):
            tree = read_toml(path)
            table = tree
            for section in sections:
                table = table[section]
            table[key] = value
            write_toml(path, tree)
            self.stop_agent(nf)
            self.start_agent(nf)
            yield
        self.stop_agent(nf)
        self.start_agent(nf)

    def _index(self, nf: NfSettings) -> int:
        return self.running.lab.settings.nfs.index(nf)

    @staticmethod
    def _stop(pid: int) -> None:
        control._signal(pid, signal.SIGTERM)
        control._children.pop(pid).wait(WAIT_SECONDS)

    @staticmethod
    def _wait(folder: Path) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (folder / control.READY_FILE).exists():
            assert time.monotonic() < deadline, f"{folder.name} did not start"
            time.sleep(0.02)

    @contextlib.contextmanager
    def beside(self, role: str, **changes: dict[str, Any] | str) -> Iterator[None]:
        """OAM calls another server of the role: in this process, with a copy of the database and with changes."""
        config_type, serving, listeners, key = _ROLES[role]
        tree = read_toml(self.running.lab.role(role) / "config.toml")
        ports = {name: free_port() for name in listeners}
        for name, port in ports.items():
            tree[name] = tree[name] | {"address": f"{ADDRESS}:{port}"}
        database = self.directory / f"{role}.sqlite"
        self._copy_database(role, database)
        tree["store"] = {"url": f"sqlite:///{database}"}
        for name, value in changes.items():
            tree[name] = tree[name] | value if isinstance(value, dict) else value
        path = self.directory / f"{role}.toml"
        write_toml(path, tree)
        target = f"{HOST}:{ports['management']}"
        with hosted(serving(load(config_type, path), reuse_port=False)), self.operator(**{key: target}):
            yield

    def _copy_database(self, role: str, database: Path) -> None:
        database.unlink(missing_ok=True)
        source = f"file:{self.running.lab.role(role) / 'store.sqlite'}?mode=ro"
        with (
            contextlib.closing(sqlite3.connect(source, uri=True)) as original,
            contextlib.closing(sqlite3.connect(database)) as copy,
        ):
            original.backup(copy)
            if role in self.marks:
                statement = "INSERT OR REPLACE INTO meta (key, value) VALUES ('clock.high_water', ?)"
                copy.execute(statement, (self.marks[role],))
                copy.commit()

    def copied(self, role: str, name: str) -> Path:
        """A copy of a role's configuration, with absolute paths as the lab writes them."""
        path = self.directory / name
        shutil.copy(self.running.lab.role(role) / "config.toml", path)
        return path


_ROLES: dict[str, tuple[type[Any], Any, tuple[str, ...], str]] = {
    "ca_ra": (CaRaConfig, ca_ra.app.serving, ("management", "enrolment", "http"), "ca_ra"),
    "cmproxy": (CmProxyConfig, cmproxy.app.serving, ("management",), "cmproxy"),
    "verifier": (VerifierConfig, verifier.app.serving, ("management",), "verifier"),
}


@contextlib.contextmanager
def hosted(serving: AbstractAsyncContextManager[Any]) -> Iterator[Any]:
    """What ``serving`` yields, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    up: Future[Any] = Future()

    async def serve() -> None:
        async with serving as served:
            up.set_result(served)
            await stopping.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except Exception as error:
            if up.done():
                raise
            up.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield up.result(WAIT_SECONDS)
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)
        thread.join(WAIT_SECONDS)


@contextlib.contextmanager
def other_verifier(patient: Patient, *, diagnosis: DiagnosisServicer | None, serving: bool = True) -> Iterator[str]:
    """A verifier of another age or state, with the lab's certificate: its address."""
    folder = patient.running.lab.role("verifier")
    tls = ServerTlsConfig(
        certificate=folder / "server.pem",
        private_key=folder / "server.key",
        client_ca=patient.running.lab.pki / "services-ca.pem",
    )
    oam = frozenset({"oam"})

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[int]:
        services = [] if diagnosis is None else [binding(diagnosis)]
        table = {**infrastructure(oam), **({METHOD: oam} if services else {})}
        server = RpcServer(ListenerConfig(address=f"{ADDRESS}:0", tls=tls), services, table, deployment="lab")
        await server.start()
        await server.set_serving(serving)
        yield server.port
        await server.stop(0)

    with hosted(serve()) as port:
        yield f"{HOST}:{port}"


def binding(servicer: DiagnosisServicer) -> ServiceBinding:
    return ServiceBinding(
        diagnosis_service_pb2_grpc.add_DiagnosisServiceServicer_to_server,
        servicer,
        diagnosis_service_pb2.DESCRIPTOR.services_by_name["DiagnosisService"],
    )
