"""Real tokens for tests.

``fresh_token`` makes a token of the test's own; ``shared_token`` holds one key
of each kind (labels in :class:`Labels`) for the whole session: making an RSA
key takes seconds. Both are of SoftHSM. ``any_token``, ``signing_token`` and its
``token_client`` are of each module in turn; NSS softokn keeps no IAKs, so that
its tokens have no KEK and no transport key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nftrust.config import TokenConfig
from nftrust.pkcs11.client import TokenClient
from nftrust.pkcs11.operations import GenerateKeyPair, GenerateSecret
from softhsm import create_token
from tests.nss_kit import create_nss_token


@dataclass(frozen=True)
class Labels:
    """The keys of the shared token."""

    kek: str = "kek"
    mac: str = "mac"
    p256: str = "p256"
    p384: str = "p384"
    rsa: str = "rsa"
    transport: str = "transport"


@dataclass(frozen=True)
class SharedToken:
    """A token of the session. Tests leave its keys as they are and remove what they add."""

    config: TokenConfig
    client: TokenClient
    transport_spki: bytes
    labels: Labels = Labels()


@contextmanager
def opened(make: Callable[[TokenConfig], TokenClient], config: TokenConfig) -> Iterator[TokenClient]:
    """A client that is logged in, closed at the end."""
    client = make(config)
    try:
        client.ready()
        yield client
    finally:
        client.close()


@pytest.fixture
def fresh_token(tmp_path: Path) -> TokenConfig:
    """An empty token."""
    return create_token(tmp_path / "token", "fresh")


@pytest.fixture(scope="session")
def shared_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedToken]:
    """A token with one key of each kind, and a worker on it."""
    config = create_token(tmp_path_factory.mktemp("shared") / "token", "shared")
    labels = Labels()
    with opened(TokenClient.worker, config) as client:
        client.call(GenerateSecret(labels.kek, "kek"))
        client.call(GenerateSecret(labels.mac, "mac"))
        client.call(GenerateKeyPair(labels.p256, "ec-p256"))
        client.call(GenerateKeyPair(labels.p384, "ec-p384"))
        client.call(GenerateKeyPair(labels.rsa, "rsa-3072"))
        transport = client.call(GenerateKeyPair(labels.transport, "rsa-transport"))
        yield SharedToken(config, client, transport)


MODULES = ("softhsm", "nss")


@pytest.fixture(params=MODULES)
def any_token(request: pytest.FixtureRequest, tmp_path: Path) -> TokenConfig:
    """An empty token of each module."""
    if request.param == "softhsm":
        return create_token(tmp_path / "token", "any")
    return create_nss_token(tmp_path / "token", "any")


@pytest.fixture(scope="session")
def nss_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedToken]:
    """What NSS softokn can hold of the shared token's keys."""
    config = create_nss_token(tmp_path_factory.mktemp("nss") / "token", "nss")
    labels = Labels()
    with opened(TokenClient.worker, config) as client:
        client.call(GenerateSecret(labels.mac, "mac"))
        client.call(GenerateKeyPair(labels.p256, "ec-p256"))
        client.call(GenerateKeyPair(labels.p384, "ec-p384"))
        client.call(GenerateKeyPair(labels.rsa, "rsa-3072"))
        yield SharedToken(config, client, b"")


@pytest.fixture(scope="session", params=MODULES)
def signing_token(request: pytest.FixtureRequest) -> SharedToken:
    """A token of each module with the keys that guard no IAK."""
    token: SharedToken = request.getfixturevalue("shared_token" if request.param == "softhsm" else "nss_token")
    return token


@pytest.fixture(scope="session")
def token_client(signing_token: SharedToken) -> TokenClient:
    """Its client."""
    return signing_token.client
