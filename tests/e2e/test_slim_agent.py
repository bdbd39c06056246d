"""The NF agent from the slim wheel, with its own dependencies and nothing else, at both ends of their range."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import sys
import time
import tomllib
from pathlib import Path

import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from tests.lab_kit import RunningLab
from tests.slim_kit import ROOT, Slim, SlimNf, modules

pytestmark = [pytest.mark.process, pytest.mark.token, pytest.mark.timeout(180)]

HEAVY = (
    "sqlalchemy",
    "alembic",
    "click",
    "rich",
    "asyncpg",
    "psycopg",
    "h11",
    "tomli_w",
    "softhsm",
    "ca_ra",
    "cmproxy",
)
WAIT_SECONDS = 60.0


@pytest.fixture(params=["floor", "newest"], scope="module")
def slim(request: pytest.FixtureRequest, agent_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Slim:
    return Slim.install(request.param, agent_wheel, tmp_path_factory.mktemp(request.param) / "site")


@pytest.fixture(scope="module")
def nf(slim: Slim, running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> SlimNf:
    """Provisioned at the CM proxy."""
    made = SlimNf.make(running_lab, slim, tmp_path_factory.mktemp("slim-nf"))
    running_lab.create_nf(made.network_function())
    return made


def wait_for_line(log: Path, start: str) -> str:
    """The first line of a log that starts so, once there is one."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        for line in log.read_text().splitlines():
            if line.startswith(start):
                return line
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def enrol(running_lab: RunningLab, nf: SlimNf) -> str:
    """One whole enrolment; the serial number of its certificate."""
    started = running_lab.start(f"networkFunctions/{nf.nf_instance_id}", allow_re_enrolment=True)
    ended = running_lab.wait_for(started.name, pb.Enrolment.SUCCEEDED, pb.Enrolment.FAILED)
    assert ended.state == pb.Enrolment.SUCCEEDED, ended
    return ended.certificate.removeprefix("certificates/").lstrip("0")


def test_the_environment_holds_the_pinned_ends_and_nothing_else(slim: Slim) -> None:
    program = "import importlib.metadata as m; print([(d.name.lower(), d.version) for d in m.distributions()])"
    held = dict(ast.literal_eval(slim.python("-c", program)))
    lock = (ROOT / "tests" / "slim" / f"{slim.name}.lock").read_text()
    pinned = dict(line.split(" ")[0].split("==") for line in lock.splitlines() if "==" in line and line[0].isalpha())
    held = {name.replace("_", "-"): version for name, version in held.items()}
    assert held.pop("nf-agent") == importlib.metadata.version("nftrust")
    assert {name: held.get(name) for name in pinned} == pinned
    assert set(held) - set(pinned) <= {"pip", "setuptools"}
    if slim.name == "floor":
        project = tomllib.loads((ROOT / "packaging" / "nf-agent" / "pyproject.toml").read_text())["project"]
        for requirement in project["dependencies"]:
            name, floor = requirement.split(">=")
            assert (pinned[name] + ".").startswith(floor + "."), f"{name} is tested at {pinned[name]}, not at {floor}"


def test_every_module_of_the_wheel_imports_and_nothing_heavy_comes_with_it(slim: Slim, agent_wheel: Path) -> None:
    names = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in modules(agent_wheel)
        if name.endswith(".py")
    )
    program = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    imported = set(json.loads(slim.python("-W", "error", "-c", program)))
    assert imported.isdisjoint(HEAVY)
    allowed = {"nf_agent", "nftrust", "cryptography", "google", "grpc", "grpc_health", "grpc_reflection", "msgspec"}
    # sitecustomize: Debian's interpreter has one.
    interpreter = {"__main__", "_cffi_backend", "_openssl", "sitecustomize", "typing_extensions"}
    ours = imported - set(sys.stdlib_module_names) - interpreter
    assert {name for name in ours if "cython" not in name.lower()} - {"_distutils_hack"} <= allowed


def test_it_enrols(slim: Slim, nf: SlimNf, running_lab: RunningLab, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    run = ("-W", "error", "-m", "nf_agent", "run", "--config", str(nf.config), "--ready-file", str(ready))
    with slim.running(tmp_path / "log", *run):
        enrol(running_lab, nf)
        assert ready.exists()
    assert "phase        confirmed" in slim.python("-m", "nf_agent", "status", "--config", str(nf.config))


def test_the_embedding_example_uses_each_new_certificate(
    slim: Slim, nf: SlimNf, running_lab: RunningLab, tmp_path: Path
) -> None:
    example = str(ROOT / "examples" / "embed" / "nf.py")
    with slim.running(tmp_path / "log", "-W", "error", example, str(nf.config)):
        for _ in range(2):
            serial = enrol(running_lab, nf)
            line = wait_for_line(tmp_path / "log", f"certificate {serial},")
            assert "pkcs11:token=nftrust-slim;object=nf-" in line
    with slim.running(tmp_path / "again", "-W", "error", example, str(nf.config)):
        # A certificate that is held is used without another enrolment.
        wait_for_line(tmp_path / "again", f"certificate {serial},")
