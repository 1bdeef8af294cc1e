"""What may be deleted, and what is still in use."""

from datetime import timedelta

from sqlalchemy import func, or_, select, text, union_all
from sqlalchemy.orm import Session

from app.db import let_rest
from app.files import service as files
from app.files.models import File
from app.jobs import resume_states
from app.jobs.models import Job
from app.registry.models import RegisteredModel
from app.reports import service as reports
from app.settings import get_settings
from app.storage import Storage
from app.uploads import service as uploads
from app.uploads.models import UploadPart

BATCH = 50
"""Files or parts at a time: whoever stores bytes waits meanwhile."""
MODELS = 5
"""The same for models, which have several files each."""


def hide_expired(session: Session) -> None:
    """Delete what was to go by itself by now, as its owner would."""
    files.expire(session)
    uploads.expire(session)


def delete_unused_blobs(session: Session, storage: Storage, *, age: timedelta) -> bool:
    """Delete some bytes of what was deleted so long ago, unless an unfinished job was given it or something else has
    the same. Returns whether there may be more.

    Nothing while somebody holds the lock of `files.keep_blobs`: who finds the same bytes stored shall find them later.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": files.BLOBS_LOCK}):
        return False
    # The lock is this transaction's: while bytes are being deleted, on a bucket's slow days too, it must not end.
    let_rest(session)
    unused = (
        uploads.forget_parts(session, BATCH)
        or _forget_files(session, age)
        or _forget_models(session, storage, age)
        or _forget_resume_states(session, storage)
        or reports.forget_sets(session, get_settings().prepared_sets_kept, needed=_to_be_read(session))
    )
    if not unused:
        return False
    for sha256 in unused - _shared(session, unused):
        storage.delete(sha256)
    return True


def _forget_files(session: Session, age: timedelta) -> set[str]:
    """Strike off files that no unfinished job was given; returns their blobs."""
    given = union_all(
        *(
            select(Job.spec[name].astext).where(Job.finished_at.is_(None), Job.spec[name].astext.is_not(None))
            for name in ("training_file", "validation_file")
        )
    )
    hidden = select(File).where(File.deleted_at < func.now() - age, File.id.not_in(given))
    found = session.scalars(hidden.order_by(File.deleted_at).limit(BATCH)).all()
    for file in found:
        session.delete(file)
    session.flush()
    return {file.sha256 for file in found}


def _forget_models(session: Session, storage: Storage, age: timedelta) -> set[str]:
    """Strike off models that no unfinished job starts from and no adapter was trained on; returns their blobs."""
    given = union_all(
        select(Job.spec["model"].astext).where(Job.finished_at.is_(None)),
        select(RegisteredModel.base["id"].astext).where(RegisteredModel.kind == "adapter"),
    )
    hidden = select(RegisteredModel).where(
        RegisteredModel.deleted_at < func.now() - age, RegisteredModel.id.not_in(given)
    )
    found = session.scalars(hidden.order_by(RegisteredModel.deleted_at).limit(MODELS)).all()
    for model in found:
        session.delete(model)
        storage.delete_manifest(model.manifest_key)
    session.flush()
    return {published["sha256"] for model in found for published in model.files}


def _forget_resume_states(session: Session, storage: Storage) -> set[str]:
    """Strike off what no job goes on from any more; returns its blobs."""
    found = resume_states.forget(session, get_settings().scratch_retention)
    for state in found:
        storage.delete_manifest(state.manifest_key)
    return {file["sha256"] for state in found for file in state.files}


def _shared(session: Session, unused: set[str]) -> set[str]:
    """Those that are another file's or its part, another model's, a checkpoint's that a job goes on from, or a prepared
    set's, kept or still to be read.
    """
    models = select(RegisteredModel.files).where(
        or_(*(RegisteredModel.files.contains([{"sha256": sha256}]) for sha256 in unused))
    )
    return {
        *session.scalars(select(File.sha256).where(File.sha256.in_(unused))),
        *session.scalars(select(UploadPart.sha256).where(UploadPart.sha256.in_(unused))),
        *(published["sha256"] for published_files in session.scalars(models) for published in published_files),
        *resume_states.held(session, unused),
        *reports.held(session, unused),
        *_to_be_read(session),
    }


def _to_be_read(session: Session) -> set[str]:
    """The prepared sets of unfinished jobs."""
    digests = (Job.prepared["train"]["sha256"].astext, Job.prepared["validation"]["sha256"].astext)
    rows = session.execute(select(*digests).where(Job.finished_at.is_(None), Job.prepared.is_not(None)))
    return {sha256 for row in rows for sha256 in row if sha256 is not None}
