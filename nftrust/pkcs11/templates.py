"""What each key in the token may do: attribute templates and mechanisms, as data.

Every attribute that matters is written out, none is left to the module's
defaults (SoftHSM's let an AES key decrypt *and* wrap, which reveals what it
wrapped). ``CKA_MODIFIABLE`` comes last: SoftHSM refuses what follows it.

Some modules cannot keep ``CKA_COPYABLE`` and ``CKA_ALLOWED_MECHANISMS`` with a
token object (NSS softokn). The templates of keys that guard no IAK leave them
out where ``portable`` is asked for; private, sensitive, never extractable and
of one use these keys are all the same.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal

from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11.cryptoki import Mechanism, Template
from nftrust.pkcs11.operations import IAK_BYTES, EcdhKdf, HashName, KeyPairKind, OaepHash, SecretKind

#: How a key is looked up: by label, and by what it can do.
KeyRole = Literal["ecdsa", "rsa", "transport", "kek", "mac", "escrow"]

_NOTHING_PUBLIC = {
    ck.CKA_ENCRYPT: False,
    ck.CKA_WRAP: False,
    ck.CKA_VERIFY: False,
    ck.CKA_VERIFY_RECOVER: False,
}
_NOTHING_PRIVATE = {
    ck.CKA_DECRYPT: False,
    ck.CKA_UNWRAP: False,
    ck.CKA_SIGN: False,
    ck.CKA_SIGN_RECOVER: False,
    ck.CKA_DERIVE: False,
}
_NOTHING_SECRET = {
    ck.CKA_ENCRYPT: False,
    ck.CKA_DECRYPT: False,
    ck.CKA_WRAP: False,
    ck.CKA_UNWRAP: False,
    ck.CKA_SIGN: False,
    ck.CKA_VERIFY: False,
    ck.CKA_DERIVE: False,
}
_SECRECY = {ck.CKA_PRIVATE: True, ck.CKA_SENSITIVE: True, ck.CKA_EXTRACTABLE: False}
_FROZEN = {ck.CKA_COPYABLE: False, ck.CKA_MODIFIABLE: False}
_NOT_PORTABLE = (ck.CKA_COPYABLE, ck.CKA_ALLOWED_MECHANISMS)

#: An IAK after its birth: a session object that makes HMACs and nothing else. The very
#: same attributes are the unwrap template of both parents, because SoftHSM compares.
LOCKED_IAK_ATTRIBUTES: dict[int, Any] = {
    ck.CKA_CLASS: ck.CKO_SECRET_KEY,
    ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
    ck.CKA_TOKEN: False,
    **_SECRECY,
    **_NOTHING_SECRET,
    ck.CKA_SIGN: True,
    **_FROZEN,
}
LOCKED_IAK = Template(LOCKED_IAK_ATTRIBUTES)
#: A foreign CA/RA's secret in the token: a session object that can be wrapped and nothing else.
PASSING_ATTRIBUTES: dict[int, Any] = {
    ck.CKA_CLASS: ck.CKO_SECRET_KEY,
    ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
    ck.CKA_TOKEN: False,
    ck.CKA_PRIVATE: True,
    ck.CKA_SENSITIVE: True,
    ck.CKA_EXTRACTABLE: True,
    **_NOTHING_SECRET,
    **_FROZEN,
}
PASSING_SECRET = Template(PASSING_ATTRIBUTES)


def newborn_iak(*, clear: bool) -> Template:
    """An IAK at its birth: a session object that can be wrapped and, for TLS-only delivery, read."""
    return Template(
        {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
            ck.CKA_VALUE_LEN: IAK_BYTES,
            ck.CKA_TOKEN: False,
            ck.CKA_PRIVATE: True,
            ck.CKA_SENSITIVE: not clear,
            ck.CKA_EXTRACTABLE: True,
            **_NOTHING_SECRET,
            **_FROZEN,
        }
    )


def passing_secret(value: bytes) -> Template:
    """A foreign CA/RA's secret on its way through the token."""
    return Template({ck.CKA_VALUE: value, **PASSING_ATTRIBUTES})


def kek(label: str, *, token: bool = True) -> Template:
    """The vault's AES-256 key: wraps and unwraps by AES-KW, only into the locked template."""
    return _wrapping_key(label, token, LOCKED_IAK)


def escrow(label: str) -> Template:
    """The AES-256 key for foreign secrets: wraps and unwraps by AES-KW, only into what can be wrapped again."""
    return _wrapping_key(label, True, PASSING_SECRET)


def _wrapping_key(label: str, token: bool, unwrapped: Template) -> Template:
    return Template(
        {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_AES,
            ck.CKA_VALUE_LEN: 32,
            **_naming(label, token),
            **_SECRECY,
            **_NOTHING_SECRET,
            ck.CKA_WRAP: True,
            ck.CKA_UNWRAP: True,
            ck.CKA_UNWRAP_TEMPLATE: unwrapped,
            ck.CKA_ALLOWED_MECHANISMS: (ck.CKM_AES_KEY_WRAP,),
            **_FROZEN,
        }
    )


def mac_key(label: str, *, length: int | None = None, value: bytes | None = None, portable: bool = False) -> Template:
    """An HMAC-SHA256 key in the token, to be generated (``length``) or imported (``value``)."""
    content = {ck.CKA_VALUE_LEN: length} if value is None else {ck.CKA_VALUE: value}
    return _template(
        portable,
        {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
            **content,
            **_naming(label, True),
            **_SECRECY,
            **_NOTHING_SECRET,
            ck.CKA_SIGN: True,
            ck.CKA_ALLOWED_MECHANISMS: (ck.CKM_SHA256_HMAC,),
            **_FROZEN,
        },
    )


def key_pair(
    label: str, kind: KeyPairKind, *, token: bool = True, portable: bool = False
) -> tuple[Mechanism, Template, Template]:
    """Mechanism, public and private template to generate a key pair."""
    mechanism, key_type, parameters, private_use = _KEY_PAIRS[kind]
    public = _template(
        portable,
        {
            ck.CKA_CLASS: ck.CKO_PUBLIC_KEY,
            ck.CKA_KEY_TYPE: key_type,
            **parameters,
            **_naming(label, token),
            ck.CKA_PRIVATE: False,
            **_NOTHING_PUBLIC,
            ck.CKA_VERIFY: ck.CKA_SIGN in private_use,
            ck.CKA_WRAP: ck.CKA_UNWRAP in private_use,
            **_FROZEN,
        },
    )
    private = _template(
        portable,
        {
            ck.CKA_CLASS: ck.CKO_PRIVATE_KEY,
            ck.CKA_KEY_TYPE: key_type,
            **_naming(label, token),
            **_SECRECY,
            **_NOTHING_PRIVATE,
            **private_use,
            **_FROZEN,
        },
    )
    return mechanism, public, private


def rsa_recipient(modulus: bytes, exponent: bytes) -> Template:
    """Somebody else's RSA key as a session object that wraps."""
    return Template(
        {
            ck.CKA_CLASS: ck.CKO_PUBLIC_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_RSA,
            ck.CKA_MODULUS: modulus,
            ck.CKA_PUBLIC_EXPONENT: exponent,
            ck.CKA_TOKEN: False,
            ck.CKA_PRIVATE: False,
            **_NOTHING_PUBLIC,
            ck.CKA_WRAP: True,
        }
    )


def by_class(object_class: int, label: str | None = None) -> Template:
    """Finds token objects of a class, by label if given."""
    named = {} if label is None else {ck.CKA_LABEL: label}
    return Template({ck.CKA_CLASS: object_class, ck.CKA_TOKEN: True, **named})


def by_role(label: str, role: KeyRole) -> Template:
    """Finds the token key of this label that can do this."""
    return Template({ck.CKA_LABEL: label, ck.CKA_TOKEN: True, **_ROLES[role]})


def _template(portable: bool, attributes: dict[int, Any]) -> Template:
    left_out = _NOT_PORTABLE if portable else ()
    return Template({key: value for key, value in attributes.items() if key not in left_out})


def _naming(label: str, token: bool) -> dict[int, Any]:
    """Label and id are the same text, so that PKCS#11 URIs can use either."""
    return {ck.CKA_TOKEN: token, ck.CKA_LABEL: label, ck.CKA_ID: label.encode("ascii")}


_SIGNS: dict[int, Any] = {ck.CKA_SIGN: True}
_UNWRAPS_IAKS: dict[int, Any] = {
    ck.CKA_UNWRAP: True,
    ck.CKA_UNWRAP_TEMPLATE: LOCKED_IAK,
    ck.CKA_ALLOWED_MECHANISMS: (ck.CKM_RSA_PKCS_OAEP,),
}
_RSA_3072 = {ck.CKA_MODULUS_BITS: 3072, ck.CKA_PUBLIC_EXPONENT: b"\x01\x00\x01"}
#: DER of the curves' object identifiers.
EC_PARAMETERS = {
    "ec-p256": bytes.fromhex("06082a8648ce3d030107"),
    "ec-p384": bytes.fromhex("06052b81040022"),
}
_EC = Mechanism(ck.CKM_EC_KEY_PAIR_GEN)
_RSA = Mechanism(ck.CKM_RSA_PKCS_KEY_PAIR_GEN)
_KEY_PAIRS: dict[KeyPairKind, tuple[Mechanism, int, dict[int, Any], dict[int, Any]]] = {
    "ec-p256": (_EC, ck.CKK_EC, {ck.CKA_EC_PARAMS: EC_PARAMETERS["ec-p256"]}, _SIGNS),
    "ec-p384": (_EC, ck.CKK_EC, {ck.CKA_EC_PARAMS: EC_PARAMETERS["ec-p384"]}, _SIGNS),
    "rsa-3072": (_RSA, ck.CKK_RSA, _RSA_3072, _SIGNS),
    "rsa-transport": (_RSA, ck.CKK_RSA, _RSA_3072, _UNWRAPS_IAKS),
}
SECRET_MECHANISMS: dict[SecretKind, Mechanism] = {
    "kek": Mechanism(ck.CKM_AES_KEY_GEN),
    "escrow": Mechanism(ck.CKM_AES_KEY_GEN),
    "mac": Mechanism(ck.CKM_GENERIC_SECRET_KEY_GEN),
}
_ROLES: dict[KeyRole, dict[int, Any]] = {
    "ecdsa": {ck.CKA_CLASS: ck.CKO_PRIVATE_KEY, ck.CKA_KEY_TYPE: ck.CKK_EC, ck.CKA_SIGN: True},
    "rsa": {ck.CKA_CLASS: ck.CKO_PRIVATE_KEY, ck.CKA_KEY_TYPE: ck.CKK_RSA, ck.CKA_SIGN: True},
    "transport": {ck.CKA_CLASS: ck.CKO_PRIVATE_KEY, ck.CKA_KEY_TYPE: ck.CKK_RSA, ck.CKA_UNWRAP: True},
    "kek": {ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_KEY_TYPE: ck.CKK_AES, ck.CKA_UNWRAP: True},
    "escrow": {ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_KEY_TYPE: ck.CKK_AES, ck.CKA_UNWRAP: True},
    "mac": {ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET, ck.CKA_SIGN: True},
}


class _OaepParameters(ctypes.Structure):
    _fields_ = [
        ("hash", ctypes.c_ulong),
        ("mgf", ctypes.c_ulong),
        ("source", ctypes.c_ulong),
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_ulong),
    ]


class _PssParameters(ctypes.Structure):
    _fields_ = [("hash", ctypes.c_ulong), ("mgf", ctypes.c_ulong), ("salt", ctypes.c_ulong)]


class _EcdhParameters(ctypes.Structure):
    _fields_ = [
        ("kdf", ctypes.c_ulong),
        ("shared_length", ctypes.c_ulong),
        ("shared", ctypes.c_void_p),
        ("public_length", ctypes.c_ulong),
        ("public", ctypes.c_char_p),
    ]


ECDSA = Mechanism(ck.CKM_ECDSA)
RSA_PKCS1V15 = Mechanism(ck.CKM_RSA_PKCS)
HMAC_SHA256 = Mechanism(ck.CKM_SHA256_HMAC)
AES_KEY_WRAP = Mechanism(ck.CKM_AES_KEY_WRAP)
OAEP: dict[OaepHash, Mechanism] = {
    "sha1": Mechanism(
        ck.CKM_RSA_PKCS_OAEP, _OaepParameters(ck.CKM_SHA_1, ck.CKG_MGF1_SHA1, ck.CKZ_DATA_SPECIFIED, None, 0)
    ),
    "sha256": Mechanism(
        ck.CKM_RSA_PKCS_OAEP, _OaepParameters(ck.CKM_SHA256, ck.CKG_MGF1_SHA256, ck.CKZ_DATA_SPECIFIED, None, 0)
    ),
}
#: The salt is as long as the digest (RFC 7518 clause 3.5, TS 33.310).
PSS: dict[HashName, Mechanism] = {
    "sha256": Mechanism(ck.CKM_RSA_PKCS_PSS, _PssParameters(ck.CKM_SHA256, ck.CKG_MGF1_SHA256, 32)),
    "sha384": Mechanism(ck.CKM_RSA_PKCS_PSS, _PssParameters(ck.CKM_SHA384, ck.CKG_MGF1_SHA384, 48)),
    "sha512": Mechanism(ck.CKM_RSA_PKCS_PSS, _PssParameters(ck.CKM_SHA512, ck.CKG_MGF1_SHA512, 64)),
}
#: DER of a DigestInfo up to the digest (RFC 8017 clause 9.2).
DIGEST_INFO: dict[HashName, bytes] = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


def ecdh(kdf: EcdhKdf, public_point: bytes) -> Mechanism:
    """ECDH with this key derivation and no shared info."""
    number = ck.CKD_NULL if kdf == "null" else ck.CKD_SHA256_KDF
    return Mechanism(ck.CKM_ECDH1_DERIVE, _EcdhParameters(number, 0, None, len(public_point), public_point))
