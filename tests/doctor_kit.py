"""A lab to break and to mend, for the tests of `nftrust doctor`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.field_mask_pb2 import FieldMask

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.api.diagnosis.v1 import diagnosis_service_pb2, diagnosis_service_pb2_grpc
from nftrust.cli.doctor.checks import Result, Verdict
from nftrust.cli.doctor.command import diagnose
from nftrust.clock import Clock, SystemClock
from nftrust.config import ListenerConfig, ServerTlsConfig
from nftrust.files import write_atomically
from nftrust.lab import control
from nftrust.lab.layout import ADDRESS, HOST, NfSettings
from nftrust.role.diagnosis_service import METHOD, DiagnosisServicer
from nftrust.rpc.authz import infrastructure
from nftrust.rpc.server import RpcServer, ServiceBinding
from nftrust.x509.path import pem_chain
from nftrust.x509.services import issue_service
from tests.lab_kit import CALL_SECONDS, WAIT_SECONDS, RunningLab, read_toml, write_toml
from tests.shim_kit import Shim

PATIENCE_SECONDS = 10.0


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
    def configured(self, role: str, section: str, **changes: Any) -> Iterator[None]:
        """The role runs with another configuration."""
        path = self.running.lab.role(role) / "config.toml"
        with self.files(path):
            tree = read_toml(path)
            tree[section] |= changes
            write_toml(path, tree)
            self.stop(role)
            self.start(role)
            yield
            self.stop(role)
        self.start(role)

    def sql(self, role: str, statement: str, *arguments: object) -> None:
        database = self.running.lab.role(role) / "store.sqlite"
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            connection.execute(statement, arguments)

    def copied(self, role: str, name: str) -> Path:
        """A copy of a role's configuration, with absolute paths as the lab writes them."""
        path = self.directory / name
        shutil.copy(self.running.lab.role(role) / "config.toml", path)
        return path


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
    ports: list[int] = []
    up = threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        services = [] if diagnosis is None else [binding(diagnosis)]
        table = {**infrastructure(oam), **({METHOD: oam} if services else {})}
        listener = ListenerConfig(address=f"{ADDRESS}:0", tls=tls)
        server = RpcServer(listener, services, table, deployment="lab")
        await server.start()
        await server.set_serving(serving)
        ports.append(server.port)
        up.set()
        await stopping.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(WAIT_SECONDS)
        yield f"{HOST}:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(WAIT_SECONDS)
        loop.close()


def binding(servicer: DiagnosisServicer) -> ServiceBinding:
    return ServiceBinding(
        diagnosis_service_pb2_grpc.add_DiagnosisServiceServicer_to_server,
        servicer,
        diagnosis_service_pb2.DESCRIPTOR.services_by_name["DiagnosisService"],
    )
