"""What front and supervisor say to each other: one line a message, on a socket pair.

A front sends, every half second, ALIVE while it starts, then READY, or
IMPAIRED while something that it needs is away; or once REFUSED with the
reason. The supervisor sends SERVING or IMPAIRED whenever that changes: what
holds for the server as a whole.
"""

from __future__ import annotations

from nftrust.errors import NftrustError, Reason

ALIVE, READY, IMPAIRED, REFUSED, SERVING = "alive", "ready", "impaired", "refused", "serving"

#: The environment variable with the front's number among its server's, from 0.
FRONT_VARIABLE = "NFTRUST_FRONT"
#: sysexits.h: a front that ends with it cannot start for a reason that only a person can remove.
EX_CONFIG = 78
#: Longer ones are cut off.
MAX_MESSAGE_BYTES = 4096


def refusal_message(error: NftrustError) -> bytes:
    """``refused <reason> <message>``, one line."""
    text = " ".join(error.message.split())
    return f"{REFUSED} {error.reason.name} {text}".encode()[: MAX_MESSAGE_BYTES - 1] + b"\n"


def parse_refusal(text: str) -> NftrustError:
    """The inverse of :func:`refusal_message`, for what follows the word ``refused``."""
    name, _, message = text.partition(" ")
    return NftrustError(Reason.__members__.get(name, Reason.CONFIG_INVALID), message)


class Lines:
    """Cuts what arrives into lines; of an endless one only the end is kept."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """The messages that are complete now: word, and what follows it."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-MAX_MESSAGE_BYTES:]
        messages = []
        for line in lines:
            word, _, text = line.decode("utf-8", "replace").partition(" ")
            messages.append((word, text))
        return messages
