"""PKCS#11 URIs (RFC 7512): how another process names a key in a token."""

from __future__ import annotations

from urllib.parse import quote

from nftrust.config import TokenConfig

#: Of what RFC 7512, clause 2.3, allows in a query attribute, only what a path needs.
_QUERY_SAFE = "/:"


def key_name(config: TokenConfig, label: str) -> str:
    """The private key, by token and label: for whoever knows module and PIN, or need not."""
    return f"pkcs11:token={quote(config.label, safe='')};object={quote(label, safe='')};type=private"


def key_uri(config: TokenConfig, label: str) -> str:
    """The private key, with all that a process on this host needs to use it; the PIN by its file's name only.

    ``module-path`` comes last: OpenSSL's pkcs11 *engine* takes no URI that has one, and it is easily cut off.
    A PIN that came by descriptor has no file, so that the URI has no ``pin-source``.
    """
    query = []
    if config.pin_file is not None:
        query.append(f"pin-source=file:{quote(str(config.pin_file.absolute()), safe=_QUERY_SAFE)}")
    query.append(f"module-path={quote(str(config.module.absolute()), safe=_QUERY_SAFE)}")
    return f"{key_name(config, label)}?{'&'.join(query)}"
