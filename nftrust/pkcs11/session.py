"""One login session, for life: look-up with cached handles, and the locks that finds and writes need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nftrust.errors import NftrustError, Reason
from nftrust.pkcs11 import constants as ck
from nftrust.pkcs11 import templates
from nftrust.pkcs11.cryptoki import Cryptoki, CryptokiError, Mechanism, Template
from nftrust.pkcs11.locks import FileLock
from nftrust.pkcs11.templates import KeyRole

T = TypeVar("T")

_STALE_HANDLE = frozenset(
    {
        ck.CKR_KEY_HANDLE_INVALID,
        ck.CKR_OBJECT_HANDLE_INVALID,
        ck.CKR_WRAPPING_KEY_HANDLE_INVALID,
        ck.CKR_UNWRAPPING_KEY_HANDLE_INVALID,
    }
)
#: What modules answer to a wrapped key that was not wrapped by this key. SoftHSM: CKR_GENERAL_ERROR.
_UNWRAP_REFUSED = frozenset(
    {
        ck.CKR_GENERAL_ERROR,
        ck.CKR_FUNCTION_FAILED,
        ck.CKR_DATA_INVALID,
        ck.CKR_ENCRYPTED_DATA_INVALID,
        ck.CKR_ENCRYPTED_DATA_LEN_RANGE,
        ck.CKR_WRAPPED_KEY_INVALID,
        ck.CKR_WRAPPED_KEY_LEN_RANGE,
    }
)


class TokenSession:
    """A logged-in session of one thread. Foreign failures are CryptokiError, refusals NftrustError."""

    def __init__(self, module: Cryptoki, slot: int, label: str, handle: int, lock: FileLock) -> None:
        self.module = module
        self.handle = handle
        self.lock = lock
        #: Session objects made so far; SoftHSM leaks about 250 bytes with each.
        self.objects_made = 0
        self._slot = slot
        self._label = label
        self._cache: dict[tuple[str, KeyRole], int] = {}

    def alive(self) -> bool:
        """Whether the token is there and this session is still logged in."""
        try:
            state = self.module.session_state(self.handle)
            with self.lock.held():
                present = self._slot in self.module.slots() and self.module.token_label(self._slot) == self._label
        except CryptokiError:
            return False
        return present and state == ck.CKS_RW_USER_FUNCTIONS

    def with_key(self, label: str, role: KeyRole, use: Callable[[int], T]) -> T:
        """``use`` the key's handle, found anew if another process has replaced the key. KEY_MISSING if absent."""
        cached = self._cache.get((label, role))
        if cached is not None:
            try:
                return use(cached)
            except CryptokiError as error:
                if error.value not in _STALE_HANDLE:
                    raise
                del self._cache[label, role]
        handle = self._find_one(templates.by_role(label, role), label)
        self._cache[label, role] = handle
        return use(handle)

    def find(self, template: Template) -> list[int]:
        """All that match. Look-up costs O(objects in the token)."""
        with self.lock.held():
            return list(self.module.find(self.handle, template))

    def require_free(self, label: str) -> None:
        """Refuse with KEY_EXISTS if a key has this label. The caller holds the lock.

        A public key without its private half, left by a process that died
        while it made the pair, is cleared away.
        """
        for object_class in (ck.CKO_PRIVATE_KEY, ck.CKO_SECRET_KEY):
            if any(self.module.find(self.handle, templates.by_class(object_class, label))):
                raise NftrustError(Reason.KEY_EXISTS)
        for orphan in self.module.find(self.handle, templates.by_class(ck.CKO_PUBLIC_KEY, label)):
            self.module.destroy(self.handle, orphan)

    def forget(self, label: str) -> None:
        """Drop the cached handles of this label."""
        self._cache = {key: handle for key, handle in self._cache.items() if key[0] != label}

    def missing(self, label: str) -> NftrustError:
        """What to raise when a key is not found: KEY_MISSING, unless it is the token that is missing."""
        if not self.alive():
            return NftrustError(Reason.TOKEN_UNAVAILABLE)
        return NftrustError(Reason.KEY_MISSING, f"the token has no key {label!r} that can do this")

    def text(self, handle: int, attribute: int) -> str:
        return self.module.attribute(self.handle, handle, attribute).decode("utf-8", "replace")

    @contextmanager
    def session_object(self, handle: int) -> Iterator[int]:
        """Destroys the session object ``handle`` at the end."""
        self.objects_made += 1
        try:
            yield handle
        finally:
            self.module.destroy(self.handle, handle)

    def unwrap_iak(self, mechanism: Mechanism, parent: int, blob: bytes, refused: Reason) -> int:
        """The IAK as a locked session object. Raises NftrustError(``refused``) if ``blob`` is not for ``parent``.

        SoftHSM says CKR_GENERAL_ERROR to a tampered blob and to a token in
        trouble alike; asking after the token tells them apart.
        """
        return self.unwrap(mechanism, parent, blob, templates.LOCKED_IAK, refused)

    def unwrap(self, mechanism: Mechanism, parent: int, blob: bytes, template: Template, refused: Reason) -> int:
        """As :meth:`unwrap_iak`, into this template."""
        try:
            return self.module.unwrap(self.handle, mechanism, parent, blob, template)
        except CryptokiError as error:
            if error.value in _UNWRAP_REFUSED and self.alive():
                raise NftrustError(refused) from None
            raise

    def _find_one(self, template: Template, label: str) -> int:
        found = self.find(template)
        if len(found) == 1:
            return found[0]
        raise self.missing(label)
