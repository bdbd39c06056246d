"""Who is counted as one where a listener bounds what a stranger may hold of it."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


@lru_cache(maxsize=4096)
def source_key(address: str) -> str:
    """One key for what one source commands: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 4:
        return str(ip)
    mapped = ip.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((ip, 64), strict=False))


@contextmanager
def counted(counter: Counter[str], key: str) -> Iterator[None]:
    """One more under ``key`` for the block; memory is bounded by what is in progress."""
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
