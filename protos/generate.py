"""Generates the committed stubs in nftrust/api; `make protos` runs it in its own environment.

The oldest supported grpcio-tools makes them, so that an NF image with an older
grpcio can embed the agent. Usage: generate.py [OUTPUT DIRECTORY]
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import grpc_tools  # type: ignore[import-untyped]
from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).parent
PACKAGE = Path("nftrust/api")


def generate(output: Path) -> int:
    """Stubs, type stubs and the package files under ``output``; protoc's exit status."""
    scripts = Path(sys.executable).parent
    shutil.rmtree(output / PACKAGE, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    bundled = Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    status: int = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{bundled}",
            f"-I{sysconfig.get_paths()['purelib']}",
            f"--python_out={output}",
            f"--grpc_python_out={output}",
            f"--mypy_out=quiet:{output}",
            f"--mypy_grpc_out=quiet:{output}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            *files,
        ]
    )
    for directory in [output / PACKAGE, *(path for path in (output / PACKAGE).rglob("*") if path.is_dir())]:
        (directory / "__init__.py").touch()
    return status


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
