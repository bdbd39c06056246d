"""Custody of the IAK against a holder of the PIN: every way out that is known is tried and must be refused.

The attacker drives the module directly. So that no attack can be refused for
being clumsy, the same attack is shown to succeed on a carelessly made key.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest

from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import templates
from nftrust.pkcs11.cryptoki import Cryptoki, CryptokiError, Mechanism, Template
from nftrust.pkcs11.custody import ESCAPES
from nftrust.pkcs11.locks import FileLock
from nftrust.pkcs11.pin import read_pin
from nftrust.pkcs11.session import TokenSession
from tests.token_fixtures import SharedToken

pytestmark = pytest.mark.token

CKM_AES_ECB = 0x1081
CKM_AES_KEY_WRAP_PAD = 0x210A
CKM_RSA_X_509 = 0x3
CKA_PRIVATE_EXPONENT = 0x123
CKR_ATTRIBUTE_SENSITIVE = 0x11
CKR_KEY_UNEXTRACTABLE = 0x6A
CKR_ACTION_PROHIBITED = 0x1B

CHANGES: list[dict[int, Any]] = [
    {ck.CKA_DECRYPT: True},
    {ck.CKA_EXTRACTABLE: True},
    {ck.CKA_SENSITIVE: False},
    {ck.CKA_SIGN: True},
    {ck.CKA_DERIVE: True},
    {ck.CKA_MODIFIABLE: True},
    {ck.CKA_COPYABLE: True},
    {ck.CKA_UNWRAP_TEMPLATE: Template({ck.CKA_TOKEN: False})},
    {ck.CKA_ALLOWED_MECHANISMS: (CKM_AES_ECB, ck.CKM_RSA_PKCS_OAEP)},
    {ck.CKA_LABEL: "other"},
]


class Attacker:
    """A logged-in session of somebody who knows the PIN."""

    def __init__(self, shared: SharedToken) -> None:
        config = shared.config
        assert config.lock_file is not None
        self.module = Cryptoki(config.module)
        self._library = ctypes.CDLL(str(config.module))
        self._lock = FileLock(config.lock_file)
        with self._lock.held():
            self.module.initialise()
            slot = next(slot for slot in self.module.slots() if self.module.token_label(slot) == config.label)
            self.session = self.module.open_session(slot)
            self.module.login(self.session, ck.CKU_USER, read_pin(config))
        self._tools = TokenSession(self.module, slot, config.label, self.session, self._lock)

    def close(self) -> None:
        self.module.finalise()
        self._lock.close()

    def key(self, label: str, object_class: int) -> int:
        (handle,) = self._tools.find(templates.by_class(object_class, label))
        return handle

    def raw(self, name: str, *arguments: Any) -> None:
        """Call a function that nftrust does not bind. Raises CryptokiError."""
        value = getattr(self._library, f"C_{name}")(ctypes.c_ulong(self.session), *arguments)
        if value:
            raise CryptokiError(name, value)

    def change(self, key: int, attributes: dict[int, Any]) -> None:
        template = Template(attributes)
        with self._lock.held():
            self.raw("SetAttributeValue", ctypes.c_ulong(key), template.array, ctypes.c_ulong(template.count))

    def copy(self, key: int, attributes: dict[int, Any]) -> None:
        template = Template({ck.CKA_TOKEN: False, **attributes})
        with self._lock.held():
            self.raw(
                "CopyObject",
                ctypes.c_ulong(key),
                template.array,
                ctypes.c_ulong(template.count),
                ctypes.byref(ctypes.c_ulong()),
            )

    def decrypt(self, mechanism: Mechanism, key: int, data: bytes) -> bytes:
        self.raw("DecryptInit", mechanism.pointer, ctypes.c_ulong(key))
        out, length = ctypes.create_string_buffer(4096), ctypes.c_ulong(4096)
        self.raw("Decrypt", data, ctypes.c_ulong(len(data)), out, ctypes.byref(length))
        return out.raw[: length.value]

    def unwrap(self, key: int, mechanism: Mechanism, blob: bytes, attributes: dict[int, Any]) -> int:
        return self.module.unwrap(self.session, mechanism, key, blob, Template(attributes))

    def generate(self, mechanism: int, attributes: dict[int, Any]) -> int:
        return self.module.generate_key(self.session, Mechanism(mechanism), Template(attributes))

    def value(self, key: int, attribute: int = ck.CKA_VALUE) -> bytes:
        return self.module.attribute(self.session, key, attribute)


@pytest.fixture
def attacker(shared_token: SharedToken, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacker]:
    for name, value in shared_token.config.environment.items():
        monkeypatch.setenv(name, value)
    attacker = Attacker(shared_token)
    yield attacker
    attacker.close()


@pytest.fixture(scope="module")
def minted(shared_token: SharedToken) -> op.MintedIak:
    """An IAK in the vault and on its way."""
    return shared_token.client.call(op.MintIak("kek", shared_token.transport_spki))


@pytest.fixture(params=["vault", "delivery"])
def wrapped(request: pytest.FixtureRequest, attacker: Attacker, minted: op.MintedIak) -> tuple[int, Mechanism, bytes]:
    """Both places where an IAK rests wrapped: the key that unwraps it, how, and the blob."""
    if request.param == "vault":
        return attacker.key("kek", ck.CKO_SECRET_KEY), templates.AES_KEY_WRAP, minted.vault_blob
    return attacker.key("transport", ck.CKO_PRIVATE_KEY), templates.OAEP["sha1"], minted.delivery


def refused(action: Any, *arguments: Any) -> int:
    """The return value with which the module refuses."""
    with pytest.raises(CryptokiError) as caught:
        action(*arguments)
    return caught.value.value


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: "+".join(map(hex, escape)))
def test_an_iak_is_unwrapped_under_no_other_template(
    attacker: Attacker, wrapped: tuple[int, Mechanism, bytes], escape: dict[int, object]
) -> None:
    attributes = {**templates.LOCKED_IAK_ATTRIBUTES, **escape}
    assert refused(attacker.unwrap, *wrapped, attributes) == ck.CKR_TEMPLATE_INCONSISTENT


@pytest.mark.parametrize("left_out", list(templates.LOCKED_IAK_ATTRIBUTES), ids=hex)
def test_no_attribute_of_the_locked_template_can_be_left_to_a_default(
    attacker: Attacker, wrapped: tuple[int, Mechanism, bytes], left_out: int
) -> None:
    """Left out, it is either refused or still what it should be."""
    attributes = {key: value for key, value in templates.LOCKED_IAK_ATTRIBUTES.items() if key != left_out}
    try:
        escaped = attacker.unwrap(*wrapped, attributes)
    except CryptokiError:
        return
    expected = Template({left_out: templates.LOCKED_IAK_ATTRIBUTES[left_out]})
    held = ctypes.string_at(expected.array[0].value, expected.array[0].length)
    assert attacker.value(escaped, left_out) == held


def test_with_an_unlocked_kek_the_same_attack_reveals_the_iak(attacker: Attacker) -> None:
    """Control: what a KEK with usual capabilities gives away."""
    session = {ck.CKA_TOKEN: False, ck.CKA_PRIVATE: True, ck.CKA_SENSITIVE: True}
    secret = {ck.CKA_CLASS: ck.CKO_SECRET_KEY, **session}
    kek = attacker.generate(
        ck.CKM_AES_KEY_GEN, {**secret, ck.CKA_VALUE_LEN: 32, ck.CKA_WRAP: True, ck.CKA_UNWRAP: True}
    )
    iak = attacker.generate(
        ck.CKM_GENERIC_SECRET_KEY_GEN,
        {**secret, ck.CKA_VALUE_LEN: 32, ck.CKA_SIGN: True, ck.CKA_EXTRACTABLE: True},
    )
    blob = attacker.module.wrap(attacker.session, templates.AES_KEY_WRAP, kek, iak)
    open_key = {**templates.LOCKED_IAK_ATTRIBUTES, ck.CKA_SENSITIVE: False, ck.CKA_EXTRACTABLE: True}
    revealed = attacker.value(attacker.unwrap(kek, templates.AES_KEY_WRAP, blob, open_key))
    mac = attacker.module.sign(attacker.session, templates.HMAC_SHA256, iak, b"x")
    assert hmac.digest(revealed, b"x", "sha256") == mac
    attacker.change(kek, {ck.CKA_DECRYPT: True})
    assert attacker.decrypt(Mechanism(CKM_AES_ECB), kek, bytes(16))


def test_an_unwrapped_iak_cannot_be_read_or_wrapped_again(
    attacker: Attacker, wrapped: tuple[int, Mechanism, bytes]
) -> None:
    iak = attacker.unwrap(*wrapped, templates.LOCKED_IAK_ATTRIBUTES)
    assert refused(attacker.value, iak) == CKR_ATTRIBUTE_SENSITIVE
    own = attacker.generate(
        ck.CKM_AES_KEY_GEN,
        {ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_TOKEN: False, ck.CKA_VALUE_LEN: 32, ck.CKA_WRAP: True},
    )
    for key in (own, attacker.key("kek", ck.CKO_SECRET_KEY)):
        assert (
            refused(attacker.module.wrap, attacker.session, templates.AES_KEY_WRAP, key, iak) == CKR_KEY_UNEXTRACTABLE
        )
    for mechanism in (Mechanism(CKM_AES_ECB), templates.AES_KEY_WRAP):
        refused(attacker.decrypt, mechanism, iak, bytes(16))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "+".join(map(hex, change)))
def test_no_key_can_be_changed_or_copied_into_another(
    attacker: Attacker, minted: op.MintedIak, change: dict[int, Any]
) -> None:
    kek = attacker.key("kek", ck.CKO_SECRET_KEY)
    keys = [
        kek,
        attacker.key("mac", ck.CKO_SECRET_KEY),
        attacker.key("transport", ck.CKO_PRIVATE_KEY),
        attacker.key("p256", ck.CKO_PRIVATE_KEY),
        attacker.unwrap(kek, templates.AES_KEY_WRAP, minted.vault_blob, templates.LOCKED_IAK_ATTRIBUTES),
    ]
    for key in keys:
        assert refused(attacker.change, key, change) == CKR_ACTION_PROHIBITED
        assert refused(attacker.copy, key, change) == CKR_ACTION_PROHIBITED
        assert refused(attacker.copy, key, {}) == CKR_ACTION_PROHIBITED


def test_the_parents_decrypt_nothing(attacker: Attacker, minted: op.MintedIak) -> None:
    """Wrap-then-decrypt with the KEK, and decrypting a delivery with the transport key."""
    kek = attacker.key("kek", ck.CKO_SECRET_KEY)
    transport = attacker.key("transport", ck.CKO_PRIVATE_KEY)
    for mechanism, key, data in (
        (Mechanism(CKM_AES_ECB), kek, minted.vault_blob[:32]),
        (templates.AES_KEY_WRAP, kek, minted.vault_blob),
        (templates.OAEP["sha1"], transport, minted.delivery),
        (Mechanism(CKM_RSA_X_509), transport, minted.delivery),
        (templates.RSA_PKCS1V15, transport, minted.delivery),
    ):
        refused(attacker.decrypt, mechanism, key, data)
    # Another unwrapping mechanism would not carry the template's promise over.
    for mechanism, key, blob in (
        (Mechanism(CKM_AES_KEY_WRAP_PAD), kek, minted.vault_blob),
        (templates.RSA_PKCS1V15, transport, minted.delivery),
    ):
        assert (
            refused(attacker.unwrap, key, mechanism, blob, templates.LOCKED_IAK_ATTRIBUTES) == ck.CKR_MECHANISM_INVALID
        )


def test_no_key_leaves_the_token(attacker: Attacker) -> None:
    kek = attacker.key("kek", ck.CKO_SECRET_KEY)
    for label, object_class, attribute in (
        ("kek", ck.CKO_SECRET_KEY, ck.CKA_VALUE),
        ("mac", ck.CKO_SECRET_KEY, ck.CKA_VALUE),
        ("p256", ck.CKO_PRIVATE_KEY, ck.CKA_VALUE),
        ("p384", ck.CKO_PRIVATE_KEY, ck.CKA_VALUE),
        ("rsa", ck.CKO_PRIVATE_KEY, CKA_PRIVATE_EXPONENT),
        ("transport", ck.CKO_PRIVATE_KEY, CKA_PRIVATE_EXPONENT),
    ):
        key = attacker.key(label, object_class)
        assert refused(attacker.value, key, attribute) == CKR_ATTRIBUTE_SENSITIVE
        assert (
            refused(attacker.module.wrap, attacker.session, templates.AES_KEY_WRAP, kek, key) == CKR_KEY_UNEXTRACTABLE
        )


def test_a_key_has_one_use(attacker: Attacker) -> None:
    """The transport key does not sign, signing keys neither agree on keys nor unwrap, the MAC key does not wrap."""
    module, session = attacker.module, attacker.session
    transport = attacker.key("transport", ck.CKO_PRIVATE_KEY)
    digest = hashlib.sha256().digest()
    for mechanism in (templates.RSA_PKCS1V15, templates.PSS["sha256"]):
        refused(module.sign, session, mechanism, transport, digest)
    p256, public = attacker.key("p256", ck.CKO_PRIVATE_KEY), attacker.key("p256", ck.CKO_PUBLIC_KEY)
    point = attacker.value(public, ck.CKA_EC_POINT)
    refused(module.derive, session, templates.ecdh("null", point), p256, templates.LOCKED_IAK)
    rsa = attacker.key("rsa", ck.CKO_PRIVATE_KEY)
    refused(attacker.decrypt, templates.OAEP["sha1"], rsa, bytes(384))
    refused(attacker.unwrap, rsa, templates.OAEP["sha1"], bytes(384), templates.LOCKED_IAK_ATTRIBUTES)


def test_without_the_pin_there_is_nothing_to_see(attacker: Attacker) -> None:
    attacker.raw("Logout")
    for object_class in (ck.CKO_PRIVATE_KEY, ck.CKO_SECRET_KEY):
        assert list(attacker.module.find(attacker.session, templates.by_class(object_class))) == []
