"""What NSS softokn cannot do, said as it is: it accepts an unwrap template and ignores it, so it guards no IAK.

The rest of the contract runs on it too: see ``signing_token`` and
``any_token``, and docs/tokens.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nftrust.config import TokenConfig
from nftrust.errors import Reason
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import templates
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.cryptoki import Cryptoki, CryptokiError, Template
from nftrust.pkcs11.custody import ESCAPES
from nftrust.pkcs11.pin import read_pin
from tests.contract.test_pkcs11_life import reason, start_error
from tests.token_fixtures import SharedToken

pytestmark = pytest.mark.token

MAKERS = pytest.mark.parametrize("make", [TokenClient.in_process, TokenClient.worker])


class Opened:
    """The module itself, in this process, logged in."""

    def __init__(self, config: TokenConfig) -> None:
        self.module = Cryptoki(config.module)
        self.module.initialise(config.module_parameters)
        [slot] = [slot for slot in self.module.slots() if self.module.token_label(slot) == config.label]
        self.session = self.module.open_session(slot)
        self.module.login(self.session, ck.CKU_USER, read_pin(config))

    def secret(self, kind: op.SecretKind, template: Template) -> int:
        return self.module.generate_key(self.session, templates.SECRET_MECHANISMS[kind], template)


@pytest.fixture
def nss(nss_token: SharedToken) -> Iterator[Opened]:
    it = Opened(nss_token.config)
    yield it
    it.module.finalise()


def test_custody_is_not_proved(nss_token: SharedToken) -> None:
    """Though it has the better mechanisms: OAEP by SHA-256, ECDH with a key derivation."""
    assert nss_token.client.call(op.ProbeCustody()) == op.CustodyReport(False, ["sha1", "sha256"], ["null", "sha256"])
    assert reason(lambda: nss_token.client.call(op.ProveCustody())) is Reason.TOKEN_CUSTODY_UNPROVEN


@pytest.mark.parametrize(
    "operation", [op.GenerateSecret("kek", "kek"), op.GenerateKeyPair("transport", "rsa-transport")]
)
def test_no_key_that_guards_iaks_is_made(nss_token: SharedToken, operation: op.Operation[object]) -> None:
    assert reason(lambda: nss_token.client.call(operation)) is Reason.TOKEN_CUSTODY_UNPROVEN
    assert nss_token.client.available
    assert nss_token.client.call(op.ListKeys()) == [
        op.KeyInfo("mac", "secret"),
        op.KeyInfo("p256", "private"),
        op.KeyInfo("p384", "private"),
        op.KeyInfo("rsa", "private"),
    ]


def test_without_such_keys_there_are_no_iaks(nss_token: SharedToken) -> None:
    for operation in (
        op.MintIak("kek", None),
        op.VerifyIakMac("kek", bytes(op.VAULT_BLOB_BYTES), b"", bytes(32)),
        op.TransportIakMac("transport", bytes(384), b""),
    ):
        assert reason(lambda asked=operation: nss_token.client.call(asked)) is Reason.KEY_MISSING  # type: ignore[misc]


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: "+".join(map(hex, escape)))
def test_the_unwrap_template_is_ignored(nss: Opened, escape: dict[int, object]) -> None:
    """The refusal above is just: a KEK with the template unwraps an IAK into anything, readable too."""
    kek = nss.secret("kek", templates.kek("probe", token=False))
    iak = nss.secret("mac", templates.newborn_iak(clear=False))
    blob = nss.module.wrap(nss.session, templates.AES_KEY_WRAP, kek, iak)
    attributes = {**templates.LOCKED_IAK_ATTRIBUTES, **escape}
    if ck.CKA_TOKEN in escape:
        del attributes[ck.CKA_COPYABLE]  # which it does not keep with a token object
    escaped = nss.module.unwrap(nss.session, templates.AES_KEY_WRAP, kek, blob, Template(attributes))
    if ck.CKA_TOKEN in escape:
        nss.module.destroy(nss.session, escaped)
    readable = {**attributes, ck.CKA_TOKEN: False, ck.CKA_SENSITIVE: False, ck.CKA_EXTRACTABLE: True}
    escaped = nss.module.unwrap(nss.session, templates.AES_KEY_WRAP, kek, blob, Template(readable))
    assert len(nss.module.attribute(nss.session, escaped, ck.CKA_VALUE)) == op.IAK_BYTES


@pytest.mark.parametrize("attribute", [ck.CKA_COPYABLE, ck.CKA_ALLOWED_MECHANISMS], ids=hex)
def test_attributes_it_does_not_keep_are_left_out(nss: Opened, attribute: int) -> None:
    """Else it refuses the whole key, with CKR_GENERAL_ERROR."""
    value = {ck.CKA_COPYABLE: False, ck.CKA_ALLOWED_MECHANISMS: (ck.CKM_SHA256_HMAC,)}[attribute]
    kept = {ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_TOKEN: True, ck.CKA_VALUE_LEN: 32, ck.CKA_LABEL: "kept"}
    with pytest.raises(CryptokiError) as caught:
        nss.secret("mac", Template({**kept, attribute: value}))
    assert caught.value.value == ck.CKR_GENERAL_ERROR
    nss.module.destroy(nss.session, nss.secret("mac", Template(kept)))


@pytest.mark.parametrize("label", ["mac", "p256", "p384", "rsa"])
def test_the_keys_it_holds_cannot_be_read(nss: Opened, label: str) -> None:
    """What is left without these attributes."""
    object_class = ck.CKO_SECRET_KEY if label == "mac" else ck.CKO_PRIVATE_KEY
    [key] = nss.module.find(nss.session, templates.by_class(object_class, label))
    for attribute, value in ((ck.CKA_SENSITIVE, 1), (ck.CKA_EXTRACTABLE, 0), (ck.CKA_PRIVATE, 1)):
        assert nss.module.attribute(nss.session, key, attribute) == bytes([value])
    private_exponent = 0x123
    with pytest.raises(CryptokiError):
        nss.module.attribute(nss.session, key, private_exponent if label == "rsa" else ck.CKA_VALUE)


@MAKERS
def test_without_its_parameters_it_does_not_start(
    make: Callable[[TokenConfig], TokenClient], nss_token: SharedToken, tmp_path: Path
) -> None:
    def changed(parameters: str) -> TokenConfig:
        return msgspec.structs.replace(nss_token.config, module_parameters=parameters)

    assert start_error(make, changed("")) is Reason.CONFIG_INVALID
    assert start_error(make, changed(f"configdir='sql:{tmp_path}/absent'")) is Reason.TOKEN_MISSING


@MAKERS
def test_a_module_that_takes_no_parameters_says_so(
    make: Callable[[TokenConfig], TokenClient], fresh_token: TokenConfig
) -> None:
    config = msgspec.structs.replace(fresh_token, module_parameters="configdir='sql:/'")
    assert start_error(make, config) is Reason.CONFIG_INVALID
