"""What may be deleted, and what is still in use."""

from datetime import timedelta

from sqlalchemy import or_, select, text
from sqlalchemy.orm import Session

from app.files import service as files
from app.files.models import File
from app.jobs.models import Job
from app.registry import service as registry
from app.registry.models import RegisteredModel
from app.storage import Storage
from app.uploads import service as uploads
from app.uploads.models import UploadPart


def delete_unused_blobs(session: Session, storage: Storage, *, age: timedelta) -> int:
    """Delete the bytes of files and models deleted so long ago that no unfinished job was given and nothing else has.

    Nothing while somebody holds the lock of `files.keep_blobs`: who finds the same bytes stored shall find them later.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": files.BLOBS_LOCK}):
        return 0
    files.expire(session)
    uploads.expire(session)
    unused = uploads.forget_parts(session)
    for file in files.deleted_before(session, age):
        if not _in_training(session, file):
            session.delete(file)
            unused.add(file.sha256)
    for model in registry.deleted_before(session, age):
        if not _is_started_from(session, model):
            session.delete(model)
            storage.delete_manifest(model.manifest_key)
            unused.update(published["sha256"] for published in model.files)
    session.flush()
    unshared = [sha256 for sha256 in unused if not _shared(session, sha256)]
    for sha256 in unshared:
        storage.delete(sha256)
    return len(unshared)


def _in_training(session: Session, file: File) -> bool:
    given = or_(
        Job.spec["training_file"].astext == file.id,
        Job.spec["validation_file"].astext == file.id,
    )
    return session.scalar(select(Job.id).where(given, Job.finished_at.is_(None)).limit(1)) is not None


def _is_started_from(session: Session, model: RegisteredModel) -> bool:
    given = Job.spec["model"].astext == model.id
    return session.scalar(select(Job.id).where(given, Job.finished_at.is_(None)).limit(1)) is not None


def _shared(session: Session, sha256: str) -> bool:
    """Whether the same bytes are another file's or its part, a prepared file's, or another model's."""
    users = (
        select(File.id).where(File.sha256 == sha256),
        select(UploadPart.id).where(UploadPart.sha256 == sha256),
        select(RegisteredModel.id).where(RegisteredModel.files.contains([{"sha256": sha256}])),
        select(Job.id).where(
            or_(
                Job.prepared["train"]["sha256"].astext == sha256,
                Job.prepared["validation"]["sha256"].astext == sha256,
            )
        ),
    )
    return any(session.scalar(user.limit(1)) is not None for user in users)
