"""The form of token operations, their frames, and the public keys they carry. No token."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import operations as op
from nftrust.pkcs11 import spki, wire
from nftrust.pkcs11.backend import Reply
from nftrust.pkcs11.cryptoki import Template
from nftrust.pkcs11.templates import EC_PARAMETERS

EVERY_OPERATION: list[op.Operation[object]] = [
    op.PublicKey("a"),
    op.GenerateKeyPair("a", "rsa-transport"),
    op.DestroyKey("a"),
    op.ListKeys(),
    op.SignDigest("a", "rsa-pss", "sha384", bytes(48)),
    op.GenerateSecret("a", "kek"),
    op.ImportSecret("a", bytes(32)),
    op.Mac("a", b"data"),
    op.VerifyMac("a", b"data", bytes(32)),
    op.MintIak("a", None),
    op.MintIak("a", b"spki", "sha256"),
    op.VerifyIakMac("a", bytes(40), b"data", bytes(32)),
    op.TransportIakMac("a", bytes(384), b"data"),
    op.ProbeCustody(),
    op.ProveCustody(),
]


def test_every_operation_survives_the_wire() -> None:
    assert wire.batch_decoder.decode(wire.encode(EVERY_OPERATION)) == EVERY_OPERATION


@pytest.mark.parametrize(
    "make",
    [
        lambda: op.PublicKey(""),
        lambda: op.PublicKey("a" * 65),
        lambda: op.PublicKey("a\nb"),
        lambda: op.PublicKey("ä"),
        lambda: op.PublicKey(5),  # type: ignore[arg-type]
        lambda: op.SignDigest("a", "ecdsa", "sha256", bytes(31)),
        lambda: op.SignDigest("a", "ecdsa", "sha256", bytes(33)),
        lambda: op.SignDigest("a", "ecdsa", "sha384", bytes(32)),
        lambda: op.SignDigest("a", "ecdsa", "md5", bytes(16)),  # type: ignore[arg-type]
        lambda: op.SignDigest("a", "ecdsa", "sha256", bytearray(32)),  # type: ignore[arg-type]
        lambda: op.ImportSecret("a", bytes(15)),
        lambda: op.ImportSecret("a", bytes(65)),
        lambda: op.Mac("a", bytes(op.MAX_DATA_BYTES + 1)),
        lambda: op.Mac("a", "text"),  # type: ignore[arg-type]
        lambda: op.MintIak("a", b""),
    ],
)
def test_a_malformed_operation_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(NftrustError) as caught:
        make()
    assert caught.value.reason is Reason.INVALID_FIELD


def test_a_malformed_operation_is_not_decoded_either() -> None:
    with pytest.raises(NftrustError):
        wire.batch_decoder.decode(wire.encode([["SignDigest", "a", "ecdsa", "sha256", bytes(31)]]))  # type: ignore[list-item]


def test_secrets_are_not_in_any_representation() -> None:
    assert "secret" not in repr(op.ImportSecret("label", b"secret" * 4))
    assert "secret" not in repr(op.MintedIak(b"blob", b"secret" * 4))


def test_values_come_back_as_the_result_of_their_operation() -> None:
    operations: list[op.Operation[object]] = [
        op.ListKeys(),
        op.MintIak("a", None),
        op.DestroyKey("a"),
        op.Mac("a", b""),
    ]
    failure = op.Failure.of(NftrustError(Reason.KEY_MISSING, "no such key"))
    sent = Reply(
        [
            op.Outcome([op.KeyInfo("k", "secret")]),
            op.Outcome(op.MintedIak(b"b", b"d")),
            op.Outcome(None),
            op.Outcome(failure=failure),
        ],
        "C_Sign",
    )
    received = wire.decode_reply(wire.encode(sent), operations)
    assert received == sent
    error = failure.error()
    assert (error.reason, error.message) == (Reason.KEY_MISSING, "no such key")


def test_a_reply_to_another_batch_is_refused() -> None:
    with pytest.raises(ValueError):
        wire.decode_reply(wire.encode(Reply([])), [op.ListKeys()])


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError):
            wire.receive(ours)
        theirs.sendall(b"\0\0\0\4ab")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            wire.receive(ours)


def test_a_template_refuses_what_a_module_would_misread() -> None:
    for value in (None, 1.5, [1], bytearray(1)):
        with pytest.raises(TypeError):
            Template({0x3: value})


@pytest.mark.parametrize(("name", "curve"), [("ec-p256", ec.SECP256R1()), ("ec-p384", ec.SECP384R1())])
def test_points_are_read_with_and_without_their_octet_string(name: str, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    expected = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for value in (point, bytes((4, len(point))) + point):
        assert spki.ec_spki(EC_PARAMETERS[name], value) == expected


@pytest.mark.parametrize("point", [b"", b"\x04", bytes(65), bytes(67), b"\x04\x41" + bytes(66)])
def test_what_is_no_point_is_refused(point: bytes) -> None:
    with pytest.raises(ValueError):
        spki.ec_spki(EC_PARAMETERS["ec-p256"], point)


def _spki(key: object) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _rsa_spki(bits: int, exponent: int = 65537) -> bytes:
    """An SPKI of this size that nobody holds the key to."""
    public = rsa.RSAPublicNumbers(exponent, (1 << bits - 1) | 1).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("bits", [3072, 4096])
def test_transport_keys_of_the_right_size_are_taken(bits: int) -> None:
    modulus, exponent = spki.transport_numbers(_rsa_spki(bits))
    assert (len(modulus) * 8, exponent) == (bits, b"\x01\x00\x01")


@pytest.mark.parametrize(
    "unusable",
    [
        b"garbage",
        _spki(ec.generate_private_key(ec.SECP256R1())),
        _spki(ed25519.Ed25519PrivateKey.generate()),
        _rsa_spki(2048),
        _rsa_spki(3071),
        _rsa_spki(4097),
        _rsa_spki(3072, exponent=3),
    ],
)
def test_other_keys_are_no_transport_keys(unusable: bytes) -> None:
    with pytest.raises(NftrustError) as caught:
        spki.transport_numbers(unusable)
    assert caught.value.reason is Reason.TRANSPORT_KEY_UNUSABLE
