"""Credentials for the tests of the hooks: certificates of a small CA, keys that no token holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, cast

from nf_agent import Credential
from nftrust.pkcs11.keys import TokenEcPrivateKey
from tests.pki import DAY, Authority, make_ca, new_key

PATIENCE_SECONDS = 30.0


@cache
def operator_ca() -> Authority:
    return make_ca("operator")


@cache
def credential(name: str, lifetime: timedelta = DAY) -> Credential:
    """One credential per name."""
    key = new_key()
    leaf = operator_ca().issue(uri_sans=["urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"], key=key, lifetime=lifetime)
    private = TokenEcPrivateKey(cast("Any", None), f"nf-{name}", key.public_key())
    root = operator_ca().certificate
    return Credential((leaf.certificate, root), (root,), private, f"pkcs11:token=t;object=nf-{name};type=private")


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
