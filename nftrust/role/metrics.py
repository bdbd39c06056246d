"""The Prometheus metrics of the server roles; docs/metrics.md explains each.

The fronts of a server are processes: prometheus_client's multiprocess mode
keeps each one's values in memory-mapped files (:mod:`nftrust.role.metrics_files`),
so that whichever front is asked answers for all, and counters survive a front
that is replaced. Labels come from closed sets; no label names an NF.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache, wraps
from typing import Any, ParamSpec

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

from nftrust.errors import Reason
from nftrust.process.control import FRONT_VARIABLE

if (_front := os.environ.get(FRONT_VARIABLE)) is not None:
    # Before the first metric. By default values are kept by process id, and never given up.
    values.ValueClass = values.MultiProcessValue(lambda: _front)  # type: ignore[no-untyped-call]

P = ParamSpec("P")

log = logging.getLogger("nftrust.metrics")

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

CALLS = Counter("nftrust_rpc_calls", "Calls answered.", ["method", "code", "reason"])
CALL_SECONDS = Histogram("nftrust_rpc_call_seconds", "Time to answer a call.", ["method"], buckets=_FAST)
TOKEN_OPERATIONS = Counter("nftrust_token_operations", "Operations asked of the token.", ["operation", "reason"])
TOKEN_BATCH_SECONDS = Histogram("nftrust_token_batch_seconds", "Time of one batch of operations.", buckets=_FAST)
TOKEN_QUEUE = Gauge("nftrust_token_queue", "Operations that wait for the token.", multiprocess_mode="livesum")
STORE_COMMITS = Counter("nftrust_storage_commits", "Group commits.", ["reason"])
STORE_COMMIT_SECONDS = Histogram("nftrust_storage_commit_seconds", "Time of one group commit.", buckets=_FAST)
STORE_BATCH = Histogram("nftrust_storage_batch_units", "Units of work in one group commit.", buckets=_SIZES)
STORE_QUEUE = Gauge("nftrust_storage_queue", "Units of work that wait for a commit.", multiprocess_mode="livesum")
AVAILABLE = Gauge(
    "nftrust_available",
    "Whether clock, token and database are well (1) or not.",
    ["what"],
    multiprocess_mode="livemin",
)
STEPS = Counter("nftrust_enrolment_steps", "Steps of enrolments done, by number (TR 33.876).", ["step"])
STEP_REFUSALS = Counter("nftrust_enrolment_refusals", "Steps that were refused or put off.", ["state", "reason"])
ENROLMENTS_ENDED = Counter("nftrust_enrolments_ended", "Enrolments that have ended.", ["state"])
ENROLMENT_SECONDS = Histogram("nftrust_enrolment_seconds", "From start to success.", buckets=_SLOW)
ENROLMENTS = Gauge("nftrust_enrolments", "Enrolments by state.", ["state"], multiprocess_mode="livemax")
NF_CERTIFICATES = Gauge(
    "nftrust_nf_certificates",
    "Certificates of NFs that are not revoked, by what is left of their validity.",
    ["left"],
    multiprocess_mode="livemax",
)
SUSPENDED = Gauge("nftrust_suspended_nfs", "NFs suspended after a theft signal.", multiprocess_mode="livemax")
NOT_AFTER = Gauge(
    "nftrust_not_after_timestamp_seconds",
    "End of validity, seconds since 1970.",
    ["certificate"],
    multiprocess_mode="livemin",
)
CRL_NEXT_UPDATE = Gauge(
    "nftrust_crl_next_update_timestamp_seconds", "When the CRL has to be replaced.", multiprocess_mode="livemax"
)


def _harmless(observe: Callable[P, None]) -> Callable[P, None]:
    """What is observed goes on, whatever the observer meets: a full disk, a folder that was swept away."""

    @wraps(observe)
    def observed(*arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            observe(*arguments, **keywords)
        except Exception as error:  # noqa: BLE001 - the threads of token and database do not end of it
            log.warning("not counted", extra={"cause": type(error).__name__})

    return observed


@_harmless
def call(method: str, code: str, reason: str, seconds: float) -> None:
    """An :data:`nftrust.rpc.handlers.Observer`."""
    counter, histogram = _call(method, code, reason)
    counter.inc()
    histogram.observe(seconds)


@cache  # the labels are of closed sets: methods, codes, reasons
def _call(method: str, code: str, reason: str) -> tuple[Any, Any]:
    return CALLS.labels(method, code, reason), CALL_SECONDS.labels(method)


@_harmless
def token_batch(operations: Sequence[tuple[str, Reason | None]], seconds: float, queued: int) -> None:
    """An :data:`nftrust.pkcs11.client.BatchObserver`."""
    for name, reason in operations:
        _operation(name, "" if reason is None else reason.name).inc()
    TOKEN_BATCH_SECONDS.observe(seconds)
    TOKEN_QUEUE.set(queued)


@cache
def _operation(name: str, reason: str) -> Any:
    return TOKEN_OPERATIONS.labels(name, reason)


@_harmless
def commit(units: int, reason: Reason | None, seconds: float, queued: int) -> None:
    """An :data:`nftrust.storage.writer.CommitObserver`."""
    _commit("" if reason is None else reason.name).inc()
    if reason is None:
        STORE_COMMIT_SECONDS.observe(seconds)
        STORE_BATCH.observe(units)
    STORE_QUEUE.set(queued)


@cache
def _commit(reason: str) -> Any:
    return STORE_COMMITS.labels(reason)


class EnrolmentMetrics:
    """Implements the CM proxy's RunnerObserver."""

    @_harmless
    def step(self, number: int) -> None:
        STEPS.labels(str(number)).inc()

    @_harmless
    def refused(self, state: str, reason: Reason) -> None:
        STEP_REFUSALS.labels(state, reason.name).inc()

    @_harmless
    def ended(self, state: str, duration: timedelta) -> None:
        ENROLMENTS_ENDED.labels(state).inc()
        if state == "succeeded":
            ENROLMENT_SECONDS.observe(duration.total_seconds())


@_harmless
def available(what: str, there: bool) -> None:
    AVAILABLE.labels(what).set(there)


@_harmless
def not_after(certificate: str, time: datetime) -> None:
    NOT_AFTER.labels(certificate).set(time.timestamp())


def exposition() -> bytes:
    """All values of all fronts, in Prometheus's text format."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
