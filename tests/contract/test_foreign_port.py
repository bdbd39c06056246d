"""The CA/RA port's second adapter on a real token, and the agent's checks on what it delivers."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cmproxy.adapters.foreign import BINDING_KEY, ESCROW_KEY, ForeignCaRaPort, ForeignIntent, ForeignProfile, seal
from cmproxy.model import HandedCredential
from cmproxy.ports import EndEntity, ForeignCredential, Registrar
from nf_agent.foreign import ForeignExpectations, accept_foreign_info, is_foreign
from nftrust import jose
from nftrust.clock import SystemClock
from nftrust.errors import NftrustError, Reason
from nftrust.identity import urn
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11.keys import token_private_key
from tests.pki import make_ca
from tests.token_fixtures import SharedToken

pytestmark = pytest.mark.token
HANDLE = "nftrust-" + "0" * 32
NF = "5e0ee0a8-2b3f-4b0c-9d0e-2f1c7b6a1d3e"
SERVICES, FOREIGN, OTHER = make_ca("services"), make_ca("foreign"), make_ca("other")


@pytest.fixture(scope="module")
def escrow(shared_token: SharedToken) -> Iterator[None]:
    shared_token.client.call(op.GenerateSecret(ESCROW_KEY, "escrow"))
    shared_token.client.call(op.GenerateSecret(BINDING_KEY, "mac"))
    yield
    shared_token.client.call(op.DestroyKey(ESCROW_KEY))
    shared_token.client.call(op.DestroyKey(BINDING_KEY))


def port(
    shared: SharedToken, uri: str = "urn:nftrust:cm-proxy:one", registrar: Registrar | None = None
) -> ForeignCaRaPort:
    key = token_private_key(shared.client, shared.labels.p256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signer = SERVICES.issue(uri_sans=[uri], key=key)
    profile = ForeignProfile(("http://cmp.example.org/",), [FOREIGN.certificate], "PBMAC1", timedelta(hours=1))
    return ForeignCaRaPort(profile, registrar, shared.client, key, [signer.certificate], SystemClock())


async def intent(shared: SharedToken, handed: HandedCredential | None) -> bytes:
    wanted = ForeignIntent(
        handle=HANDLE,
        nf_instance_id=NF,
        nf_type="AMF",
        fqdns=("amf.example.org",),
        tenant="default",
        certificate_profile="nf-foreign",
        transport_key=shared.transport_spki,
        re_enrolment=False,
        expire_time=int(datetime.now(UTC).timestamp()) + 3600,
        handed=handed,
    )
    return await port(shared).bind(wanted)


async def package(shared: SharedToken, secret: bytes, uri: str = "urn:nftrust:cm-proxy:one") -> str:
    handed = await seal(shared.client, NF, "ref", secret)
    return (await port(shared, uri).register(await intent(shared, handed))).enrolment_info


def expected(shared: SharedToken) -> ForeignExpectations:
    spki = jose.sha256(shared.transport_spki)
    return ForeignExpectations(NF, spki, [SERVICES.certificate], (), FOREIGN.certificate)


@pytest.mark.usefixtures("escrow")
async def test_from_the_secret_to_the_nf_s_mac(shared_token: SharedToken) -> None:
    secret = secrets.token_hex(24).encode()
    text = await package(shared_token, secret)
    assert is_foreign(text)
    assert secret.decode() not in text
    info, chain = accept_foreign_info(text, expected(shared_token), datetime.now(UTC))
    assert (info.protocol, info.reference, chain) == ("cmp", "ref", (FOREIGN.certificate,))
    wrapped = jose.b64url_decode(info.wrapped_iak)
    made = await shared_token.client.run(op.TransportIakMac(shared_token.labels.transport, wrapped, b"x"))
    assert made == hmac.digest(secret, b"x", hashlib.sha256)


@pytest.mark.usefixtures("escrow")
async def test_what_the_agent_refuses(shared_token: SharedToken) -> None:
    text, good = await package(shared_token, secrets.token_bytes(32)), expected(shared_token)
    not_allowed, invalid = Reason.FOREIGN_CA_RA_NOT_ALLOWED, Reason.ENROLMENT_INFO_INVALID
    cases = [
        (replace(good, trust_anchor=None), not_allowed),
        (replace(good, trust_anchor=OTHER.certificate), not_allowed),
        (replace(good, services_ca=[OTHER.certificate]), invalid),
        (replace(good, cm_proxies=("urn:nftrust:cm-proxy:two",)), invalid),
        (replace(good, nf_instance_id=NF[:-1] + "f"), invalid),
        (replace(good, transport_key_sha256=bytes(32)), invalid),
    ]
    for expectations, reason in cases:
        refuses(text, expectations, reason)
    refuses(text, good, Reason.IAK_EXPIRED, datetime.now(UTC) + timedelta(hours=2))
    head, payload, signature = text.split(".")
    refuses(f"{head}.{payload[:-8]}AAAAAAAA.{signature}", good, invalid)
    refuses(await package(shared_token, secrets.token_bytes(32), "urn:nftrust:oam:one"), good, invalid)
    refuses(await package(shared_token, secrets.token_bytes(32), urn(NF)), good, invalid)


def refuses(text: str, expectations: ForeignExpectations, reason: Reason, now: datetime | None = None) -> None:
    with pytest.raises(NftrustError) as caught:
        accept_foreign_info(text, expectations, now or datetime.now(UTC))
    assert caught.value.reason is reason


class Given:
    """A third party's registrar that gives this, or fails with this."""

    def __init__(self, answer: ForeignCredential | Exception) -> None:
        self.answer = answer
        self.revoked: list[str] = []

    async def register(self, entity: EndEntity) -> ForeignCredential:
        assert entity.handle == HANDLE
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def revoke(self, handle: str) -> None:
        self.revoked.append(handle)
        if isinstance(self.answer, Exception):
            raise self.answer


@pytest.mark.usefixtures("escrow")
async def test_what_a_registrar_gives_arrives(shared_token: SharedToken) -> None:
    secret = secrets.token_bytes(48)
    registrar = Given(ForeignCredential("end-entity", secret))
    asked = port(shared_token, registrar=registrar)
    answer = await asked.register(await intent(shared_token, None))
    info, _ = accept_foreign_info(answer.enrolment_info, expected(shared_token), datetime.now(UTC))
    assert (info.reference, info.registration) == ("end-entity", f"foreignRegistrations/{HANDLE}")
    wrapped = jose.b64url_decode(info.wrapped_iak)
    made = await shared_token.client.run(op.TransportIakMac(shared_token.labels.transport, wrapped, b"x"))
    assert made == hmac.digest(secret, b"x", hashlib.sha256)
    await asked.revoke(answer.registration.name)
    assert registrar.revoked == [HANDLE]


@pytest.mark.usefixtures("escrow")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ForeignCredential("r" * 129, bytes(range(32))), Reason.INVALID_FIELD),
        (ForeignCredential("with space", bytes(range(32))), Reason.INVALID_FIELD),
        (ForeignCredential("r", bytes(range(16))), Reason.INVALID_FIELD),
        (ForeignCredential("r", bytes(64)), Reason.INVALID_FIELD),
        (NftrustError(Reason.FOREIGN_CA_RA_REFUSED), Reason.FOREIGN_CA_RA_REFUSED),
        (ValueError("the secret is hunter2"), Reason.INTERNAL),
    ],
)
async def test_a_registrar_is_not_trusted_blindly(
    shared_token: SharedToken,
    caplog: pytest.LogCaptureFixture,
    answer: ForeignCredential | Exception,
    reason: Reason,
) -> None:
    with pytest.raises(NftrustError) as caught:
        await port(shared_token, registrar=Given(answer)).register(await intent(shared_token, None))
    assert caught.value.reason is reason
    assert "hunter2" not in caplog.text + str(caught.value)


@pytest.mark.usefixtures("escrow")
@pytest.mark.parametrize(
    "column", ["handle", "nf_instance_id", "transport_key", "expire_time", "re_enrolment", "fqdns", "handed", "mac"]
)
async def test_a_row_that_was_changed_is_noticed(shared_token: SharedToken, column: str) -> None:
    """Security rule 7: AES-KW binds nothing, and the database is not what decides whom a secret is wrapped for."""
    secret = secrets.token_bytes(32)
    stored = msgspec.json.decode(await intent(shared_token, await seal(shared_token.client, NF, "ref", secret)))
    other = await seal(shared_token.client, NF, "other", secrets.token_bytes(32))
    changed = {
        "expire_time": stored["expire_time"] + 1,
        "re_enrolment": True,
        "fqdns": ["other.example.org"],
        "handed": msgspec.to_builtins(other),
        "transport_key": stored["mac"],
    }
    stored[column] = changed.get(column, "x")
    if column == "mac":
        stored[column] = changed["handed"]["mac"]  # type: ignore[index]
    await is_tampered(shared_token, msgspec.json.encode(stored))


@pytest.mark.usefixtures("escrow")
async def test_a_secret_is_not_taken_for_another_nf(shared_token: SharedToken) -> None:
    """Swapped before the intent was bound."""
    foreign = await seal(shared_token.client, NF[:-1] + "f", "ref", secrets.token_bytes(32))
    await is_tampered(shared_token, await intent(shared_token, foreign))
    own = await seal(shared_token.client, NF, "ref", secrets.token_bytes(32))
    for swapped in ({"reference": "other"}, {"sealed": foreign.sealed}, {"mac": foreign.mac}):
        await is_tampered(shared_token, await intent(shared_token, msgspec.structs.replace(own, **swapped)))
    await port(shared_token).register(await intent(shared_token, own))


async def is_tampered(shared: SharedToken, stored: bytes) -> None:
    with pytest.raises(NftrustError) as caught:
        await port(shared).register(stored)
    assert caught.value.reason is Reason.STORED_ROW_TAMPERED
