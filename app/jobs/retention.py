"""What may be deleted, and what is still in use."""

from datetime import timedelta

from sqlalchemy import or_, select, text
from sqlalchemy.orm import Session

from app.files import service as files
from app.files.models import File
from app.jobs.models import Job
from app.registry.models import RegisteredModel
from app.storage import Storage


def delete_unused_blobs(session: Session, storage: Storage, *, age: timedelta) -> int:
    """Delete the bytes of files deleted so long ago that no unfinished job was given and nothing else has.

    The advisory lock keeps an upload of the same bytes from being told that they are stored already.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": files.BLOBS_LOCK})
    deleted = 0
    for file in files.deleted_before(session, age):
        if _in_training(session, file):
            continue
        session.delete(file)
        session.flush()
        if not _shared(session, file.sha256):
            storage.delete(file.sha256)
            deleted += 1
    return deleted


def _in_training(session: Session, file: File) -> bool:
    given = or_(
        Job.spec["training_file"].astext == file.id,
        Job.spec["validation_file"].astext == file.id,
    )
    return session.scalar(select(Job.id).where(given, Job.finished_at.is_(None)).limit(1)) is not None


def _shared(session: Session, sha256: str) -> bool:
    """Whether the same bytes are another file's, a prepared file's, or a result's."""
    users = (
        select(File.id).where(File.sha256 == sha256),
        select(RegisteredModel.id).where(RegisteredModel.files.contains([{"sha256": sha256}])),
        select(Job.id).where(
            or_(
                Job.prepared["train"]["sha256"].astext == sha256,
                Job.prepared["validation"]["sha256"].astext == sha256,
            )
        ),
    )
    return any(session.scalar(user.limit(1)) is not None for user in users)
