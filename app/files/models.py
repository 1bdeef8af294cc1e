"""Uploaded files."""

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq, Time


class File(Base):
    """A user's file: a name, a purpose, and the blob that holds its bytes."""

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("status IN ('uploaded', 'processed', 'error')", "known_status"),
        CheckConstraint("status <> 'uploaded' OR source IS NOT NULL", "uploaded_from_a_source"),
        CheckConstraint("(status_details IS NOT NULL) = (status = 'error')", "details_when_error"),
        Index("ix_files_project", "project_id", "seq"),
        Index("ix_files_sha256", "sha256"),
        Index("ix_files_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("ix_files_expires", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    purpose: Mapped[str]
    filename: Mapped[str]
    """What the client calls it; for display only, never a path."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    """Empty as long as the file is on its way from its source."""
    source: Mapped[str | None]
    """Where it was fetched from."""
    rows: Mapped[int | None]
    """Rows to train on; None for other purposes."""
    status: Mapped[str]
    """`uploaded`: on its way from its source; `processed`; `error`, with `status_details`."""
    status_details: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time | None]
    """Hidden from then on, as if deleted; None: never."""
    deleted_at: Mapped[Time | None]
    """Hidden from then on; the sweeper takes the bytes once no unfinished job needs them."""
