"""The registrar for EJBCA against a double of its REST API, over HTTPS with mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmproxy.adapters.ejbca import EjbcaRegistrar
from cmproxy.ports import EndEntity
from cmproxy.registrar import load_registrar
from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from tests.ejbca_double import VERSION, EjbcaDouble, serving
from tests.pki import make_ca

NF = EndEntity(
    handle="nftrust-" + "0a" * 16,
    nf_instance_id="5e0ee0a8-2b3f-4b0c-9d0e-2f1c7b6a1d3e",
    nf_type="AMF",
    fqdns=("amf1.example.org", "amf2.example.org"),
    tenant="default",
    certificate_profile="nf-foreign",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EjbcaDouble]:
    with serving(tmp_path_factory.mktemp("ejbca")) as double:
        yield double


@pytest.fixture
def ejbca(server: EjbcaDouble) -> Iterator[EjbcaDouble]:
    yield server
    server.end_entities.clear()
    server.answer = None
    assert server.faults == []  # every request was of the described form


@pytest.fixture
def registrar(ejbca: EjbcaDouble) -> EjbcaRegistrar:
    return EjbcaRegistrar.from_settings(ejbca.settings)


async def test_an_end_entity_is_added_with_a_secret(ejbca: EjbcaDouble, registrar: EjbcaRegistrar) -> None:
    given = await registrar.register(NF)
    assert given.reference == NF.handle
    assert len(given.secret) == 48
    assert given.secret.decode() not in repr(given)
    known = ejbca.end_entities[NF.handle]
    assert known["password"].encode() == given.secret
    assert known["status"] == "NEW"
    assert known["token"] == "USERGENERATED"
    assert known["subject_dn"] == "CN=amf1.example.org"
    names = f"uniformResourceId={urn(NF.nf_instance_id)}, dNSName=amf1.example.org, dNSName=amf2.example.org"
    assert known["subject_alt_name"] == names
    assert (known["ca_name"], known["end_entity_profile_name"]) == ("NfIssuingCA", "NF")


async def test_again_it_voids_the_secret_and_gives_another(ejbca: EjbcaDouble, registrar: EjbcaRegistrar) -> None:
    first = await registrar.register(NF)
    ejbca.end_entities[NF.handle]["status"] = "FAILED"
    second = await registrar.register(NF)
    assert second.secret != first.secret
    assert ejbca.end_entities[NF.handle]["password"].encode() == second.secret
    assert ejbca.end_entities[NF.handle]["status"] == "NEW"


async def test_revoking_is_idempotent(ejbca: EjbcaDouble, registrar: EjbcaRegistrar) -> None:
    await registrar.revoke(NF.handle)  # there is none
    await registrar.register(NF)
    await registrar.revoke(NF.handle)
    assert ejbca.end_entities[NF.handle]["status"] == "REVOKED"
    await registrar.revoke(NF.handle)


async def test_it_tells_its_version(registrar: EjbcaRegistrar) -> None:
    assert await registrar.version() == VERSION


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (202, Reason.FOREIGN_CA_RA_REFUSED),
        (400, Reason.FOREIGN_CA_RA_REFUSED),
        (403, Reason.FOREIGN_CA_RA_REFUSED),
        (422, Reason.FOREIGN_CA_RA_REFUSED),
        (429, Reason.PEER_UNAVAILABLE),
        (500, Reason.PEER_UNAVAILABLE),
        (503, Reason.PEER_UNAVAILABLE),
    ],
)
async def test_refusals(ejbca: EjbcaDouble, registrar: EjbcaRegistrar, status: int, reason: Reason) -> None:
    ejbca.answer = status
    for call in (registrar.register(NF), registrar.revoke(NF.handle)):
        with pytest.raises(NftrustError) as caught:
            await call
        assert caught.value.reason is reason
        assert "as told" not in caught.value.message


async def test_a_server_of_another_ca_gets_nothing(ejbca: EjbcaDouble, tmp_path: Path) -> None:
    other = make_ca("other").write(tmp_path, "other")
    registrar = EjbcaRegistrar.from_settings(ejbca.settings | {"trust_anchors": str(other)})
    with pytest.raises(NftrustError) as caught:
        await registrar.register(NF)
    assert caught.value.reason is Reason.PEER_UNAVAILABLE
    assert ejbca.end_entities == {}


@pytest.mark.parametrize(
    "change",
    [{"url": "http://localhost:1"}, {"url": "https://localhost/x"}, {"ca": "x"}, {"timeout_seconds": "soon"}],
)
def test_settings_are_checked(ejbca: EjbcaDouble, change: dict[str, str]) -> None:
    with pytest.raises(NftrustError) as caught:
        load_registrar("ejbca", ejbca.settings | change)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_a_key_that_others_may_read_is_refused(ejbca: EjbcaDouble) -> None:
    key = Path(ejbca.settings["private_key"])
    key.chmod(0o640)
    with pytest.raises(NftrustError) as caught:
        load_registrar("ejbca", ejbca.settings)
    key.chmod(0o600)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_an_unknown_registrar_is_refused() -> None:
    with pytest.raises(NftrustError) as caught:
        load_registrar("nobody", {})
    assert caught.value.reason is Reason.CONFIG_INVALID
