"""What workers do, who does it, and each try at it."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, false, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Time
from app.work.status import FINAL, Desired, WorkStatus

_final = ", ".join(f"'{status}'" for status in sorted(FINAL))
_statuses = ", ".join(f"'{status}'" for status in WorkStatus)


class Work(Base):
    """Something that some worker shall do to a subject."""

    __tablename__ = "work"
    __table_args__ = (
        CheckConstraint(f"status IN ({_statuses})", "known_status"),
        CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_final}))", "finished_when_final"),
        CheckConstraint("(lease_until IS NOT NULL) = (status = 'running')", "leased_when_running"),
        CheckConstraint("attempt >= failed_attempts AND failed_attempts >= 0", "attempts_counted"),
        Index(
            "ix_work_turns",
            *("queue", "priority", "project_id", "available_at", "id"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_work_running", "project_id", "queue", postgresql_where=text("status = 'running'")),
        Index(
            "ix_work_claimed",
            *("queue", "project_id", "claimed_at"),
            postgresql_where=text("claimed_at IS NOT NULL"),
        ),
        Index("ix_work_leases", "lease_until", postgresql_where=text("status = 'running'")),
        Index("ix_work_subject", "subject"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    """Id of what the work is done to: a job's, a report's, a preview's."""
    project_id: Mapped[str] = mapped_column(server_default="")
    """Whose share of the queue it takes; empty: entered by a version that did not say."""
    queue: Mapped[str]
    priority: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=WorkStatus.QUEUED)
    desired: Mapped[str] = mapped_column(server_default=Desired.RUN)
    attempt: Mapped[int] = mapped_column(server_default="0")
    """Only ever grows: it fences off a worker that lost its claim."""
    failed_attempts: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[Time | None]
    available_at: Mapped[Time] = mapped_column(server_default=func.now())
    """Not claimed before that, and among a project's work of one priority in this order."""
    claimed_at: Mapped[Time | None]
    """Last."""
    seconds_low: Mapped[float | None]
    """With `seconds_high` the interval in which it should be done once it is claimed; None: nobody knows."""
    seconds_high: Mapped[float | None]
    room_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of a worker's disk, without which it does not claim this: an attempt has run out of it before."""
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Time | None]


class Attempt(Base):
    """One worker's try at a piece of work."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", "ended_with_an_outcome"),
        Index(
            "ix_attempts_uncounted",
            *("work_id", "number"),
            postgresql_where=text("ended_at IS NOT NULL AND NOT counted"),
        ),
    )

    work_id: Mapped[int] = mapped_column(ForeignKey("work.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str]
    host: Mapped[str]
    device: Mapped[dict[str, Any]]
    started_at: Mapped[Time] = mapped_column(server_default=func.now())
    ended_at: Mapped[Time | None]
    outcome: Mapped[str | None]
    """How it ended: `succeeded`, `failed`, `cancelled`, `paused`, `interrupted`, `passed_on`, `no_space` or
    `lease_expired`."""
    error: Mapped[dict[str, Any] | None]
    resumed_from_step: Mapped[int | None]
    phases: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """Seconds of each: `waiting` before it, then `preparing`, or `loading`, `training`, `saving` and `publishing`."""
    counted: Mapped[bool] = mapped_column(server_default=false())
    """Whether it is in the totals."""


class AttemptTotal(Base):
    """How many attempts came to the same, and how long they took in all; see `totals`."""

    __tablename__ = "attempt_totals"

    kind: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str] = mapped_column(primary_key=True)
    measure: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class Worker(Base):
    """A slot that has been heard of."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    queue: Mapped[str]
    """The queue it serves: its worker class, or `prepare`."""
    device: Mapped[dict[str, Any]]
    started_at: Mapped[Time] = mapped_column(server_default=func.now())
    heard_at: Mapped[Time] = mapped_column(server_default=func.now())
    usage: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """What its device is used for just now, as the worker saw it; see `worker.devices.Meter`. `blocked`: why it takes
    no work, if so."""
