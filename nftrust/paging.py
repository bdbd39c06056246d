"""Page sizes and opaque page tokens (AIP-158)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from nftrust import jose
from nftrust.errors import NftrustError, Reason, invalid_field

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
T = TypeVar("T")


def page_size(requested: int) -> int:
    """The page size in force. Raises NftrustError(INVALID_FIELD) for a negative one."""
    if requested < 0:
        raise invalid_field("page_size", "not negative")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def decode_token(kind: str, token: str) -> str | None:
    """The position after which the page starts, or None for the first page. Raises NftrustError(INVALID_PAGE_TOKEN)."""
    if not token:
        return None
    try:
        if len(token) > 256:
            raise ValueError
        found, position = jose.b64url_decode(token).decode("ascii").split(" ", 1)
        if found != kind:
            raise ValueError
    except ValueError:
        raise NftrustError(Reason.INVALID_PAGE_TOKEN) from None
    return position


def decode_number(kind: str, token: str) -> int | None:
    """As :func:`decode_token`, for lists ordered by number."""
    position = decode_token(kind, token)
    if position is None:
        return None
    if not position.isdecimal() or len(position) > 18:
        raise NftrustError(Reason.INVALID_PAGE_TOKEN)
    return int(position)


def cut(kind: str, rows: Sequence[T], size: int, position: Callable[[T], object]) -> tuple[Sequence[T], str]:
    """A page of ``rows`` (fetched with one more than ``size``) and the token of the next."""
    if len(rows) <= size:
        return rows, ""
    page = rows[:size]
    return page, jose.b64url(f"{kind} {position(page[-1])}".encode())
