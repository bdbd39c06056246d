"""The two wheels, built once for all tests (a pytest plugin)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slim_kit import build


@pytest.fixture(scope="session")
def agent_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("nf-agent", tmp_path_factory.mktemp("agent-wheel"))


@pytest.fixture(scope="session")
def nftrust_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("nftrust", tmp_path_factory.mktemp("nftrust-wheel"))
