"""Files that come in parts."""

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Seq, Time

STATUSES = ("pending", "completed", "cancelled", "expired")


class Upload(Base):
    """A file announced by its size, until its parts are put together or it has waited too long for them."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", "known_status"),
        CheckConstraint("(file_id IS NOT NULL) = (status = 'completed')", "file_when_completed"),
        Index("ix_uploads_project", "project_id", "seq"),
        Index("ix_uploads_status", "status", "expires_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[Seq]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Of all parts together, as announced."""
    mime_type: Mapped[str]
    expires_after: Mapped[int | None]
    """Seconds that the file shall live."""
    status: Mapped[str] = mapped_column(server_default="pending")
    file_id: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time]


class UploadPart(Base):
    """Some of an upload's bytes, stored as a blob until the file has them."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload_id"), Index("ix_upload_parts_sha256", "sha256"))

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[CreatedAt]
