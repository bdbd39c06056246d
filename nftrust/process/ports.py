"""Reserves listening ports for fronts that bind them with SO_REUSEPORT."""

from __future__ import annotations

import contextlib
import errno
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
            for reservation in _reserve(address):
                stack.enter_context(reservation)
        yield


def _reserve(address: str) -> list[socket.socket]:
    """Reservations for every IP address of ``address``, as gRPC would bind them."""
    host, _, port = address.rpartition(":")
    reservations: list[socket.socket] = []
    try:
        for family, _, _, _, sockaddr in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            try:
                reservations.append(_bound(family, sockaddr))
            except OSError as error:
                # A name may have an IPv6 address on a machine without IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not reservations:
            raise OSError(errno.EADDRNOTAVAIL, "no address")
    except (OSError, ValueError, OverflowError):
        for reservation in reservations:
            reservation.close()
        raise NftrustError(Reason.PORT_IN_USE, f"cannot listen on {address}") from None
    return reservations


def _bound(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    """A bound socket that never listens, so that it takes no connection (Linux).

    It is bound without SO_REUSEPORT, which fails where anybody else holds the
    port, and gets the option afterwards, which lets the fronts in. Only where
    that fails is SO_REUSEADDR tried: connections of a former instance may
    linger, which alone it overlooks. It is off again at once, because with it
    on both sides a second reservation would pass.
    """
    for lingering in (0, 1):
        reservation = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                reservation.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, lingering)
            reservation.bind(sockaddr)
        except OSError as error:
            reservation.close()
            if error.errno != errno.EADDRINUSE or lingering:
                raise
            continue
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return reservation
    raise AssertionError("the loop returns or raises")
