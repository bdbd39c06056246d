"""The two wheels: no file in both, together everything, and either way of installing them imports rightly."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.slim_kit import ROOT, modules

PACKAGES = ("ca_ra", "cmproxy", "nf_agent", "nftrust", "softhsm", "verifier")


def sources() -> set[str]:
    """Every file of the packages, as git would have them."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in found if path.is_file() and "__pycache__" not in path.parts}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_no_file_is_in_both_wheels_and_none_is_in_neither(agent_wheel: Path, nftrust_wheel: Path) -> None:
    slim, rest = modules(agent_wheel), modules(nftrust_wheel)
    assert slim & rest == set()
    assert slim | rest == sources() | {"nf_agent/LICENSE"}
    assert {name.split("/")[0] for name in slim} == {"nf_agent", "nftrust"}


def parts(wheel: Path) -> set[str]:
    """The packages of a wheel, and the modules and packages right below `nftrust`."""
    split = (name.removesuffix(".py").split("/") for name in modules(wheel) if name.endswith(".py"))
    return {".".join(part[:2]) if part[0] == "nftrust" else part[0] for part in split} - {"nftrust.__init__"}


def test_an_import_rule_keeps_the_agents_wheel_from_the_other(agent_wheel: Path, nftrust_wheel: Path) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [rule] = [item for item in contracts if item["name"].startswith("The agent, and what")]
    assert parts(agent_wheel) == set(rule["source_modules"])
    roles = {"ca_ra", "cmproxy", "verifier"}  # another rule: what is shared imports no role
    assert parts(nftrust_wheel) - roles <= set(rule["forbidden_modules"])


def test_nftrust_demands_the_agent_of_its_own_version(agent_wheel: Path, nftrust_wheel: Path) -> None:
    slim, rest = metadata(agent_wheel), metadata(nftrust_wheel)
    assert slim["Version"] == rest["Version"]
    assert f"nf-agent=={slim['Version']}" in rest.get_all("Requires-Dist", [])
    names = {requirement.split(">")[0] for requirement in slim.get_all("Requires-Dist", [])}
    assert names == {
        "cryptography",
        "googleapis-common-protos",
        "grpcio",
        "grpcio-health-checking",
        "grpcio-reflection",
        "msgspec",
        "protobuf",
    }


def import_all(*folders: Path) -> str:
    """Import every module of both wheels with only these folders added; where `nftrust.storage` came from."""
    program = (
        "import importlib, pkgutil, sys\n"
        f"for name in {PACKAGES!r}:\n"
        "    for found in pkgutil.walk_packages(importlib.import_module(name).__path__, name + '.'):\n"
        "        if not found.name.endswith(('__main__', '.env')):\n"
        "            importlib.import_module(found.name)\n"
        "print(sys.modules['nftrust.storage'].__file__)"
    )
    # -S: without the repository's own editable install; the dependencies' folder is named.
    dependencies = str(Path(sys.executable).parent.parent / "lib" / f"python3.{sys.version_info.minor}/site-packages")
    path = os.pathsep.join([*map(str, folders), dependencies])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_both_wheels_import_from_one_folder_and_from_two(
    agent_wheel: Path, nftrust_wheel: Path, tmp_path: Path
) -> None:
    for wheel, folders in ((agent_wheel, ("one", "slim")), (nftrust_wheel, ("one", "rest"))):
        for folder in folders:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(tmp_path / folder)
    one, slim, rest = (tmp_path / name for name in ("one", "slim", "rest"))
    assert import_all(one).startswith(str(one))
    assert import_all(slim, rest).startswith(str(rest))
    # As where a virtual environment, which comes first, adds `nftrust` to an image's own `nf-agent`.
    assert import_all(rest, slim).startswith(str(rest))
