"""Jobs and their history."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq, Time
from app.jobs.spec import JobSpec
from app.jobs.status import FINAL, JobStatus
from app.work.status import Desired

_final = ", ".join(f"'{status}'" for status in sorted(FINAL))
_statuses = ", ".join(f"'{status}'" for status in JobStatus)


class Job(Base):
    """One request to fine-tune, from submit to final status."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({_statuses})", "known_status"),
        CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_final}))", "finished_when_final"),
        CheckConstraint("(fine_tuned_model IS NOT NULL) = (status = 'succeeded')", "result_when_succeeded"),
        CheckConstraint("(error IS NOT NULL) = (status = 'failed')", "error_when_failed"),
        Index("ix_jobs_project", "project_id", "seq"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    spec: Mapped[dict[str, Any]]
    """A `JobSpec` as asked for, with its seed chosen."""
    resolved: Mapped[dict[str, Any] | None]
    """The same with every `auto` replaced by its number, once the files are prepared."""
    prepared: Mapped[dict[str, Any] | None]
    """A `Prepared`: what preparing found."""
    status: Mapped[str] = mapped_column(server_default=JobStatus.VALIDATING_FILES)
    desired: Mapped[str] = mapped_column(server_default=Desired.RUN)
    queue: Mapped[str]
    """The worker class that trains it."""
    warnings: Mapped[list[Any]] = mapped_column(server_default="[]")
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]

    @property
    def current_spec(self) -> JobSpec:
        """The resolved spec where there is one, else the spec as asked for."""
        return JobSpec.model_validate(self.resolved or self.spec)


class JobEvent(Base):
    """An entry of a job's history."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job", "job_id", "seq"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[CreatedAt]
    level: Mapped[str]
    """`info`, `warn` or `error`."""
    type: Mapped[str]
    """`message` or `metrics`."""
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
