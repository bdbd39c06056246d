"""Between PKCS#11 public attributes and SubjectPublicKeyInfo (RFC 5280 clause 4.1.2.7)."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11.operations import MAX_MODULUS_BYTES, MIN_MODULUS_BYTES
from nftrust.pkcs11.templates import EC_PARAMETERS

_CURVES: dict[bytes, ec.EllipticCurve] = {
    EC_PARAMETERS["ec-p256"]: ec.SECP256R1(),
    EC_PARAMETERS["ec-p384"]: ec.SECP384R1(),
}
#: Uncompressed points of P-256 and P-384.
_POINT_BYTES = (65, 97)


def raw_point(value: bytes) -> bytes:
    """The uncompressed point of CKA_EC_POINT, which some modules wrap in an OCTET STRING and some do not."""
    if len(value) in _POINT_BYTES:
        return value
    if len(value) - 2 in _POINT_BYTES and value[:2] == bytes((0x04, len(value) - 2)):
        return value[2:]
    raise ValueError("not an uncompressed point")


def ec_spki(parameters: bytes, point: bytes) -> bytes:
    """SubjectPublicKeyInfo of a P-256 or P-384 key. Raises ValueError."""
    curve = _CURVES.get(parameters)
    if curve is None:
        raise ValueError("unknown curve")
    return _der(ec.EllipticCurvePublicKey.from_encoded_point(curve, raw_point(point)))


def rsa_spki(modulus: bytes, exponent: bytes) -> bytes:
    """SubjectPublicKeyInfo of an RSA key. Raises ValueError."""
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
    return _der(numbers.public_key())


def transport_numbers(spki: bytes) -> tuple[bytes, bytes]:
    """Modulus and exponent of an NF's transport key. Raises NftrustError(TRANSPORT_KEY_UNUSABLE)."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise NftrustError(Reason.TRANSPORT_KEY_UNUSABLE) from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise NftrustError(Reason.TRANSPORT_KEY_UNUSABLE)
    numbers = key.public_numbers()
    if not MIN_MODULUS_BYTES * 8 <= numbers.n.bit_length() <= MAX_MODULUS_BYTES * 8 or not 65537 <= numbers.e < 1 << 32:
        raise NftrustError(Reason.TRANSPORT_KEY_UNUSABLE)
    return _unsigned(numbers.n), _unsigned(numbers.e)


def _unsigned(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _der(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
