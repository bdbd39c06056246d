"""Reserves listening ports for fronts that bind them with SO_REUSEPORT."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from nftrust.errors import NftrustError, Reason


@contextlib.contextmanager
def reserved(addresses: Sequence[str]) -> Iterator[None]:
    """Hold each ``host:port`` so that another supervisor is refused and our fronts are not.

    Raises NftrustError(PORT_IN_USE).
    """
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(_reserve(address))
        yield


def _reserve(address: str) -> socket.socket:
    """A bound socket that never listens, so that it takes no connection (Linux).

    It is bound without SO_REUSEPORT, which fails where anybody else holds the
    port, and gets the option afterwards, which lets the fronts in. SO_REUSEADDR
    is on during the bind alone: connections of a former instance may linger,
    but a second reservation must not pass.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((host, int(port)))
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except (OSError, ValueError, OverflowError):
        reservation.close()
        raise NftrustError(Reason.PORT_IN_USE, f"cannot listen on {address}") from None
    return reservation
