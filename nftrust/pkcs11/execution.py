"""What each operation does on a session. One function per operation; :data:`EXECUTORS` maps them."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import spki, templates
from nftrust.pkcs11.cryptoki import CryptokiError, Template
from nftrust.pkcs11.custody import probe, template_enforced
from nftrust.pkcs11.session import TokenSession

#: Answers to an attribute that the module does not know. NSS softokn: CKR_GENERAL_ERROR.
_ATTRIBUTE_REFUSED = frozenset(
    {
        ck.CKR_GENERAL_ERROR,
        ck.CKR_ATTRIBUTE_TYPE_INVALID,
        ck.CKR_ATTRIBUTE_VALUE_INVALID,
        ck.CKR_TEMPLATE_INCONSISTENT,
    }
)
_CLASSES = (ck.CKO_PRIVATE_KEY, ck.CKO_SECRET_KEY, ck.CKO_PUBLIC_KEY)


def _public_key(session: TokenSession, operation: op.PublicKey) -> bytes:
    private = session.find(templates.by_class(ck.CKO_PRIVATE_KEY, operation.label))
    public = session.find(templates.by_class(ck.CKO_PUBLIC_KEY, operation.label))
    if len(private) == 1 and len(public) == 1:
        return _spki(session, public[0])
    raise session.missing(operation.label)


def _generate_key_pair(session: TokenSession, operation: op.GenerateKeyPair) -> bytes:
    label, kind = operation.label, operation.kind

    def make(portable: bool) -> int:
        pair = templates.key_pair(label, kind, portable=portable)
        public, _ = session.module.generate_key_pair(session.handle, *pair)
        return public

    if kind == "rsa-transport":
        _require_custody(session)
        return _spki(session, _made(session, label, lambda: make(False)))
    return _spki(session, _made_where_possible(session, label, make))


def _destroy_key(session: TokenSession, operation: op.DestroyKey) -> None:
    destroyed = False
    with session.lock.held():
        for object_class in _CLASSES:
            for handle in session.module.find(session.handle, templates.by_class(object_class, operation.label)):
                session.module.destroy(session.handle, handle)
                destroyed = destroyed or object_class != ck.CKO_PUBLIC_KEY
    session.forget(operation.label)
    if not destroyed:
        raise session.missing(operation.label)


def _list_keys(session: TokenSession, _: op.ListKeys) -> list[op.KeyInfo]:
    keys = [
        *(
            op.KeyInfo(session.text(key, ck.CKA_LABEL), "private")
            for key in session.find(templates.by_class(ck.CKO_PRIVATE_KEY))
        ),
        *(
            op.KeyInfo(session.text(key, ck.CKA_LABEL), "secret")
            for key in session.find(templates.by_class(ck.CKO_SECRET_KEY))
        ),
    ]
    if not keys and not session.alive():
        raise NftrustError(Reason.TOKEN_UNAVAILABLE)
    return sorted(keys, key=lambda key: (key.label, key.type))


def _sign_digest(session: TokenSession, operation: op.SignDigest) -> bytes:
    mechanism, message = templates.ECDSA, operation.digest
    role: templates.KeyRole = "ecdsa"
    if operation.scheme == "rsa-pss":
        mechanism, role = templates.PSS[operation.hash], "rsa"
    elif operation.scheme == "rsa-pkcs1v15":
        mechanism, role = templates.RSA_PKCS1V15, "rsa"
        message = templates.DIGEST_INFO[operation.hash] + operation.digest
    return session.with_key(
        operation.label, role, lambda key: session.module.sign(session.handle, mechanism, key, message)
    )


def _generate_secret(session: TokenSession, operation: op.GenerateSecret) -> None:
    label, mechanism = operation.label, templates.SECRET_MECHANISMS[operation.kind]

    def make(template: Template) -> int:
        return session.module.generate_key(session.handle, mechanism, template)

    if operation.kind == "mac":
        _made_where_possible(
            session, label, lambda portable: make(templates.mac_key(label, length=op.MAC_BYTES, portable=portable))
        )
        return
    _require_custody(session)
    template = templates.kek if operation.kind == "kek" else templates.escrow
    _made(session, label, lambda: make(template(label)))


def _import_secret(session: TokenSession, operation: op.ImportSecret) -> None:
    def make(portable: bool) -> int:
        template = templates.mac_key(operation.label, value=operation.value, portable=portable)
        return session.module.create(session.handle, template)

    _made_where_possible(session, operation.label, make)


def _seal_secret(session: TokenSession, operation: op.SealSecret) -> bytes:
    passing = session.module.create(session.handle, templates.passing_secret(operation.value))
    with session.session_object(passing) as secret:
        return session.with_key(
            operation.kek_label,
            "escrow",
            lambda kek: session.module.wrap(session.handle, templates.AES_KEY_WRAP, kek, secret),
        )


def _rewrap_secret(session: TokenSession, operation: op.RewrapSecret) -> bytes:
    recipient = spki.transport_numbers(operation.recipient_spki)
    module, handle = session.module, session.handle

    def use(kek: int) -> bytes:
        passing = session.unwrap(
            templates.AES_KEY_WRAP, kek, operation.blob, templates.PASSING_SECRET, Reason.STORED_ROW_TAMPERED
        )
        with (
            session.session_object(passing) as secret,
            session.session_object(module.create(handle, templates.rsa_recipient(*recipient))) as key,
        ):
            return module.wrap(handle, templates.OAEP[operation.oaep_hash], key, secret)

    return session.with_key(operation.kek_label, "escrow", use)


def _mac(session: TokenSession, operation: op.Mac) -> bytes:
    return session.with_key(operation.label, "mac", lambda key: _hmac(session, key, operation.data))


def _verify_mac(session: TokenSession, operation: op.VerifyMac) -> bool:
    expected = session.with_key(operation.label, "mac", lambda key: _hmac(session, key, operation.data))
    return hmac.compare_digest(expected, operation.mac)


def _mint_iak(session: TokenSession, operation: op.MintIak) -> op.MintedIak:
    clear = operation.recipient_spki is None
    recipient = None if operation.recipient_spki is None else spki.transport_numbers(operation.recipient_spki)
    module, handle = session.module, session.handle
    birth = templates.newborn_iak(clear=clear)
    with session.session_object(module.generate_key(handle, templates.SECRET_MECHANISMS["mac"], birth)) as iak:
        blob = session.with_key(
            operation.kek_label, "kek", lambda kek: module.wrap(handle, templates.AES_KEY_WRAP, kek, iak)
        )
        if recipient is None:
            delivery = module.attribute(handle, iak, ck.CKA_VALUE)
        else:
            with session.session_object(module.create(handle, templates.rsa_recipient(*recipient))) as key:
                delivery = module.wrap(handle, templates.OAEP[operation.oaep_hash], key, iak)
    return op.MintedIak(blob, delivery)


def _verify_iak_mac(session: TokenSession, operation: op.VerifyIakMac) -> bool:
    # A token reports no length of an unwrapped key: the blob's own is the only check there is.
    if len(operation.vault_blob) != op.VAULT_BLOB_BYTES:
        raise NftrustError(Reason.STORED_ROW_TAMPERED)

    def use(kek: int) -> bytes:
        unwrapped = session.unwrap_iak(templates.AES_KEY_WRAP, kek, operation.vault_blob, Reason.STORED_ROW_TAMPERED)
        with session.session_object(unwrapped) as iak:
            return _hmac(session, iak, operation.data)

    expected = session.with_key(operation.kek_label, "kek", use)
    return hmac.compare_digest(expected, operation.mac)


def _transport_iak_mac(session: TokenSession, operation: op.TransportIakMac) -> bytes:
    if not op.MIN_MODULUS_BYTES <= len(operation.wrapped_iak) <= op.MAX_MODULUS_BYTES:
        raise NftrustError(Reason.ENROLMENT_INFO_INVALID)

    def use(key: int) -> bytes:
        mechanism = templates.OAEP[operation.oaep_hash]
        unwrapped = session.unwrap_iak(mechanism, key, operation.wrapped_iak, Reason.ENROLMENT_INFO_INVALID)
        with session.session_object(unwrapped) as iak:
            return _hmac(session, iak, operation.data)

    return session.with_key(operation.transport_label, "transport", use)


def _probe_custody(session: TokenSession, _: op.ProbeCustody) -> op.CustodyReport:
    return probe(session)


def _prove_custody(session: TokenSession, _: op.ProveCustody) -> None:
    _require_custody(session)


def _hmac(session: TokenSession, key: int, data: bytes) -> bytes:
    return session.module.sign(session.handle, templates.HMAC_SHA256, key, data)


def _spki(session: TokenSession, public: int) -> bytes:
    def read(attribute: int) -> bytes:
        return session.module.attribute(session.handle, public, attribute)

    if session.module.number(session.handle, public, ck.CKA_KEY_TYPE) == ck.CKK_EC:
        return spki.ec_spki(read(ck.CKA_EC_PARAMS), read(ck.CKA_EC_POINT))
    return spki.rsa_spki(read(ck.CKA_MODULUS), read(ck.CKA_PUBLIC_EXPONENT))


def _made(session: TokenSession, label: str, make: Callable[[], int]) -> int:
    """The handle of what ``make`` puts into the token under a label that nothing has."""
    with session.lock.held():
        session.require_free(label)
        handle = make()
    session.forget(label)
    return handle


def _made_where_possible(session: TokenSession, label: str, make: Callable[[bool], int]) -> int:
    """The same for a key that guards no IAK: ``make(True)`` gives it portable attributes only.

    That is for tokens that cannot keep the others, never for one that can
    guard IAKs: there a failure is a failure.
    """
    try:
        return _made(session, label, lambda: make(False))
    except CryptokiError as error:
        if error.value not in _ATTRIBUTE_REFUSED or template_enforced(session):
            raise
    return _made(session, label, lambda: make(True))


def _require_custody(session: TokenSession) -> None:
    """A key that guards IAKs is not made in a token that would let them out."""
    if not template_enforced(session):
        raise NftrustError(Reason.TOKEN_CUSTODY_UNPROVEN)


EXECUTORS: Mapping[type, Callable[[TokenSession, Any], Any]] = {
    op.PublicKey: _public_key,
    op.GenerateKeyPair: _generate_key_pair,
    op.DestroyKey: _destroy_key,
    op.ListKeys: _list_keys,
    op.SignDigest: _sign_digest,
    op.GenerateSecret: _generate_secret,
    op.ImportSecret: _import_secret,
    op.SealSecret: _seal_secret,
    op.RewrapSecret: _rewrap_secret,
    op.Mac: _mac,
    op.VerifyMac: _verify_mac,
    op.MintIak: _mint_iak,
    op.VerifyIakMac: _verify_iak_mac,
    op.TransportIakMac: _transport_iak_mac,
    op.ProbeCustody: _probe_custody,
    op.ProveCustody: _prove_custody,
}
