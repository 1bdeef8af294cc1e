"""What this process has been asked over HTTP, and what it holds: figures of its own, which no other process knows."""

import time
from collections.abc import Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import QueuePool
from starlette.types import Scope

from app import queue
from app.db import get_engine
from app.reads import Reads

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
UNKNOWN = "unknown"
"""Where no route was found, or a word that no client of ours says: callers shall not make series."""

_requests = Counter("finetuned_http_requests", "Requests answered.", ("method", "route", "status"), registry=REGISTRY)
_seconds = Histogram(
    "finetuned_http_request_seconds",
    "From a request to the first byte of its answer; a body that arrives slowly counts.",
    ("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
    registry=REGISTRY,
)


def answered(scope: Scope, status: int, began: float) -> None:
    """Note an answer as it begins; `began` is `time.perf_counter()` at the request."""
    method = scope["method"] if scope["method"] in METHODS else UNKNOWN
    route = getattr(scope.get("route"), "path", UNKNOWN)
    requests, seconds = _series(method, route, status)
    requests.inc()
    seconds.observe(time.perf_counter() - began)


@cache
def _series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Remembered, since to look them up takes longer than to count; there are as many as there are series."""
    return _requests.labels(method, route, status), _seconds.labels(method, route)


def figures(reads: Reads) -> Iterator[Metric]:
    """What was asked, what other modules count, and this process's memory and time."""
    yield from REGISTRY.collect()
    rings = CounterMetricFamily(
        "finetuned_doorbell_rings",
        "Rings by what came of them; the sweeper mends those that failed.",
        labels=["outcome"],
    )
    for outcome, count in queue.rings().items():
        rings.add_metric([outcome], count)
    yield rings
    connections = GaugeMetricFamily(
        "finetuned_database_connections",
        "This process's: `sessions` for routes in threads, `reads` for those on the event loop.",
        labels=["pool", "state"],
    )
    sessions = get_engine().pool
    assert isinstance(sessions, QueuePool)  # noqa: S101  what SQLAlchemy takes for PostgreSQL
    connections.add_metric(["sessions", "in_use"], sessions.checkedout())
    connections.add_metric(["sessions", "idle"], sessions.checkedin())
    for state, count in reads.connections().items():
        connections.add_metric(["reads", state], count)
    yield connections
