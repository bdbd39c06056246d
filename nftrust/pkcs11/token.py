"""A token, opened: synchronous, for one thread.

SoftHSM turns its own locks off unless told otherwise and python threads gain
nothing here: one thread per process owns the token, and parallelism comes
from processes. The module's state is global to a process, so that only one
token of a module can be open in it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import TypeVar, cast

from nftrust.config import TokenConfig
from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11.cryptoki import Cryptoki, CryptokiError
from nftrust.pkcs11.execution import EXECUTORS
from nftrust.pkcs11.locks import FileLock, lock_path
from nftrust.pkcs11.operations import Failure, Operation, Outcome
from nftrust.pkcs11.pin import read_pin
from nftrust.pkcs11.session import TokenSession

R = TypeVar("R")

_log = logging.getLogger(__name__)

#: Session objects after which the module is started anew: 25 MB at SoftHSM's 250 bytes each.
WORN_AFTER_OBJECTS = 100_000

_PIN_REFUSED = frozenset(
    {
        ck.CKR_PIN_INCORRECT,
        ck.CKR_PIN_INVALID,
        ck.CKR_PIN_LEN_RANGE,
        ck.CKR_PIN_EXPIRED,
        ck.CKR_PIN_LOCKED,
        ck.CKR_USER_PIN_NOT_INITIALIZED,
    }
)
#: Answers to what this token cannot do; it is none the worse for having been asked.
_INCAPABLE = frozenset(
    {
        ck.CKR_ARGUMENTS_BAD,
        ck.CKR_ATTRIBUTE_TYPE_INVALID,
        ck.CKR_ATTRIBUTE_VALUE_INVALID,
        ck.CKR_FUNCTION_NOT_SUPPORTED,
        ck.CKR_KEY_FUNCTION_NOT_PERMITTED,
        ck.CKR_KEY_SIZE_RANGE,
        ck.CKR_KEY_TYPE_INCONSISTENT,
        ck.CKR_MECHANISM_INVALID,
        ck.CKR_MECHANISM_PARAM_INVALID,
        ck.CKR_TEMPLATE_INCOMPLETE,
        ck.CKR_TEMPLATE_INCONSISTENT,
    }
)
#: How modules refuse to start without their files. SoftHSM, under the lock, says CKR_GENERAL_ERROR of nothing else.
_STORAGE_MISSING = frozenset({ck.CKR_GENERAL_ERROR, ck.CKR_NSS_CERTDB_FAILED, ck.CKR_NSS_KEYDB_FAILED})
_open_modules: set[str] = set()
_open_modules_guard = threading.Lock()


class Token:
    """An open token with a session that is logged in for life. Made by :meth:`open`."""

    def __init__(self, module: Cryptoki, session: TokenSession, lock: FileLock, module_name: str) -> None:
        self._module = module
        self._session = session
        self._lock = lock
        self._module_name = module_name
        self._owner = threading.get_ident()
        #: Why the token can no longer be used, if so: the PKCS#11 function and its return value.
        self.lost = ""

    @classmethod
    def open(cls, config: TokenConfig) -> Token:
        """Load the module, find the token and log in, once.

        Raises NftrustError: TOKEN_MISSING (module or token), PIN_INCORRECT
        (never tried again here; the caller must not either), CONFIG_INVALID
        (PIN source), TOKEN_UNAVAILABLE (anything that may pass).
        """
        pin = read_pin(config)
        name = str(config.module.resolve())
        with _open_modules_guard:
            if name in _open_modules:
                raise NftrustError(Reason.TOKEN_UNAVAILABLE, "this process has a token of this module open already")
            _open_modules.add(name)
        try:
            os.environ.update(config.environment)
            lock = FileLock(lock_path(config))
            try:
                return _open(config, pin, lock, name)
            except BaseException:
                lock.close()
                raise
        except BaseException:
            _open_modules.discard(name)
            raise

    @property
    def worn(self) -> bool:
        """Whether to close and open it again, because the module leaks."""
        return self._session.objects_made >= WORN_AFTER_OBJECTS

    def execute(self, operation: Operation[R]) -> R:
        """Do one operation. Raises NftrustError; after TOKEN_UNAVAILABLE see :attr:`lost`."""
        if threading.get_ident() != self._owner:
            raise RuntimeError("a token belongs to the thread that opened it")
        if self.lost:
            raise NftrustError(Reason.TOKEN_UNAVAILABLE)
        try:
            return cast(R, EXECUTORS[type(operation)](self._session, operation))
        except CryptokiError as error:
            if error.value in _INCAPABLE:
                raise NftrustError(Reason.TOKEN_INCAPABLE, f"the token cannot do this ({error})") from None
            self.lost = str(error)
            raise NftrustError(Reason.TOKEN_UNAVAILABLE) from None
        except NftrustError as error:
            if error.reason is Reason.TOKEN_UNAVAILABLE:
                self.lost = error.message
            raise

    def execute_all(self, operations: Sequence[Operation[object]]) -> list[Outcome]:
        """Do all, in order; what fails, fails alone, unless the token itself is lost."""
        return [self._outcome(operation) for operation in operations]

    def close(self) -> None:
        """Log out and unload the module's state. Never raises."""
        self._module.finalise()
        self._lock.close()
        _open_modules.discard(self._module_name)

    def _outcome(self, operation: Operation[object]) -> Outcome:
        try:
            return Outcome(value=self.execute(operation))
        except NftrustError as error:
            return Outcome(failure=Failure.of(error))
        except Exception as error:  # noqa: BLE001 - one operation's accident is not the batch's
            _log.error("token operation failed", extra={"cause": type(error).__name__})
            return Outcome(failure=Failure.of(NftrustError(Reason.INTERNAL)))


def _open(config: TokenConfig, pin: bytes, lock: FileLock, name: str) -> Token:
    try:
        module = Cryptoki(config.module)
    except OSError:
        raise NftrustError(Reason.TOKEN_MISSING, f"{config.module}: not a PKCS#11 module") from None
    with lock.held():
        try:
            module.initialise(config.module_parameters)
        except CryptokiError as error:
            if error.value == ck.CKR_ARGUMENTS_BAD:
                raise NftrustError(
                    Reason.CONFIG_INVALID, f"{config.module}: the module refuses its module_parameters"
                ) from None
            if error.value in _STORAGE_MISSING:
                raise NftrustError(Reason.TOKEN_MISSING, "the module finds no token storage") from None
            raise NftrustError(Reason.TOKEN_UNAVAILABLE, f"the module does not start ({error})") from None
        try:
            slot = _find_slot(module, config.label)
            handle = module.open_session(slot)
            module.login(handle, ck.CKU_USER, pin)
        except CryptokiError as error:
            # Also ends the session that a refused login leaves behind.
            module.finalise()
            if error.value in _PIN_REFUSED:
                raise NftrustError(Reason.PIN_INCORRECT) from None
            raise NftrustError(Reason.TOKEN_UNAVAILABLE, f"the token cannot be opened ({error})") from None
        except NftrustError:
            module.finalise()
            raise
    return Token(module, TokenSession(module, slot, config.label, handle, lock), lock, name)


def _find_slot(module: Cryptoki, label: str) -> int:
    """The one slot whose token has this label. An empty slot answers with an error, which is not of interest."""
    found = []
    for slot in module.slots():
        try:
            if module.token_label(slot) == label:
                found.append(slot)
        except CryptokiError:
            continue
    if len(found) != 1:
        count = "no token" if not found else "more than one token"
        raise NftrustError(Reason.TOKEN_MISSING, f"{count} with the label {label!r}")
    return found[0]
