"""The PKCS#11 shim of tests/shim: a token that fails when the test says so."""

from __future__ import annotations

import mmap
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nftrust.config import TokenConfig

SOURCE = Path(__file__).parent / "shim" / "pkcs11_shim.c"
CKR_DEVICE_ERROR = 0x30
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_USER_NOT_LOGGED_IN = 0x101
_LAYOUT = struct.Struct("<4Q")


@dataclass(frozen=True)
class Fault:
    """``mode`` as in the shim's source, ``value`` the CK_RV."""

    name: str
    mode: int
    value: int = 0


SESSION_GONE = Fault("session handle invalid", 2, CKR_SESSION_HANDLE_INVALID)
DEVICE_ERROR = Fault("device error", 1, CKR_DEVICE_ERROR)
TOKEN_GONE = Fault("token not present", 1, CKR_TOKEN_NOT_PRESENT)
LOGGED_OUT = Fault("user not logged in", 2, CKR_USER_NOT_LOGGED_IN)
#: Ends the session, and the PIN of the next login is wrong.
PIN_CHANGED = Fault("PIN changed", 2 | 4, CKR_SESSION_HANDLE_INVALID)
HANG = Fault("hang", 8)
CRASH = Fault("segmentation fault", 16)
#: Those that end with the test's saying so.
FAULTS = (SESSION_GONE, DEVICE_ERROR, TOKEN_GONE, LOGGED_OUT, HANG, CRASH)


class Shim:
    """One token's faults. ``config`` is that of the token behind the shim."""

    def __init__(self, config: TokenConfig, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # A copy for each token: a module's state belongs to the file that was loaded.
        module = directory / "pkcs11_shim.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", module, SOURCE, "-ldl"],
            check=True,
            capture_output=True,
        )
        control = directory / "control"
        control.write_bytes(bytes(_LAYOUT.size))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._faulted_before = 0
        environment = {"NFTRUST_SHIM_MODULE": str(config.module), "NFTRUST_SHIM_CONTROL": str(control)}
        self.config = msgspec.structs.replace(config, module=module, environment={**config.environment, **environment})

    @property
    def logins(self) -> int:
        """Calls of C_Login so far."""
        _, _, logins, _ = _LAYOUT.unpack(self._memory[:])
        return int(logins)

    @property
    def met(self) -> bool:
        """Whether a call has met the fault that was set last."""
        return self._faulted() > self._faulted_before

    def _faulted(self) -> int:
        _, _, _, faulted = _LAYOUT.unpack(self._memory[:])
        return int(faulted)

    def set(self, fault: Fault | None) -> None:
        if fault is not None:
            self._faulted_before = self._faulted()
        # The value before the mode: the module reads while we write.
        self._memory[8:16] = (fault.value if fault else 0).to_bytes(8, "little")
        self._memory[0:8] = (fault.mode if fault else 0).to_bytes(8, "little")

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """The fault lasts until the end of the block."""
        self.set(fault)
        try:
            yield
        finally:
            self.set(None)
