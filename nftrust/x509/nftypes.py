"""The NFTypes certificate extension (RFC 9310), id-pe-nftype 1.3.6.1.5.5.7.1.34."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

NF_TYPES_OID = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.34")
_SEQUENCE, _IA5_STRING = 0x30, 0x16


def encode(nf_types: Iterable[str]) -> x509.UnrecognizedExtension:
    """NFTypes ::= SEQUENCE SIZE (1..MAX) OF NFType, NFType ::= IA5String (SIZE (1..32)).

    Sorted and without duplicates. Raises ValueError outside the sizes.
    """
    names = sorted({name.encode("ascii") for name in nf_types})
    if not names or any(not 1 <= len(name) <= 32 for name in names):
        raise ValueError("NFTypes: 1 or more names of 1 to 32 characters")
    body = b"".join(bytes((_IA5_STRING, len(name))) + name for name in names)
    if len(body) > 127:
        raise ValueError("NFTypes: too many names")
    return x509.UnrecognizedExtension(NF_TYPES_OID, bytes((_SEQUENCE, len(body))) + body)


def nf_types_of(certificate: x509.Certificate) -> list[str]:
    """Those in the certificate; none where it has no such extension. Raises ValueError where that is garbled."""
    try:
        value = certificate.extensions.get_extension_for_oid(NF_TYPES_OID).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(value, x509.UnrecognizedExtension)
    return decode(value.value)


def decode(value: bytes) -> list[str]:
    """The NF types of an extension value made by :func:`encode`. Raises ValueError."""
    if len(value) < 2 or value[0] != _SEQUENCE or value[1] != len(value) - 2 or value[1] > 127:
        raise ValueError("not NFTypes")
    names, rest = [], value[2:]
    while rest:
        if len(rest) < 2 or rest[0] != _IA5_STRING or not 1 <= rest[1] <= 32 or len(rest) < 2 + rest[1]:
            raise ValueError("not NFTypes")
        names.append(rest[2 : 2 + rest[1]].decode("ascii"))
        rest = rest[2 + rest[1] :]
    if not names or names != sorted(set(names)):
        raise ValueError("NFTypes: not in ascending order without duplicates")
    return names
