"""What was found of files: prepared sets by what they depend on, and the reports and previews that were asked for."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Time


class PreparedSet(Base):
    """Rows as a trainer reads them, and the report on them: made once, read by each job of the same rows."""

    __tablename__ = "prepared_sets"
    __table_args__ = (
        Index("ix_prepared_sets_files", "training_sha256", "validation_sha256"),
        Index("ix_prepared_sets_used", "used_at"),
        Index("ix_prepared_sets_blobs", "blobs", postgresql_using="gin"),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the files, the tokenizer, its template, and the settings."""
    training_sha256: Mapped[str]
    validation_sha256: Mapped[str | None]
    report: Mapped[dict[str, Any]]
    """A `Report`."""
    findings_sha256: Mapped[str]
    findings_bytes: Mapped[int] = mapped_column(BigInteger)
    blobs: Mapped[list[Any]]
    """Digests of all that is stored of it."""
    created_at: Mapped[CreatedAt]
    used_at: Mapped[CreatedAt]


class FileReport(Base):
    """A question about a file, and which set answers it."""

    __tablename__ = "file_reports"
    __table_args__ = (
        CheckConstraint("(finished_at IS NOT NULL) = (set_key IS NOT NULL OR error IS NOT NULL)", "finished_with"),
        UniqueConstraint("file_id", "request_sha256"),
        Index("ix_file_reports_set", "set_key"),
        Index("ix_file_reports_pending", "project_id", postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    request: Mapped[dict[str, Any]]
    """A `DataSpec`."""
    request_sha256: Mapped[str]
    set_key: Mapped[str | None] = mapped_column(ForeignKey("prepared_sets.key", ondelete="CASCADE"))
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Time | None]


class FilePreview(Base):
    """Some rows of a prepared set, asked to be seen token by token."""

    __tablename__ = "file_previews"
    __table_args__ = (
        CheckConstraint("(finished_at IS NOT NULL) = (rows IS NOT NULL OR error IS NOT NULL)", "finished_with"),
        UniqueConstraint("report_id", "asked_sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    report_id: Mapped[str] = mapped_column(ForeignKey("file_reports.id", ondelete="CASCADE"))
    asked: Mapped[dict[str, Any]]
    """`{"rows": […]}` or `{"lines": […]}`."""
    asked_sha256: Mapped[str]
    rows: Mapped[list[Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[Time | None]
