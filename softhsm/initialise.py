"""``python -m softhsm.initialise MODULE LABEL < PIN``: C_InitToken and C_InitPIN, in a process of its own.

softhsm2-util takes PINs only in its arguments, where every user of the
machine can read them; python-pkcs11 cannot initialise tokens. The module's
state is global to a process, hence the process.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from typing import Any

CKF_OS_LOCKING_OK = 2
CKF_RW_SESSION, CKF_SERIAL_SESSION = 2, 4
CKU_SO = 0


class _InitializeArgs(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS."""

    _fields_ = [("callbacks", ctypes.c_void_p * 4), ("flags", ctypes.c_ulong), ("reserved", ctypes.c_void_p)]


def initialise(module: str, label: str, pin: bytes) -> None:
    """Make the token in the module's free slot. Raises RuntimeError with the function's name and return value."""
    library = ctypes.CDLL(module)

    def call(name: str, *arguments: Any) -> None:
        function = getattr(library, name)
        function.restype = ctypes.c_ulong
        value = function(*arguments)
        if value != 0:
            raise RuntimeError(f"{name}: {value:#x}")

    so_pin = secrets.token_urlsafe(24).encode("ascii")
    call("C_Initialize", ctypes.byref(_InitializeArgs(flags=CKF_OS_LOCKING_OK)))
    count = ctypes.c_ulong(1)
    slot = ctypes.c_ulong()
    call("C_GetSlotList", ctypes.c_ubyte(0), ctypes.byref(slot), ctypes.byref(count))
    call("C_InitToken", slot, so_pin, ctypes.c_ulong(len(so_pin)), label.encode("ascii").ljust(32))
    session = ctypes.c_ulong()
    call("C_OpenSession", slot, ctypes.c_ulong(CKF_RW_SESSION | CKF_SERIAL_SESSION), None, None, ctypes.byref(session))
    call("C_Login", session, ctypes.c_ulong(CKU_SO), so_pin, ctypes.c_ulong(len(so_pin)))
    call("C_InitPIN", session, pin, ctypes.c_ulong(len(pin)))
    call("C_Finalize", None)


if __name__ == "__main__":
    try:
        initialise(sys.argv[1], sys.argv[2], sys.stdin.buffer.read())
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        os._exit(1)
