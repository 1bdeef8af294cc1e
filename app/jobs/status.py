"""The statuses of a job and the moves between them.

validating_files ──▶ queued ◀─▶ running ──▶ succeeded
      │   │           │  ▲       │ │ └────▶ failed
      │   ▼           ▼  │       │ │
      │  failed     paused ◀─────┘ │
      │               │            │
      └──────────▶ cancelled ◀─────┘   (from queued too)
"""

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job is, in OpenAI's words. That it shall pause or end is a column, `desired`."""

    VALIDATING_FILES = "validating_files"
    """Accepted; its rows are being checked, tokenised and labelled, or wait for that."""

    QUEUED = "queued"
    """Prepared, and waiting for a training slot: new, or handed back by one."""

    RUNNING = "running"
    """Claimed by a worker that keeps its lease alive."""

    PAUSED = "paused"
    """Set aside, its checkpoints kept; `paused_by` says by whom."""

    SUCCEEDED = "succeeded"
    """Its result is in the registry."""

    FAILED = "failed"
    """Given up; `error` says why and what to change."""

    CANCELLED = "cancelled"
    """Ended by its owner."""


MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}
FINAL = frozenset(status for status, targets in MOVES.items() if not targets)


def sources(target: JobStatus) -> frozenset[JobStatus]:
    """The statuses from which a job may move to `target`."""
    return frozenset(status for status, targets in MOVES.items() if target in targets)
