"""The committed stubs are what the protos generate (by the oldest supported grpcio-tools)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / ".venv-protos" / "bin" / "python"


def sources(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".pyi") and "__pycache__" not in path.parts
    }


@pytest.mark.process
def test_committed_stubs_are_the_generated_ones(tmp_path: Path) -> None:
    if not GENERATOR.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("the generator's environment is missing: `make protos-env`")
        pytest.skip("the generator's environment is missing: `make protos-env`")
    subprocess.run([GENERATOR, ROOT / "protos" / "generate.py", tmp_path], check=True, timeout=100)
    assert sources(tmp_path / "nftrust" / "api") == sources(ROOT / "nftrust" / "api")
