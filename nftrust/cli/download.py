"""What is fetched from where certificates say that it is: over plain HTTP, as relying parties do."""

from __future__ import annotations

import contextlib
import http.client
from urllib.parse import urlsplit

from nftrust.errors import NftrustError, Reason

#: A CRL of 100,000 entries takes about 5 MB.
MAX_BYTES = 64 << 20


def fetch(url: str, timeout: float) -> bytes:
    """A GET, neither by a proxy nor redirected. Raises NftrustError(PEER_INCOMPATIBLE, PEER_UNAVAILABLE)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not url.startswith("http://") or host is None:
        raise NftrustError(Reason.PEER_INCOMPATIBLE, "the CRL's URL is not one of plain HTTP")
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=timeout)) as connection:
            connection.request("GET", parts.path or "/")
            with connection.getresponse() as answer:
                content = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException):
        raise NftrustError(Reason.PEER_UNAVAILABLE, f"{url} does not answer") from None
    if answer.status != http.client.OK or len(content) > MAX_BYTES:
        raise NftrustError(Reason.PEER_UNAVAILABLE, f"{url} gives no answer that can be used")
    return content
