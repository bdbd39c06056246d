"""Authorisation is data: which roles may call which method (security rule 15).

Every listener has one table. It names each served method in full, those of
health checking and reflection included, or the server does not start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

from nftrust.errors import NftrustError, Reason

Role = Literal["oam", "cm-proxy", "ca-ra", "verifier"]
AuthorisationTable = Mapping[str, frozenset[str]]

ROLES: Final[frozenset[str]] = frozenset(get_args(Role))
#: For methods of a listener without client authentication, and only there.
ANYONE: Final[frozenset[str]] = frozenset({"anyone"})

HEALTH_METHODS: Final = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List")
REFLECTION_METHODS: Final = ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",)


def infrastructure(roles: frozenset[str]) -> dict[str, frozenset[str]]:
    """Table rows that open health checking and reflection to ``roles``."""
    return dict.fromkeys((*HEALTH_METHODS, *REFLECTION_METHODS), roles)


def check_table(table: AuthorisationTable, served: Iterable[str], *, authenticated: bool) -> None:
    """Refuse a table that leaves a served method open or unreachable.

    ``authenticated`` tells whether the listener demands client certificates.
    Raises NftrustError(CONFIG_INVALID) with the methods concerned.
    """
    missing = sorted(method for method in served if not table.get(method))
    if missing:
        raise NftrustError(Reason.CONFIG_INVALID, f"authorisation table lacks {', '.join(missing)}")
    allowed = ROLES if authenticated else ANYONE
    wrong = sorted(method for method in served if not table[method] <= allowed)
    if wrong:
        kind = "with" if authenticated else "without"
        raise NftrustError(
            Reason.CONFIG_INVALID,
            f"authorisation table: roles of {', '.join(wrong)} cannot apply {kind} client authentication",
        )
