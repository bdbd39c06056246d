"""The processes of a lab, as the kernel lists them; each may end while it is looked at."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The live descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def command(pid: int) -> bytes:
    """Its command line, NUL between the arguments; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def fronts(supervisor: int) -> list[int]:
    return [pid for pid in descendants(supervisor) if b"\0front\0" in command(pid)]


def token_workers(supervisor: int) -> list[int]:
    return [pid for pid in descendants(supervisor) if b"nftrust.pkcs11.worker" in command(pid)]
