"""What a front says to its supervisor: one line a message, on a pipe."""

from __future__ import annotations

from nftrust.errors import NftrustError, Reason

ALIVE, READY, REFUSED = "alive", "ready", "refused"

#: sysexits.h: a front that ends with it cannot start for a reason that only a person can remove.
EX_CONFIG = 78
#: POSIX: a write of up to this size to a pipe is never torn.
MAX_MESSAGE_BYTES = 4096


def refusal_message(error: NftrustError) -> bytes:
    """``refused <reason> <message>``, one line."""
    text = " ".join(error.message.split())
    return f"{REFUSED} {error.reason.name} {text}".encode()[: MAX_MESSAGE_BYTES - 1] + b"\n"


def parse_refusal(text: str) -> NftrustError:
    """The inverse of :func:`refusal_message`, for what follows the word ``refused``."""
    name, _, message = text.partition(" ")
    return NftrustError(Reason.__members__.get(name, Reason.CONFIG_INVALID), message)
