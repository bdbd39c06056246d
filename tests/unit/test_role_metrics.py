"""Counting is no reason to fail: the threads of token and database, and the calls, outlive it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nftrust.errors import Reason
from nftrust.role import metrics


class Full:
    """A metric that cannot be kept."""

    def labels(self, *values: str) -> Any:
        raise OSError(28, "No space left on device")

    observe = set = labels


@pytest.mark.parametrize(
    ("metric", "observe"),
    [
        ("CALLS", lambda: metrics.call("/never/Asked", "OK", "", 0.1)),
        ("TOKEN_BATCH_SECONDS", lambda: metrics.token_batch([], 0.1, 0)),
        ("STORE_QUEUE", lambda: metrics.commit(1, Reason.STORAGE_FULL, 0.1, 0)),
        ("AVAILABLE", lambda: metrics.available("token", True)),
        ("NOT_AFTER", lambda: metrics.not_after("ca", datetime.now(UTC))),
        ("STEPS", lambda: metrics.EnrolmentMetrics().step(1)),
        ("STEP_REFUSALS", lambda: metrics.EnrolmentMetrics().refused("waiting", Reason.INTERNAL)),
        ("ENROLMENTS_ENDED", lambda: metrics.EnrolmentMetrics().ended("failed", timedelta(0))),
    ],
)
def test_what_cannot_be_counted_is_not_missed(
    metric: str, observe: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, metric, Full())
    observe()
    assert [record.__dict__["cause"] for record in caplog.records] == ["OSError"]
