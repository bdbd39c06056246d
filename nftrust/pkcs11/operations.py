"""The operations of a token, as values.

One struct is one operation. A list of them travels as msgpack to whoever owns
the token (a worker process or a thread) and comes back as as many
:class:`Outcome` values, in order: the round trip is paid once per batch, and
an operation that fails says so alone.

An operation checks its own form when it is made, also when it is decoded: the
PKCS#11 binding below takes a process down over a value of the wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from nftrust.errors import NftrustError, Reason, invalid_field

R_co = TypeVar("R_co", covariant=True)

KeyPairKind = Literal["ec-p256", "ec-p384", "rsa-3072", "rsa-transport"]
SecretKind = Literal["kek", "mac", "escrow"]
Scheme = Literal["ecdsa", "rsa-pss", "rsa-pkcs1v15"]
HashName = Literal["sha256", "sha384", "sha512"]
OaepHash = Literal["sha1", "sha256"]
EcdhKdf = Literal["null", "sha256"]

DIGEST_SIZES: Mapping[str, int] = MappingProxyType({"sha256": 32, "sha384": 48, "sha512": 64})
IAK_BYTES = 32
#: AES-KW (RFC 3394) of an IAK.
VAULT_BLOB_BYTES = IAK_BYTES + 8
MAC_BYTES = 32
#: What a foreign CA/RA may give as a secret. As hexadecimal digits the shortest has 128 bits; no token makes an
#: HMAC-SHA256 with a shorter key. AES-KW takes multiples of 8 (SoftHSM 2.6.1 leaves the padding of AES-KWP in the key).
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 32, 128
MAX_DATA_BYTES = 256 * 1024
#: Modulus sizes a transport key may have, in bytes: RSA of 3072 to 4096 bits.
MIN_MODULUS_BYTES, MAX_MODULUS_BYTES = 384, 512

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class MintedIak(msgspec.Struct, frozen=True, array_like=True):
    """An IAK at its birth: the blob for the vault and what is delivered."""

    #: AES-KW under the KEK, 40 bytes; binds nothing but the key itself (security rule 7).
    vault_blob: bytes
    #: RSA-OAEP ciphertext for the recipient or, without one, the clear IAK.
    delivery: bytes

    def __repr__(self) -> str:
        return "MintedIak()"


class CustodyReport(msgspec.Struct, frozen=True, array_like=True):
    """What the token was seen to do, by trying it on session objects."""

    unwrap_template_enforced: bool
    oaep_hashes: list[OaepHash]
    ecdh_kdfs: list[EcdhKdf]


class KeyInfo(msgspec.Struct, frozen=True, array_like=True):
    """A key in the token. ``type`` is ``private`` or ``secret``."""

    label: str
    type: Literal["private", "secret"]


class Operation(msgspec.Struct, Generic[R_co], frozen=True, array_like=True, tag=True):
    """Base of the operations; ``R_co`` is the type of the result."""

    RESULT: ClassVar[Any] = None


class PublicKey(Operation[bytes], frozen=True, array_like=True, tag=True):
    """The SubjectPublicKeyInfo (DER) of a key pair. KEY_MISSING if there is none."""

    label: str

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.label)


class GenerateKeyPair(Operation[bytes], frozen=True, array_like=True, tag=True):
    """Make a key pair in the token; the SubjectPublicKeyInfo (DER). KEY_EXISTS if the label is taken.

    ``rsa-transport`` can only unwrap an IAK and only into a locked session
    object; the other kinds can only sign.
    """

    label: str
    kind: KeyPairKind

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.label)


class DestroyKey(Operation[None], frozen=True, array_like=True, tag=True):
    """Destroy the key or key pair of this label. KEY_MISSING if there is none."""

    label: str

    RESULT: ClassVar[Any] = type(None)

    def __post_init__(self) -> None:
        _check_label(self.label)


class ListKeys(Operation[list[KeyInfo]], frozen=True, array_like=True, tag=True):
    """The private and secret keys in the token, sorted by label."""

    RESULT: ClassVar[Any] = list[KeyInfo]


class SignDigest(Operation[bytes], frozen=True, array_like=True, tag=True):
    """Sign a digest made by the caller; ECDSA signatures are r‖s. INVALID_FIELD if its length is not the hash's."""

    label: str
    scheme: Scheme
    hash: HashName
    digest: bytes

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.label)
        _check_bytes("digest", self.digest, DIGEST_SIZES.get(self.hash, 0))


class GenerateSecret(Operation[None], frozen=True, array_like=True, tag=True):
    """Make a 256-bit secret key: ``kek`` (AES, for IAKs), ``escrow`` (AES, for foreign secrets) or ``mac`` (HMAC).

    KEY_EXISTS if the label is taken.
    """

    label: str
    kind: SecretKind

    RESULT: ClassVar[Any] = type(None)

    def __post_init__(self) -> None:
        _check_label(self.label)


class ImportSecret(Operation[None], frozen=True, array_like=True, tag=True):
    """Put a clear HMAC key of 16 to 64 bytes into the token, sensitive and not extractable (TLS-only delivery)."""

    label: str
    value: bytes

    RESULT: ClassVar[Any] = type(None)

    def __post_init__(self) -> None:
        _check_label(self.label)
        _check_bytes("value", self.value, 16, 64)

    def __repr__(self) -> str:
        return f"ImportSecret(label={self.label!r})"


class SealSecret(Operation[bytes], frozen=True, array_like=True, tag=True):
    """Take a foreign CA/RA's secret into the token and wrap it under an ``escrow`` key; it stays nowhere else."""

    kek_label: str
    value: bytes

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.kek_label)
        _check_bytes("value", self.value, MIN_SECRET_BYTES, MAX_SECRET_BYTES)
        if len(self.value) % 8:
            raise invalid_field("value", "its length is no multiple of 8 bytes")

    def __repr__(self) -> str:
        return f"SealSecret(kek_label={self.kek_label!r})"


class RewrapSecret(Operation[bytes], frozen=True, array_like=True, tag=True):
    """A sealed secret as RSA-OAEP ciphertext for a transport key; in clear it is in the token alone.

    STORED_ROW_TAMPERED if it was not sealed by this key, TRANSPORT_KEY_UNUSABLE as in :class:`MintIak`.
    """

    kek_label: str
    blob: bytes
    recipient_spki: bytes
    oaep_hash: OaepHash = "sha1"

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.kek_label)
        _check_bytes("blob", self.blob, 0, MAX_DATA_BYTES)
        _check_bytes("recipient_spki", self.recipient_spki, 1, 2048)


class Mac(Operation[bytes], frozen=True, array_like=True, tag=True):
    """HMAC-SHA256, 32 bytes, by a ``mac`` or imported key."""

    label: str
    data: bytes

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.label)
        _check_bytes("data", self.data, 0, MAX_DATA_BYTES)


class VerifyMac(Operation[bool], frozen=True, array_like=True, tag=True):
    """Whether ``mac`` is the HMAC-SHA256 of ``data``, compared in constant time."""

    label: str
    data: bytes
    mac: bytes

    RESULT: ClassVar[Any] = bool

    def __post_init__(self) -> None:
        _check_label(self.label)
        _check_bytes("data", self.data, 0, MAX_DATA_BYTES)
        _check_bytes("mac", self.mac, 0, MAX_DATA_BYTES)


class MintIak(Operation[MintedIak], frozen=True, array_like=True, tag=True):
    """Make an IAK in the token, wrap it for the vault and for its recipient, and forget it.

    ``recipient_spki`` is the NF's transport key, RSA of 3072 to 4096 bits
    (else TRANSPORT_KEY_UNUSABLE); None delivers the IAK in clear, which
    policy must allow. OAEP uses ``oaep_hash`` for the hash and MGF1.
    """

    kek_label: str
    recipient_spki: bytes | None
    oaep_hash: OaepHash = "sha1"

    RESULT: ClassVar[Any] = MintedIak

    def __post_init__(self) -> None:
        _check_label(self.kek_label)
        if self.recipient_spki is not None:
            _check_bytes("recipient_spki", self.recipient_spki, 1, 2048)


class VerifyIakMac(Operation[bool], frozen=True, array_like=True, tag=True):
    """Whether ``mac`` is the HMAC-SHA256 of ``data`` by the IAK in ``vault_blob``.

    STORED_ROW_TAMPERED if the blob was not wrapped by this KEK.
    """

    kek_label: str
    vault_blob: bytes
    data: bytes
    mac: bytes

    RESULT: ClassVar[Any] = bool

    def __post_init__(self) -> None:
        _check_label(self.kek_label)
        _check_bytes("vault_blob", self.vault_blob, 0, MAX_DATA_BYTES)
        _check_bytes("data", self.data, 0, MAX_DATA_BYTES)
        _check_bytes("mac", self.mac, 0, MAX_DATA_BYTES)


class TransportIakMac(Operation[bytes], frozen=True, array_like=True, tag=True):
    """HMAC-SHA256 of ``data``, 32 bytes, by the IAK that was wrapped for this transport key.

    ENROLMENT_INFO_INVALID if it was not.
    """

    transport_label: str
    wrapped_iak: bytes
    data: bytes
    oaep_hash: OaepHash = "sha1"

    RESULT: ClassVar[Any] = bytes

    def __post_init__(self) -> None:
        _check_label(self.transport_label)
        _check_bytes("wrapped_iak", self.wrapped_iak, 0, MAX_DATA_BYTES)
        _check_bytes("data", self.data, 0, MAX_DATA_BYTES)


class ProbeCustody(Operation[CustodyReport], frozen=True, array_like=True, tag=True):
    """Try, on session objects, what the custody of the IAK rests on."""

    RESULT: ClassVar[Any] = CustodyReport


class ProveCustody(Operation[None], frozen=True, array_like=True, tag=True):
    """Refused with TOKEN_CUSTODY_UNPROVEN unless the token was just seen to enforce an unwrap template."""


AnyOperation = (
    PublicKey
    | GenerateKeyPair
    | DestroyKey
    | ListKeys
    | SignDigest
    | GenerateSecret
    | ImportSecret
    | SealSecret
    | RewrapSecret
    | Mac
    | VerifyMac
    | MintIak
    | VerifyIakMac
    | TransportIakMac
    | ProbeCustody
    | ProveCustody
)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An NftrustError in transit."""

    reason: str
    message: str

    @staticmethod
    def of(error: NftrustError) -> Failure:
        return Failure(error.reason.name, error.message)

    def error(self) -> NftrustError:
        return NftrustError(Reason[self.reason], self.message)


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one operation: ``value`` (of the operation's RESULT type), or ``failure``."""

    value: Any = None
    failure: Failure | None = None


def _check_label(label: object) -> None:
    if not isinstance(label, str) or not _LABEL.match(label):
        raise invalid_field("label", "1 to 64 letters, digits, dots, underscores and hyphens are allowed")


def _check_bytes(field: str, value: object, shortest: int, longest: int | None = None) -> None:
    """Refuse what is not bytes of this length; without ``longest`` the length is exact."""
    longest = shortest if longest is None else longest
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        size = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        raise invalid_field(field, f"{size} bytes are needed")
