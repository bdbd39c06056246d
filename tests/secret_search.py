"""Looks for a secret where it must not be: files, command lines, environments, memory of processes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Read at a time, with an overlap longer than any form of a secret.
_CHUNK, _OVERLAP = 1 << 24, 1 << 10
#: Readable and writable: what a process has written. Code and read-only files are the files' own matter.
_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.. ")


def forms(secret: bytes) -> frozenset[bytes]:
    """Raw, hexadecimal, base64 and base64url; the latter two at any offset within something longer."""
    return frozenset({secret, secret.hex().encode(), secret.hex().upper().encode()} | _base64_forms(secret))


def nested_forms(secret: bytes) -> frozenset[bytes]:
    """Also as text within a base64url payload, as in a JWS."""
    plain = forms(secret)
    return plain | frozenset(inner for form in plain if form != secret for inner in _base64_forms(form))


def _base64_forms(secret: bytes) -> set[bytes]:
    found = set()
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + secret)
        # Characters that also depend on the neighbours are left out.
        first = (0, 2, 3)[offset]
        last = (offset + len(secret)) * 8 // 6
        found |= {whole[first:last], whole[first:last].replace(b"+", b"-").replace(b"/", b"_")}
    return found


def files_with(folder: Path, secret: bytes) -> list[str]:
    """Names of the files below ``folder`` that hold the secret."""
    wanted = nested_forms(secret)
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in paths if _has(path.read_bytes(), wanted)]


def processes_with(pids: Iterable[int], secret: bytes) -> dict[int, list[str]]:
    """Where each process holds the secret: ``argv``, ``environment``, ``memory``; those that do not are left out."""
    found = {}
    for pid in pids:
        base, wanted = Path(f"/proc/{pid}"), nested_forms(secret)
        places = [
            name
            for name, content in (("argv", base / "cmdline"), ("environment", base / "environ"))
            if _has(content.read_bytes(), wanted)
        ]
        if any(_has(chunk, forms(secret)) for chunk in _memory(pid)):
            places.append("memory")
        if places:
            found[pid] = places
    return found


def _has(content: bytes, wanted: frozenset[bytes]) -> bool:
    return any(form in content for form in wanted)


def _memory(pid: int) -> Iterator[bytes]:
    """Everything that the process has written, in pieces that overlap."""
    regions = [_REGION.match(line) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in filter(None, regions):
            start, end = (int(text, 16) for text in region.groups())
            while start < end:
                try:
                    memory.seek(start)
                    chunk = memory.read(min(_CHUNK, end - start))
                except (OSError, OverflowError, ValueError):
                    break  # unmapped meanwhile, or a guard
                if not chunk:
                    break
                yield chunk
                start += len(chunk) if start + len(chunk) >= end else max(1, len(chunk) - _OVERLAP)
