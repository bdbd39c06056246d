"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab_kit import RunningLab, SecondCa


@pytest.fixture(scope="session")
def second_ca(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondCa]:
    """A CA/RA whose database a test may change behind its back."""
    with running_lab.second_ca(tmp_path_factory.mktemp("second")) as second:
        yield second
