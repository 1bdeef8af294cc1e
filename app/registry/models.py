"""Results: one row for each job that succeeded."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq


class RegisteredModel(Base):
    """An adapter or a full model, bound to the exact base it was trained on."""

    __tablename__ = "registered_models"
    __table_args__ = (
        CheckConstraint("kind IN ('adapter', 'full')", "known_kind"),
        Index("ix_registered_models_project", "project_id", "seq"),
        Index("ix_registered_models_files", "files", postgresql_using="gin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """`ft:<base>:<project>:<suffix>:<id>`."""
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    kind: Mapped[str]
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
