"""Models that jobs made, one for each job that succeeded and for each checkpoint, and who else may use them."""

from typing import Any, Literal

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq, Time


class RegisteredModel(Base):
    """An adapter or a full model, bound to the exact base it was trained on."""

    __tablename__ = "registered_models"
    __table_args__ = (
        CheckConstraint("kind IN ('adapter', 'full')", "known_kind"),
        # A job has one result, and one checkpoint of a step.
        UniqueConstraint("job_id", "step", postgresql_nulls_not_distinct=True),
        Index("ix_registered_models_project", "project_id", "seq"),
        Index("ix_registered_models_files", "files", postgresql_using="gin"),
        Index("ix_registered_models_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """`ft:<base>:<project>:<suffix>:<id>`, and `:ckpt-step-<N>` for a checkpoint."""
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int | None]
    """Of a checkpoint; None for a job's result."""
    parent: Mapped[str | None]
    """The registry model that its job started from."""
    kind: Mapped[Literal["adapter", "full"]] = mapped_column(String)
    base: Mapped[dict[str, Any]]
    """A `BaseIdentity`."""
    method: Mapped[str]
    tuning: Mapped[dict[str, Any]]
    trained_parameters: Mapped[int] = mapped_column(BigInteger)
    all_parameters: Mapped[int] = mapped_column(BigInteger)
    """Of the base and the adapter together."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Of all published files."""
    files: Mapped[list[Any]]
    """`{name, bytes, sha256}` of each published file, by name."""
    manifest_key: Mapped[str]
    manifest_sha256: Mapped[str]
    training_file: Mapped[dict[str, Any]]
    """`{id, sha256}`."""
    seed: Mapped[int]
    versions: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[Time | None]
    """Hidden from then on; the sweeper takes the bytes once nothing needs them."""


class CheckpointPermission(Base):
    """A project's right to see and use another's result or checkpoint."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("model", "project_id"),
        Index("ix_checkpoint_permissions_project", "project_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    model: Mapped[str] = mapped_column(ForeignKey("registered_models.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    """Who may; not the model's own."""
    created_at: Mapped[CreatedAt]
