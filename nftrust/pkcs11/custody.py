"""What the custody of the IAK rests on, tried on session objects.

A mechanism list names neither OAEP hashes nor key derivations, and NSS
softokn accepts an unwrap template and ignores it: only trying tells.
"""

from __future__ import annotations

from typing import get_args

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import templates
from nftrust.pkcs11.cryptoki import CryptokiError, Template
from nftrust.pkcs11.operations import CustodyReport, EcdhKdf, OaepHash
from nftrust.pkcs11.session import TokenSession
from nftrust.pkcs11.spki import raw_point

_OAEP_HASHES: dict[OaepHash, hashes.HashAlgorithm] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303 - OAEP needs no collision resistance
_DATA = b"custody probe"

#: Ways out of the locked template: each must be refused.
ESCAPES: tuple[dict[int, object], ...] = (
    {ck.CKA_KEY_TYPE: ck.CKK_AES, ck.CKA_DECRYPT: True},
    {ck.CKA_EXTRACTABLE: True},
    {ck.CKA_SENSITIVE: False},
    {ck.CKA_DECRYPT: True},
    {ck.CKA_WRAP: True},
    {ck.CKA_DERIVE: True},
    {ck.CKA_TOKEN: True},
    {ck.CKA_PRIVATE: False},
    {ck.CKA_MODIFIABLE: True},
    {ck.CKA_COPYABLE: True},
)


def probe(session: TokenSession) -> CustodyReport:
    """Try it. Costs the making of an RSA key on the host, about 100 ms. Raises CryptokiError if the token is lost."""
    return CustodyReport(template_enforced(session), _oaep_hashes(session), _ecdh_kdfs(session))


def template_enforced(session: TokenSession) -> bool:
    """Whether a KEK unwraps into the locked template and into nothing else. Costs a few milliseconds.

    Raises CryptokiError if it is the token that is in trouble.
    """
    try:
        return _keeps_locked(session)
    except CryptokiError:
        if not session.alive():
            raise
        return False


def _keeps_locked(session: TokenSession) -> bool:
    """The same; CryptokiError also where the token cannot do what this takes."""
    module, handle = session.module, session.handle
    birth = templates.newborn_iak(clear=False)
    kek_template = templates.kek("probe", token=False)
    with (
        session.session_object(module.generate_key(handle, templates.SECRET_MECHANISMS["kek"], kek_template)) as kek,
        session.session_object(module.generate_key(handle, templates.SECRET_MECHANISMS["mac"], birth)) as iak,
    ):
        blob = module.wrap(handle, templates.AES_KEY_WRAP, kek, iak)
        if any(_escapes(session, kek, blob, escape) for escape in ESCAPES):
            return False
        # Last: a token that refuses everything has proved nothing.
        locked = module.unwrap(handle, templates.AES_KEY_WRAP, kek, blob, templates.LOCKED_IAK)
        with session.session_object(locked):
            module.sign(handle, templates.HMAC_SHA256, locked, _DATA)
    return True


def _escapes(session: TokenSession, kek: int, blob: bytes, escape: dict[int, object]) -> bool:
    template = Template({**templates.LOCKED_IAK_ATTRIBUTES, **escape})
    try:
        escaped = session.module.unwrap(session.handle, templates.AES_KEY_WRAP, kek, blob, template)
    except CryptokiError:
        return False
    with session.session_object(escaped):
        return True


def _oaep_hashes(session: TokenSession) -> list[OaepHash]:
    """The hashes with which this token wraps so that another party can unwrap."""
    module, handle = session.module, session.handle
    recipient = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = recipient.public_key().public_numbers()
    public = templates.rsa_recipient(numbers.n.to_bytes(256, "big"), b"\x01\x00\x01")
    birth = templates.newborn_iak(clear=True)
    found: list[OaepHash] = []
    with (
        session.session_object(module.generate_key(handle, templates.SECRET_MECHANISMS["mac"], birth)) as iak,
        session.session_object(module.create(handle, public)) as key,
    ):
        value = module.attribute(handle, iak, ck.CKA_VALUE)
        for name, algorithm in _OAEP_HASHES.items():
            oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, None)
            try:
                if recipient.decrypt(module.wrap(handle, templates.OAEP[name], key, iak), oaep) == value:
                    found.append(name)
            except (CryptokiError, ValueError):
                continue
    return found


def _ecdh_kdfs(session: TokenSession) -> list[EcdhKdf]:
    module, handle = session.module, session.handle
    mechanism, public_template, _ = templates.key_pair("probe", "ec-p256", token=False)
    private_template = Template(
        {
            ck.CKA_CLASS: ck.CKO_PRIVATE_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_EC,
            ck.CKA_TOKEN: False,
            ck.CKA_PRIVATE: True,
            ck.CKA_DERIVE: True,
        }
    )
    derived_template = Template({ck.CKA_VALUE_LEN: 32, **templates.LOCKED_IAK_ATTRIBUTES})
    public, private = module.generate_key_pair(handle, mechanism, public_template, private_template)
    found: list[EcdhKdf] = []
    with session.session_object(public), session.session_object(private):
        point = raw_point(module.attribute(handle, public, ck.CKA_EC_POINT))
        for kdf in get_args(EcdhKdf):
            try:
                derived = module.derive(handle, templates.ecdh(kdf, point), private, derived_template)
            except CryptokiError:
                continue
            with session.session_object(derived):
                found.append(kdf)
    return found
