"""What the whole service is at, out of the database: the same whichever process is asked.

One round of statements that take some milliseconds, on a connection of its own so that a pool in need is no hindrance,
within a few seconds, remembered for a few. A database that is away is a figure too.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import psycopg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from psycopg.rows import namedtuple_row

from app.db import conninfo
from app.work import totals
from app.work.status import PRIORITIES

log = logging.getLogger(__name__)

KEPT = 5.0
"""Seconds."""
WITHIN = 5.0
"""Seconds for all statements; Prometheus gives up after 10."""

WORKERS = "SELECT id, host, queue, device, usage FROM workers WHERE heard_at > now() - interval '30 s' ORDER BY id"
QUEUED = """
SELECT queue, priority, count(*) FILTER (WHERE available_at <= now()) AS ready,
       count(*) FILTER (WHERE available_at > now()) AS delayed,
       greatest(0, extract(epoch FROM now() - min(available_at)))::float AS oldest
FROM work WHERE status = 'queued' GROUP BY queue, priority ORDER BY queue, priority
"""
RUNNING = "SELECT queue, kind, count(*) FROM work WHERE status = 'running' GROUP BY queue, kind ORDER BY queue, kind"
JOBS = "SELECT status, count(*) FROM jobs GROUP BY status ORDER BY status"
PRIORITY_NAMES = {number: name for name, number in PRIORITIES.items()}
DEVICE_USE = {
    "memory_bytes": ("finetuned_device_memory_bytes", "Memory that a worker's device has: a GPU's, or the machine's."),
    "memory_used_bytes": ("finetuned_device_memory_used_bytes", "Of that, what is used, by whomever."),
    "utilization": ("finetuned_device_utilization_ratio", "Share of time that the device was busy."),
    "temperature_celsius": ("finetuned_device_temperature_celsius", "Of a GPU."),
    "process_memory_bytes": ("finetuned_worker_memory_bytes", "Resident memory of a worker's slot and its trainers."),
}


class Figures:
    """The last round, and when it was."""

    def __init__(self, kept: float = KEPT) -> None:
        self._kept = kept
        self._read_at = float("-inf")
        self._found: list[Metric] = []
        self._reading = asyncio.Lock()

    async def all(self) -> list[Metric]:
        """At most one round every few seconds, whoever asks. Never raises: without a database there is less to say."""
        async with self._reading:
            if time.monotonic() - self._read_at > self._kept:
                self._found = await _round()
                self._read_at = time.monotonic()
        return self._found


async def _round() -> list[Metric]:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(WITHIN):
            rows = await _ask(WORKERS, QUEUED, RUNNING, JOBS, totals.ALL)
    except (psycopg.Error, OSError, TimeoutError) as error:
        log.warning("no figures for /metrics: the database does not answer: %s", error or type(error).__name__)
        return [_up(0)]
    workers, queued, running, jobs, every = rows
    seconds = GaugeMetricFamily("finetuned_database_round_seconds", "What reading these figures took.")
    seconds.add_metric([], time.perf_counter() - began)
    return [
        _up(1),
        seconds,
        *_of_queues(queued, {row.queue for row in workers}),
        _gauge("finetuned_running", "Attempts that go on.", ("queue", "kind"), running),
        _gauge("finetuned_jobs", "Jobs by status, all there ever were.", ("status",), jobs),
        *_of_workers(workers),
        *_of_attempts(every),
    ]


async def _ask(*statements: str) -> list[list[Any]]:
    """In one snapshot. Raises `psycopg.Error`."""
    options = f"-c statement_timeout={int(1000 * WITHIN)} -c default_transaction_read_only=on"
    dsn = conninfo(application_name="finetuned-metrics", options=options)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with connection.cursor(row_factory=namedtuple_row) as cursor:
            found = []
            for statement in statements:
                await cursor.execute(statement)
                found.append(await cursor.fetchall())
            return found


def _up(value: int) -> Metric:
    up = GaugeMetricFamily("finetuned_database_up", "Whether the database has answered this process.")
    up.add_metric([], value)
    return up


def _gauge(name: str, said: str, labels: tuple[str, ...], rows: Sequence[Any]) -> Metric:
    """Of rows of labels and a count."""
    family = GaugeMetricFamily(name, said, labels=labels)
    for *named, value in rows:
        family.add_metric(named, value)
    return family


def _of_queues(rows: list[Any], served: set[str]) -> list[Metric]:
    """A queue that a worker serves is shown when it is empty too."""
    found = {(row.queue, row.priority): (row.ready, row.delayed, row.oldest) for row in rows}
    empty = {(queue, priority): (0, 0, 0) for queue in served for priority in PRIORITY_NAMES}
    shown = [
        (queue, PRIORITY_NAMES.get(priority, str(priority)), *values)
        for (queue, priority), values in sorted((empty | found).items())
    ]
    labels = ("queue", "priority")
    return [
        _gauge(
            "finetuned_queue_depth", "Work that waits for a worker.", labels, [(q, p, n) for q, p, n, _, _ in shown]
        ),
        _gauge(
            "finetuned_queue_delayed",
            "Work that waits for the time of its next try.",
            labels,
            [(q, p, n) for q, p, _, n, _ in shown],
        ),
        _gauge(
            "finetuned_queue_oldest_seconds",
            "How long the first of them could have been claimed.",
            labels,
            [(q, p, age) for q, p, _, _, age in shown],
        ),
    ]


def _of_workers(rows: list[Any]) -> list[Metric]:
    alive = GaugeMetricFamily(
        "finetuned_workers", "Slots heard within the last 30 s, by queue and device.", labels=["queue", "device"]
    )
    for (queue, device), group in groupby(sorted((row.queue, row.device["name"]) for row in rows)):
        alive.add_metric([queue, device], len(list(group)))
    used = []
    for measure, (name, said) in DEVICE_USE.items():
        known = [(row.id, row.host, row.queue, row.usage[measure]) for row in rows if measure in row.usage]
        used.append(_gauge(name, said, ("worker", "host", "queue"), known))
    return [alive, *used]


def _of_attempts(rows: list[Any]) -> list[Metric]:
    """Counters, and a histogram of phases, of what `totals.ALL` says."""
    of: dict[str, list[Any]] = {"outcome": [], "error": [], "retry": [], "phase": []}
    for row in rows:
        of[row.measure].append(row)
    lost = dict.fromkeys((_of(row)[:2] for row in of["outcome"]), 0)  # 0 before the first: of nothing is no increase
    lost |= {_of(row)[:2]: row.count for row in of["outcome"] if row.label == "lease_expired"}
    return [
        _counter(
            "finetuned_attempts",
            "Attempts that have ended.",
            "outcome",
            [(*_of(row), row.count) for row in of["outcome"]],
        ),
        _counter(
            "finetuned_attempt_seconds",
            "What they took.",
            "outcome",
            [(*_of(row), row.seconds) for row in of["outcome"]],
        ),
        _counter(
            "finetuned_attempt_errors",
            "Attempts that ended with an error.",
            "code",
            [(*_of(row), row.count) for row in of["error"]],
        ),
        _counter(
            "finetuned_retries",
            "Attempts after which another was due.",
            "outcome",
            [(*_of(row), row.count) for row in of["retry"]],
        ),
        _counter(
            "finetuned_lease_losses",
            "Attempts whose worker was not heard of again.",
            None,
            [(*named, count) for named, count in lost.items()],
        ),
        _phases(of["phase"]),
    ]


def _of(row: Any) -> tuple[str, str, str]:
    return row.kind, row.queue, row.label


def _counter(name: str, said: str, label: str | None, rows: Sequence[Any]) -> Metric:
    family = CounterMetricFamily(name, said, labels=["kind", "queue", *([label] if label else [])])
    for *named, value in rows:
        family.add_metric(named, value)
    return family


def _phases(rows: list[Any]) -> Metric:
    bounds = [*(str(bound) for bound in totals.BUCKETS), "+Inf"]
    family = HistogramMetricFamily(
        "finetuned_phase_seconds",
        "What attempts that have ended were at, and waited for.",
        labels=["kind", "queue", "phase"],
    )
    for labels, group in groupby(rows, _of):
        found = {row.bucket: row for row in group}
        count = 0
        buckets = []
        for index, bound in enumerate(bounds):
            count += found[index].count if index in found else 0
            buckets.append((bound, count))
        family.add_metric(labels, buckets, sum(row.seconds for row in found.values()))
    return family
