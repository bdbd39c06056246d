"""Reflection finds what grpcurl describes: services, messages, fields, and methods too."""

from __future__ import annotations

import pytest

from nftrust.api.cmproxy.v1 import provisioning_service_pb2 as pb
from nftrust.rpc.reflection import SymbolPool

_PACKAGE = "nftrust.api.cmproxy.v1"


@pytest.mark.parametrize(
    "symbol", ["ProvisioningService", "ProvisioningService.StartEnrolment", "Enrolment", "Enrolment.steps"]
)
def test_the_file_of_a_symbol_is_found(symbol: str) -> None:
    found = SymbolPool().FindFileContainingSymbol(f"{_PACKAGE}.{symbol}")
    assert found.name == pb.DESCRIPTOR.name


@pytest.mark.parametrize("symbol", ["ProvisioningService.NoSuchMethod", "NoSuchService", ""])
def test_an_unknown_symbol_is_a_key_error(symbol: str) -> None:
    with pytest.raises(KeyError):
        SymbolPool().FindFileContainingSymbol(f"{_PACKAGE}.{symbol}")


def test_files_are_found_by_name() -> None:
    assert SymbolPool().FindFileByName(pb.DESCRIPTOR.name).name == pb.DESCRIPTOR.name
