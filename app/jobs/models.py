"""Jobs and their history."""

from typing import Any, Literal

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
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
        CheckConstraint("(paused_by IS NOT NULL) = (status = 'paused')", "paused_by_somebody"),
        CheckConstraint("paused_by IS DISTINCT FROM 'no_space' OR lack IS NOT NULL", "lack_when_no_space"),
        Index("ix_jobs_project", "project_id", "seq"),
        Index("ix_jobs_metadata", text("(spec -> 'metadata')"), postgresql_using="gin"),
        Index("ix_jobs_request", "project_id", "request_sha256", "seq"),
        Index("ix_jobs_status", "status"),
        Index("ix_jobs_unfinished", "seq", postgresql_where=text("finished_at IS NULL")),
        UniqueConstraint("project_id", "idempotency_key"),
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
    plan: Mapped[dict[str, Any] | None]
    """A `PlanRead`: what it was planned to take, once the files are prepared; None: its base's shape is not known."""
    probe: Mapped[dict[str, Any] | None]
    """What its longest batch took before the first step: a `ProbeRead`."""
    status: Mapped[str] = mapped_column(server_default=JobStatus.VALIDATING_FILES)
    desired: Mapped[str] = mapped_column(server_default=Desired.RUN)
    paused_by: Mapped[str | None]
    """`user`, or `no_space`: then the sweeper resumes it."""
    lack: Mapped[dict[str, Any] | None]
    """What there was no room for, of a job that `no_space` has paused: see `space`."""
    queue: Mapped[str]
    """The worker class that trains it."""
    warnings: Mapped[list[Any]] = mapped_column(server_default="[]")
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_files: Mapped[list[Any]] = mapped_column(server_default="[]")
    """Ids of files with purpose `fine-tune-results`: the metrics, step by step."""
    request_sha256: Mapped[str | None]
    """Of the spec as it was sent: how a repeated request is known."""
    idempotency_key: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]

    @property
    def current_spec(self) -> JobSpec:
        """The resolved spec where there is one, else the spec as asked for."""
        return JobSpec.model_validate(self.resolved or self.spec)


Label = Literal["best", "last"]
"""What a checkpoint is among those of its job: the best by validation loss, where training ended, or both."""


class JobCheckpoint(Base):
    """A model from the middle of a job; its weights are in the registry."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (Index("ix_job_checkpoints_job", "job_id", "seq"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    model: Mapped[str] = mapped_column(ForeignKey("registered_models.id", ondelete="CASCADE"), unique=True)
    step: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    """In OpenAI's names: `step`, `train_loss`, …"""
    created_at: Mapped[CreatedAt]


class ResumeState(Base):
    """A checkpoint as training goes on from it, in the storage: for workers that are not the one that saved it.

    Entered before its first blob is stored, so that no blob is there without a row. It counts once its manifest is.
    """

    __tablename__ = "resume_states"
    __table_args__ = (
        UniqueConstraint("job_id", "step", "attempt"),
        Index("ix_resume_states_files", "files", postgresql_using="gin"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    attempt: Mapped[int]
    """That saved it, or found it on its worker's disk."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[Any]]
    """`{name, bytes, sha256}` of each."""
    manifest_sha256: Mapped[str | None]
    """None as long as it is on its way."""
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[Time | None]
    """Not used from then on; the sweeper takes the bytes."""

    @property
    def manifest_key(self) -> str:
        """Where its manifest lies; another attempt's lies beside it."""
        return f"resume/{self.job_id}/{self.step:09d}-{self.attempt:06d}.json"


class JobLog(Base):
    """Some lines that a job's trainer printed."""

    __tablename__ = "job_logs"
    __table_args__ = (Index("ix_job_logs_job", "job_id", "seq"),)

    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[CreatedAt]
    text: Mapped[str]


class StreamToken(Base):
    """A browser's right to follow one job for a while; the address that carries it is no secret for long."""

    __tablename__ = "stream_tokens"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    expires_at: Mapped[Time]


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
