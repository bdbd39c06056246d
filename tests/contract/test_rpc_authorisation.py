"""Who may call what (security rules 15 and 17), against a real listener."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from nftrust.errors import NftrustError, Reason
from nftrust.identity import Scope
from nftrust.rpc import current_peer
from nftrust.rpc.authz import HEALTH_METHODS, REFLECTION_METHODS
from nftrust.rpc.peer import Peer
from tests.contract.rpc_kit import GET, LIST, OAM_URI, WATCH, Kit, get, raw_call, refusal, table
from tests.pki import CLIENT, SERVER, Leaf, make_ca, service_leaf


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


async def test_the_servicer_knows_its_caller(kit: Kit) -> None:
    peers: list[Peer] = []

    async def remember(request: object) -> object:
        peers.append(current_peer())
        return await kit.results._echo(request)

    kit.results.get = remember
    async with kit.serving(), kit.channel() as channel:
        assert (await get(channel, "n")).name == "n"
    assert peers == [Peer("oam", "one", OAM_URI, Scope(tenants=("a",)), "127.0.0.1")]
    with pytest.raises(LookupError):
        current_peer()


@pytest.mark.parametrize("role", ["cm-proxy", "ca-ra", "verifier"])
@pytest.mark.parametrize("method", [LIST, GET, WATCH])
async def test_a_role_calls_only_what_the_table_opens_to_it(kit: Kit, role: str, method: str) -> None:
    kit.write_access(f'[[principal]]\nuri = "urn:nftrust:{role}:one"\n')
    async with kit.serving(), kit.channel(service_leaf(kit.ca, role)) as channel:
        if role in table()[method]:
            await get(channel)
        else:
            assert (await refusal(raw_call(channel, method)))[:2] == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")


#: An older health library serves fewer methods than the table names.
SERVED_HEALTH = {f"/grpc.health.v1.Health/{m.name}" for m in health_pb2.DESCRIPTOR.services_by_name["Health"].methods}
EVERY_METHOD = sorted(table().keys() - (set(HEALTH_METHODS) - SERVED_HEALTH))


def bad_leaves(kit: Kit) -> dict[str, tuple[Leaf, str, str]]:
    """Certificates of the services CA that open nothing."""
    one = f"urn:nftrust:oam:{'a' * 64}"
    expected = ("UNAUTHENTICATED", "PEER_ROLE_INVALID")
    return {
        "role as a DNS name": (kit.ca.issue(dns_sans=[OAM_URI]), *expected),
        "role as common name": (kit.ca.issue(common_name=OAM_URI), *expected),
        "two roles": (kit.ca.issue(uri_sans=[OAM_URI, "urn:nftrust:cm-proxy:one"]), *expected),
        "the same role twice": (kit.ca.issue(uri_sans=[OAM_URI, OAM_URI]), *expected),
        "a role and an NF": (kit.ca.issue(uri_sans=[OAM_URI, "urn:uuid:0"]), *expected),
        "no role of ours": (kit.ca.issue(uri_sans=["urn:nftrust:root:one"]), *expected),
        "upper case": (kit.ca.issue(uri_sans=["URN:nftrust:oam:one"]), *expected),
        "long name": (kit.ca.issue(uri_sans=[one + "a"]), *expected),
        "trailing newline": (kit.ca.issue(uri_sans=[OAM_URI + "\n"]), *expected),
        "no names": (kit.ca.issue(), *expected),
        "unlisted": (service_leaf(kit.ca, "oam", "two"), "PERMISSION_DENIED", "PEER_DENIED"),
        "lab": (service_leaf(kit.ca, "oam", lab=True), "PERMISSION_DENIED", "LAB_CREDENTIAL"),
    }


async def test_every_method_refuses_every_bad_certificate(kit: Kit) -> None:
    async with kit.serving():
        for case, (leaf, code, reason) in bad_leaves(kit).items():
            async with kit.channel(leaf) as channel:
                for method in EVERY_METHOD:
                    outcome = await refusal(raw_call(channel, method))
                    assert outcome[:2] == (code, reason), (case, method)


async def test_every_method_refuses_a_denied_certificate_and_principal(kit: Kit) -> None:
    leaf = service_leaf(kit.ca, "oam")
    listed = f'[[principal]]\nuri = "{OAM_URI}"\n'
    spelled = ":".join(leaf.sha256.upper()[i : i + 2] for i in range(0, 64, 2))
    async with kit.serving(), kit.channel(leaf) as channel:
        await get(channel)
        for denial in (f'denied_certificates = ["{spelled}"]', f'denied_principals = ["{OAM_URI}"]'):
            kit.write_access(f"{denial}\n{listed}")
            for method in EVERY_METHOD:
                assert (await refusal(raw_call(channel, method)))[1] == "PEER_DENIED", (denial, method)
        kit.write_access(listed + 'fqdn_suffixes = ["*"]\n')
        await get(channel)
        kit.write_access("denied_certificates = [1]")
        await get(channel)


def untrusted_leaf(kit: Kit, kind: str) -> Leaf | None:
    """A client certificate that must not get through the handshake."""
    tomorrow = datetime.now(UTC) + timedelta(hours=1)
    match kind:
        case "NF CA":
            return service_leaf(make_ca("nf ca"), "oam")
        case "namesake of the services CA":
            return service_leaf(make_ca("services"), "oam")
        case "expired":
            return kit.ca.issue(uri_sans=[OAM_URI], lifetime=timedelta(hours=-1))
        case "not yet valid":
            return kit.ca.issue(uri_sans=[OAM_URI], not_before=tomorrow, lifetime=timedelta(hours=2))
        case "server usage only":
            return kit.ca.issue(uri_sans=[OAM_URI], eku=[SERVER])
    return None


@pytest.mark.parametrize(
    "kind", ["NF CA", "no certificate", "expired", "not yet valid", "server usage only", "namesake of the services CA"]
)
async def test_tls_itself_refuses(kit: Kit, kind: str) -> None:
    async with kit.serving():
        leaf = untrusted_leaf(kit, kind)
        async with kit.channel(leaf) if leaf else kit.anonymous_channel() as channel:
            assert (await refusal(get(channel)))[:2] == ("UNAVAILABLE", "")
        async with kit.channel(kit.ca.issue(uri_sans=[OAM_URI], eku=[CLIENT])) as channel:
            await get(channel)


async def test_a_connection_does_not_outlive_its_certificate(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=2)

    async with kit.serving(), kit.channel() as channel:
        await get(channel)
        monkeypatch.setattr("nftrust.rpc.handlers.datetime", Later)
        assert (await refusal(get(channel)))[1] == "PEER_UNAUTHENTICATED"


async def test_a_lab_accepts_its_own(kit: Kit) -> None:
    service_leaf(kit.ca, "verifier", lab=True).write(kit.directory, "server")
    async with kit.serving(deployment="lab"), kit.channel(service_leaf(kit.ca, "oam", lab=True)) as channel:
        await get(channel)


async def test_production_does_not_start_with_a_lab_certificate(kit: Kit) -> None:
    service_leaf(kit.ca, "verifier", lab=True).write(kit.directory, "server")
    with pytest.raises(NftrustError) as refused:
        kit.server()
    assert refused.value.reason is Reason.LAB_CREDENTIAL


async def test_without_client_certificates_the_address_is_known(kit: Kit) -> None:
    peers: list[Peer] = []

    async def remember(request: object) -> object:
        peers.append(current_peer())
        return await kit.results._echo(request)

    kit.results.get = remember
    async with kit.serving(kit.listener(mutual=False)), kit.anonymous_channel() as channel:
        await get(channel)
    assert peers == [Peer(address="127.0.0.1")]


@pytest.mark.parametrize("method", [GET, WATCH, *HEALTH_METHODS[:2], *REFLECTION_METHODS])
async def test_a_method_missing_from_the_table_stops_the_start(kit: Kit, method: str) -> None:
    rows = {name: roles for name, roles in table().items() if name != method}
    with pytest.raises(NftrustError) as refused:
        kit.server(table=rows)
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert method in refused.value.message
    rows[method] = frozenset()
    with pytest.raises(NftrustError):
        kit.server(table=rows)


@pytest.mark.parametrize("mutual", [True, False])
async def test_roles_that_cannot_apply_stop_the_start(kit: Kit, mutual: bool) -> None:
    with pytest.raises(NftrustError) as refused:
        kit.server(kit.listener(mutual=mutual), table=table(mutual=not mutual))
    assert refused.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    "text",
    [
        "principals = []",
        '[[principal]]\nuri = "urn:nftrust:root:one"',
        f'[[principal]]\nuri = "{OAM_URI}"\n[[principal]]\nuri = "{OAM_URI}"',
        'denied_certificates = ["abcd"]',
        'denied_principals = ["someone"]',
        "not toml",
    ],
)
async def test_a_wrong_access_file_stops_the_start(kit: Kit, text: str) -> None:
    kit.write_access(text)
    with pytest.raises(NftrustError) as refused:
        kit.server()
    assert refused.value.reason is Reason.CONFIG_INVALID


async def test_an_access_file_that_vanishes_keeps_its_last_rules(kit: Kit) -> None:
    async with kit.serving(), kit.channel() as channel:
        kit.access_file.unlink()
        await get(channel)
        async with kit.channel(service_leaf(kit.ca, "oam", "two")) as stranger:
            assert (await refusal(get(stranger)))[1] == "PEER_DENIED"
