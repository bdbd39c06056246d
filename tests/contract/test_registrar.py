"""A third party's registrar is found by the entry point of its installed distribution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cmproxy.ports import EndEntity
from cmproxy.registrar import load_registrar
from nftrust.errors import NftrustError, Reason

MODULE = "third_party_registrar"
SOURCE = """
from cmproxy.ports import EndEntity, ForeignCredential


class Mine:
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    async def register(self, entity: EndEntity) -> ForeignCredential:
        return ForeignCredential(self.prefix + entity.handle, bytes(range(32)))

    async def revoke(self, handle: str) -> None:
        pass


def make(settings):
    return Mine(settings["prefix"])
"""
NF = EndEntity("nftrust-1", "5e0ee0a8-2b3f-4b0c-9d0e-2f1c7b6a1d3e", "AMF", ("amf.example.org",), "default", "nf")


def install(directory: Path, distribution: str, entry_points: str) -> None:
    """As pip leaves it."""
    metadata = directory / f"{distribution}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[nftrust.registrars]\n{entry_points}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return tmp_path


async def test_it_is_found_by_its_entry_point_and_gets_its_settings(site: Path) -> None:
    install(site, "third_party", f"mine = {MODULE}:make\n")
    registrar = load_registrar("mine", {"prefix": "x-"})
    assert (await registrar.register(NF)).reference == "x-nftrust-1"


def test_two_of_one_name_are_refused(site: Path) -> None:
    install(site, "third_party", f"mine = {MODULE}:make\n")
    install(site, "fourth_party", f"mine = {MODULE}:make\n")
    refused("mine", "2 have this name")


def test_a_plug_in_cannot_take_the_place_of_ours(site: Path) -> None:
    install(site, "third_party", f"ejbca = {MODULE}:make\n")
    refused("ejbca", "settings")


@pytest.mark.parametrize("target", ["nowhere_to_be_found:make", f"{MODULE}:nothing"])
def test_one_that_cannot_be_imported_is_refused(site: Path, target: str) -> None:
    install(site, "third_party", f"mine = {target}\n")
    refused("mine", "cannot be imported")


def refused(name: str, why: str) -> None:
    with pytest.raises(NftrustError) as caught:
        load_registrar(name, {"prefix": "x-"})
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert why in caught.value.message
