"""The two wheels, and the NF agent in an environment with its own dependencies and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.files import read_file
from nftrust.lab.layout import ADDRESS, DAY0_ROOT, HOME_DOMAIN, HOST, TENANT
from nftrust.x509.path import pem_chain
from softhsm import create_token
from tests.lab_kit import RunningLab, free_port, write_toml

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".cache" / "slim"
PROJECTS = {"nf-agent": ROOT / "packaging" / "nf-agent", "nftrust": ROOT}


def build(name: str, directory: Path) -> Path:
    """The wheel of this name, made by hatchling, without a network and without build isolation."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=PROJECTS[name], check=True, capture_output=True, timeout=60)
    [wheel] = directory.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def modules(wheel: Path) -> set[str]:
    """The files of a wheel that are not its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@dataclass(frozen=True)
class Slim:
    """One environment (its lock file's name) with the agent's wheel added by `pip install --target`."""

    name: str
    target: Path

    @classmethod
    def install(cls, name: str, wheel: Path, target: Path) -> Slim:
        made = cls(name, target)
        lock = ROOT / "tests" / "slim" / f"{name}.lock"
        installed = ENVIRONMENTS / name / "installed.lock"
        assert installed.exists(), "run tools/slim-envs"
        assert installed.read_bytes() == lock.read_bytes(), "run tools/slim-envs"
        made.python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel))
        return made

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the repository is on the path; warnings are errors here too."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"PYTHONPATH": str(self.target), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [str(ENVIRONMENTS / self.name / "bin" / "python"), *arguments]

    def python(self, *arguments: str) -> str:
        """Standard output of the environment's Python."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.target.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    @contextlib.contextmanager
    def running(self, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The environment's Python, ended by SIGTERM; it has to end well."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments), env=self.environment, cwd=self.target.parent, stdout=output, stderr=output
            )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()[-3000:]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class SlimNf:
    """An NF of the running lab whose agent comes from the slim wheel alone, from `nf-agent init` on."""

    config: Path
    nf_instance_id: str
    endpoint: str
    transport_key_sha256: bytes

    @classmethod
    def make(cls, lab: RunningLab, slim: Slim, directory: Path) -> SlimNf:
        nf_instance_id, port = str(uuid.uuid4()), free_port()
        token = create_token(directory / "token", "nftrust-slim")
        tree: dict[str, Any] = {
            "deployment": "lab",
            "nf_instance_id": nf_instance_id,
            "state_dir": str(directory / "state"),
            "retry_cap_seconds": 1.0,
            "token": {
                "module": str(token.module),
                "label": token.label,
                "pin_file": str(token.pin_file),
                "lock_file": str(token.lock_file),
                "environment": token.environment,
            },
            "listener": {
                "address": f"{ADDRESS}:{port}",
                "tls": {
                    "certificate": str(directory / "day0.pem"),
                    "private_key": str(directory / "day0.key"),
                    "client_ca": str(lab.lab.pki / "services-ca.pem"),
                },
            },
        }
        config = directory / "agent.toml"
        write_toml(config, tree)
        output = slim.python("-W", "error", "-m", "nf_agent", "init", "--config", str(config))
        [fingerprint] = [line.split()[-1] for line in output.splitlines() if line.startswith("transport key")]
        day0 = lab.pki.day0_certificate(read_file(directory / "state" / "day0.csr"), nf_instance_id)
        (directory / "day0.pem").write_bytes(pem_chain([day0]))
        return cls(config, nf_instance_id, f"{HOST}:{port}", bytes.fromhex(fingerprint))

    def network_function(self) -> pb.NetworkFunction:
        """What OAM provisions."""
        return pb.NetworkFunction(
            nf_instance_id=self.nf_instance_id,
            nf_type="AMF",
            fqdns=[f"s{self.nf_instance_id[:13]}.amf.{HOME_DOMAIN}"],
            agent_endpoint=self.endpoint,
            tenant=TENANT,
            day0_root=DAY0_ROOT,
            transport_key_sha256=self.transport_key_sha256,
        )
