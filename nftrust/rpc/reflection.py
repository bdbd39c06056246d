"""Symbols for server reflection."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor


class SymbolPool:
    """The default descriptor pool, which also finds the file of a method.

    protobuf's own ``FindFileContainingSymbol`` knows services but not their
    methods, so that ``grpcurl describe <service>.<method>`` would fail.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()  # type: ignore[no-untyped-call, unused-ignore]

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError."""
        try:
            found: FileDescriptor = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            found = self._pool.FindMethodByName(symbol).containing_service.file
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
