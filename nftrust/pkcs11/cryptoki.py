"""The PKCS#11 functions that nftrust uses, bound with ctypes.

A binding of our own, see docs/decisions/0007-pkcs11-binding.md: it initialises the
module with ``CKF_OS_LOCKING_OK``, packs nested templates, adds no attribute
of its own to a key and reads none behind the caller's back. Names are those
of PKCS#11 2.40. Every function raises :class:`CryptokiError` with the return
value. Nothing here is safe to share between threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nftrust.pkcs11 import constants as ck

_ULONG = ctypes.c_ulong
_POINTER = ctypes.c_void_p
_BYTES = ctypes.c_char_p

#: CK_FUNCTION_LIST after its version, in the order of the standard.
_FUNCTION_ORDER = (
    "Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList "
    "GetMechanismInfo InitToken InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo "
    "GetOperationState SetOperationState Login Logout CreateObject CopyObject DestroyObject GetObjectSize "
    "GetAttributeValue SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit Encrypt "
    "EncryptUpdate EncryptFinal DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate "
    "DigestKey DigestFinal SignInit Sign SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify "
    "VerifyUpdate VerifyFinal VerifyRecoverInit VerifyRecover DigestEncryptUpdate DecryptDigestUpdate "
    "SignEncryptUpdate DecryptVerifyUpdate GenerateKey GenerateKeyPair WrapKey UnwrapKey DeriveKey SeedRandom "
    "GenerateRandom GetFunctionStatus CancelFunction WaitForSlotEvent"
).split()

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "Initialize": (_POINTER,),
    "Finalize": (_POINTER,),
    "GetSlotList": (ctypes.c_ubyte, _POINTER, _POINTER),
    "GetTokenInfo": (_ULONG, _POINTER),
    "InitToken": (_ULONG, _BYTES, _ULONG, _BYTES),
    "InitPIN": (_ULONG, _BYTES, _ULONG),
    "OpenSession": (_ULONG, _ULONG, _POINTER, _POINTER, _POINTER),
    "GetSessionInfo": (_ULONG, _POINTER),
    "Login": (_ULONG, _ULONG, _BYTES, _ULONG),
    "CreateObject": (_ULONG, _POINTER, _ULONG, _POINTER),
    "DestroyObject": (_ULONG, _ULONG),
    "GetAttributeValue": (_ULONG, _ULONG, _POINTER, _ULONG),
    "FindObjectsInit": (_ULONG, _POINTER, _ULONG),
    "FindObjects": (_ULONG, _POINTER, _ULONG, _POINTER),
    "FindObjectsFinal": (_ULONG,),
    "SignInit": (_ULONG, _POINTER, _ULONG),
    "Sign": (_ULONG, _BYTES, _ULONG, _POINTER, _POINTER),
    "GenerateKey": (_ULONG, _POINTER, _POINTER, _ULONG, _POINTER),
    "GenerateKeyPair": (_ULONG, _POINTER, _POINTER, _ULONG, _POINTER, _ULONG, _POINTER, _POINTER),
    "WrapKey": (_ULONG, _POINTER, _ULONG, _ULONG, _POINTER, _POINTER),
    "UnwrapKey": (_ULONG, _POINTER, _ULONG, _BYTES, _ULONG, _POINTER, _ULONG, _POINTER),
    "DeriveKey": (_ULONG, _POINTER, _ULONG, _POINTER, _ULONG, _POINTER),
}

#: Room for any result: an RSA signature, a wrapped key, a public attribute.
_RESULT_BYTES = 4096


class CryptokiError(Exception):
    """A PKCS#11 function returned something other than CKR_OK. Says which function and value, nothing else."""

    def __init__(self, function: str, value: int) -> None:
        super().__init__(f"C_{function}: CKR {value:#x}")
        self.value = value


class _InitializeArgs(ctypes.Structure):
    _fields_ = [("callbacks", _POINTER * 4), ("flags", _ULONG), ("reserved", _POINTER)]


class _Attribute(ctypes.Structure):
    _fields_ = [("type", _ULONG), ("value", _POINTER), ("length", _ULONG)]


class _MechanismStruct(ctypes.Structure):
    _fields_ = [("mechanism", _ULONG), ("parameter", _POINTER), ("length", _ULONG)]


class _TokenInfo(ctypes.Structure):
    _fields_ = [
        ("label", ctypes.c_char * 32),
        ("names", ctypes.c_char * 64),
        ("flags", _ULONG),
        ("counts", _ULONG * 10),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_char * 16),
    ]


class _SessionInfo(ctypes.Structure):
    _fields_ = [("slot", _ULONG), ("state", _ULONG), ("flags", _ULONG), ("error", _ULONG)]


class Template:
    """A list of attributes in the module's memory layout, in the given order; build it once, use it often.

    bool is CK_BBOOL, int CK_ULONG, str UTF-8, a tuple of int an array of
    CK_ULONG, a Template an array of attributes. Any other type is a TypeError:
    a value that the module misreads would end the process.
    """

    def __init__(self, attributes: Mapping[int, Any]) -> None:
        self.count = len(attributes)
        self.array = (_Attribute * self.count)()
        self._values: list[Any] = []
        for entry, (attribute, value) in zip(self.array, attributes.items(), strict=True):
            packed = _pack(value)
            self._values.append((value, packed))
            entry.type = attribute
            entry.value = ctypes.addressof(packed)
            entry.length = ctypes.sizeof(packed)


class Mechanism:
    """CK_MECHANISM; ``parameter`` is a ctypes structure that the mechanism keeps alive."""

    def __init__(self, mechanism: int, parameter: ctypes.Structure | None = None) -> None:
        self._parameter = parameter
        self.struct = _MechanismStruct(mechanism, None, 0)
        if parameter is not None:
            self.struct.parameter = ctypes.addressof(parameter)
            self.struct.length = ctypes.sizeof(parameter)
        self.pointer = ctypes.byref(self.struct)


def _pack(value: Any) -> Any:
    if isinstance(value, Template):
        return value.array
    if isinstance(value, bool):
        return ctypes.c_ubyte(value)
    if isinstance(value, int):
        return _ULONG(value)
    if isinstance(value, tuple):
        return (_ULONG * len(value))(*value)
    if isinstance(value, str):
        value = value.encode("utf-8")
    if isinstance(value, bytes):
        return (ctypes.c_ubyte * len(value)).from_buffer_copy(value)
    raise TypeError("not a value of an attribute")


class Cryptoki:
    """A loaded module. Raises OSError if it cannot be loaded."""

    def __init__(self, module: Path) -> None:
        self._library = ctypes.CDLL(str(module))
        table = _POINTER()
        entry = self._library.C_GetFunctionList
        entry.argtypes, entry.restype = (_POINTER,), _ULONG
        value = entry(ctypes.byref(table))
        if value != ck.CKR_OK or not table.value:
            raise OSError("not a PKCS#11 module")
        self._functions: dict[str, Any] = {}
        # CK_VERSION takes two bytes and is padded to the size of a pointer.
        pointers = (_POINTER * (len(_FUNCTION_ORDER) + 1)).from_address(table.value)
        for name, address in zip(_FUNCTION_ORDER, pointers[1:], strict=True):
            if name in _SIGNATURES and address:
                self._functions[name] = ctypes.CFUNCTYPE(_ULONG, *_SIGNATURES[name])(address)
        self._result = ctypes.create_string_buffer(_RESULT_BYTES)
        self._length = _ULONG()
        self._handle = _ULONG()

    def call(self, name: str, *arguments: Any) -> None:
        """Call C_``name``. Raises CryptokiError."""
        function = self._functions.get(name)
        value = function(*arguments) if function else ck.CKR_FUNCTION_NOT_SUPPORTED
        if value != ck.CKR_OK:
            raise CryptokiError(name, value)

    def initialise(self, parameters: str = "") -> None:
        """Without CKF_OS_LOCKING_OK SoftHSM turns its mutexes off. NSS softokn reads ``parameters`` at pReserved."""
        text = ctypes.c_char_p(parameters.encode("utf-8") or None)
        reserved = ctypes.cast(text, _POINTER)
        self.call("Initialize", ctypes.byref(_InitializeArgs(flags=ck.CKF_OS_LOCKING_OK, reserved=reserved)))

    def finalise(self) -> None:
        """End all sessions and free what the module has leaked. Never raises."""
        if "Finalize" in self._functions:
            self._functions["Finalize"](None)

    def slots(self, *, token_present: bool = True) -> list[int]:
        count = _ULONG()
        self.call("GetSlotList", token_present, None, ctypes.byref(count))
        slots = (_ULONG * max(1, count.value))()
        self.call("GetSlotList", token_present, slots, ctypes.byref(count))
        return list(slots[: count.value])

    def token_label(self, slot: int) -> str:
        info = _TokenInfo()
        self.call("GetTokenInfo", slot, ctypes.byref(info))
        # .label ends at the first NUL; the standard pads with spaces.
        return bytes(info.label).decode("utf-8", "replace").rstrip(" ")

    def open_session(self, slot: int) -> int:
        """A read-write session."""
        flags = ck.CKF_RW_SESSION | ck.CKF_SERIAL_SESSION
        self.call("OpenSession", slot, flags, None, None, ctypes.byref(self._handle))
        return self._handle.value

    def session_state(self, session: int) -> int:
        info = _SessionInfo()
        self.call("GetSessionInfo", session, ctypes.byref(info))
        return int(info.state)

    def login(self, session: int, user: int, pin: bytes) -> None:
        self.call("Login", session, user, pin, len(pin))

    def find(self, session: int, template: Template) -> Iterator[int]:
        """The handles of the objects that match, all read before the first is given out."""
        self.call("FindObjectsInit", session, template.array, template.count)
        found: list[int] = []
        handles, count = (_ULONG * 64)(), _ULONG()
        try:
            while True:
                self.call("FindObjects", session, handles, len(handles), ctypes.byref(count))
                if not count.value:
                    break
                found.extend(handles[: count.value])
        finally:
            self.call("FindObjectsFinal", session)
        return iter(found)

    def attribute(self, session: int, handle: int, attribute: int) -> bytes:
        """The raw value of a flat attribute of at most 4,096 bytes that is no CK_ULONG."""
        entry = _Attribute(attribute, ctypes.addressof(self._result), _RESULT_BYTES)
        self.call("GetAttributeValue", session, handle, ctypes.byref(entry), 1)
        return self._result.raw[: entry.length]

    def number(self, session: int, handle: int, attribute: int) -> int:
        """A CK_ULONG attribute. NSS softokn gives none into more room than it takes."""
        value = _ULONG()
        entry = _Attribute(attribute, ctypes.addressof(value), ctypes.sizeof(value))
        self.call("GetAttributeValue", session, handle, ctypes.byref(entry), 1)
        return value.value

    def create(self, session: int, template: Template) -> int:
        self.call("CreateObject", session, template.array, template.count, ctypes.byref(self._handle))
        return self._handle.value

    def destroy(self, session: int, handle: int) -> None:
        self.call("DestroyObject", session, handle)

    def generate_key(self, session: int, mechanism: Mechanism, template: Template) -> int:
        handle = ctypes.byref(self._handle)
        self.call("GenerateKey", session, mechanism.pointer, template.array, template.count, handle)
        return self._handle.value

    def generate_key_pair(
        self, session: int, mechanism: Mechanism, public: Template, private: Template
    ) -> tuple[int, int]:
        """The handles of the public and the private key."""
        keys = (_ULONG(), _ULONG())
        templates = (public.array, public.count, private.array, private.count)
        self.call("GenerateKeyPair", session, mechanism.pointer, *templates, *map(ctypes.byref, keys))
        return keys[0].value, keys[1].value

    def sign(self, session: int, mechanism: Mechanism, key: int, data: bytes) -> bytes:
        self.call("SignInit", session, mechanism.pointer, key)
        self._length.value = _RESULT_BYTES
        self.call("Sign", session, data, len(data), self._result, ctypes.byref(self._length))
        return self._result.raw[: self._length.value]

    def wrap(self, session: int, mechanism: Mechanism, wrapping: int, key: int) -> bytes:
        self._length.value = _RESULT_BYTES
        length = ctypes.byref(self._length)
        self.call("WrapKey", session, mechanism.pointer, wrapping, key, self._result, length)
        return self._result.raw[: self._length.value]

    def unwrap(self, session: int, mechanism: Mechanism, key: int, blob: bytes, template: Template) -> int:
        into = (template.array, template.count, ctypes.byref(self._handle))
        self.call("UnwrapKey", session, mechanism.pointer, key, blob, len(blob), *into)
        return self._handle.value

    def derive(self, session: int, mechanism: Mechanism, key: int, template: Template) -> int:
        into = (template.array, template.count, ctypes.byref(self._handle))
        self.call("DeriveKey", session, mechanism.pointer, key, *into)
        return self._handle.value
