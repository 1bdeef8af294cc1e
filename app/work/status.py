"""The statuses of a piece of work and the moves between them.

paused ◀─▶ queued ◀─▶ running ──▶ succeeded
  │          │         │ └────▶ failed
  └──────────┴─────────┴──────▶ cancelled
"""

from enum import StrEnum


class WorkStatus(StrEnum):
    """Where a piece of work is; what its worker wants or is wanted to do is a column, `desired`."""

    QUEUED = "queued"
    """Waiting for a worker: new, or handed back by one. Not before `available_at`."""

    PAUSED = "paused"
    """Set aside by its owner: nobody claims it."""

    RUNNING = "running"
    """Claimed by a worker that keeps its lease alive."""

    SUCCEEDED = "succeeded"
    """Done, and its result entered in the same transaction."""

    FAILED = "failed"
    """Given up: somebody must change something, or its retries are spent."""

    CANCELLED = "cancelled"
    """Not wanted any more."""


MOVES: dict[WorkStatus, frozenset[WorkStatus]] = {
    WorkStatus.QUEUED: frozenset({WorkStatus.RUNNING, WorkStatus.PAUSED, WorkStatus.CANCELLED}),
    WorkStatus.PAUSED: frozenset({WorkStatus.QUEUED, WorkStatus.CANCELLED}),
    WorkStatus.RUNNING: frozenset({WorkStatus.QUEUED, WorkStatus.SUCCEEDED, WorkStatus.FAILED, WorkStatus.CANCELLED}),
    WorkStatus.SUCCEEDED: frozenset(),
    WorkStatus.FAILED: frozenset(),
    WorkStatus.CANCELLED: frozenset(),
}
FINAL = frozenset(status for status, targets in MOVES.items() if not targets)


def sources(target: WorkStatus) -> frozenset[WorkStatus]:
    """The statuses from which work may move to `target`."""
    return frozenset(status for status, targets in MOVES.items() if target in targets)


class WorkKind(StrEnum):
    """What shall be done to the subject."""

    PREPARE = "prepare"
    """Check the rows, tokenise, label; on the `prepare` queue, without a training slot."""

    REPORT = "report"
    """The same for whoever asks about a file, with no job; on the `prepare` queue."""

    PREVIEW = "preview"
    """Show some prepared rows, token by token; on the `prepare` queue."""

    PLAN = "plan"
    """Count what a training step would take, for plans; on the `prepare` queue."""

    FETCH = "fetch"
    """Copy a file from where its owner has it; on the `prepare` queue."""

    TRAIN = "train"
    """Train and publish; on the queue of a worker class."""


class Desired(StrEnum):
    """A wish: what the worker shall do, heard with its heartbeat."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


PRIORITIES = {"high": 0, "normal": 1, "low": 2}
"""Lower is claimed first."""
