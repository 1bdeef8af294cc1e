"""Plans that were made, and the dry runs behind them."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Time


class StoredDryRun(Base):
    """A question that plans have in common, and its answer once there is one."""

    __tablename__ = "dry_runs"
    __table_args__ = (
        CheckConstraint("(finished_at IS NOT NULL) = (found IS NOT NULL OR error IS NOT NULL)", "finished_with"),
        Index("ix_dry_runs_pending", "key", postgresql_where=text("finished_at IS NULL")),
        Index("ix_dry_runs_created", "created_at"),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the question."""
    asked: Mapped[dict[str, Any]]
    """An `Asked`."""
    found: Mapped[dict[str, Any] | None]
    """A `DryRun`."""
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Time | None]


class StoredPlan(Base):
    """What was answered to whoever asked for a plan; or that a job, which has its plan itself, waits for a dry run."""

    __tablename__ = "plans"
    __table_args__ = (
        CheckConstraint("(job_id IS NULL) = (answer IS NOT NULL)", "answer_unless_a_job_has_it"),
        Index("ix_plans_dry_run", "dry_run_key"),
        Index("ix_plans_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    answer: Mapped[dict[str, Any] | None]
    """A `PlanRead`, by the formula."""
    dry_run_key: Mapped[str | None] = mapped_column(ForeignKey("dry_runs.key", ondelete="SET NULL"))
    created_at: Mapped[CreatedAt]
