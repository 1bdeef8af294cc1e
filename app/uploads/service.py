"""What a user can do with uploads: announce one, send its parts, have them put together."""

import hashlib
from datetime import timedelta

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import let_rest, new_id
from app.errors import InvalidRequest, NotFound, TooLarge
from app.files import service as files
from app.files.models import File
from app.storage import Incoming, Storage
from app.uploads.models import Upload, UploadPart

LIFETIME = timedelta(hours=1)
"""From the announcement to the last moment of completion, as OpenAI has it."""
MAX_PART_BYTES = 64 * 1024 * 1024


def create(
    session: Session,
    project: Project,
    *,
    filename: str,
    purpose: str,
    size: int,
    mime_type: str,
    expires_after: int | None,
) -> Upload:
    """Announce a file. Raises `InvalidRequest`, or `TooLarge` for one that there is no room for."""
    files.require_purpose(purpose)
    # One after the other, or several at once would each find the same room.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:room, 0))"), {"room": f"room {project.id}"})
    files.require_room(session, project, size, param="bytes")
    upload = Upload(
        id=new_id("upload_"),
        project_id=project.id,
        filename=files.display_name(filename),
        purpose=purpose,
        bytes=size,
        mime_type=mime_type,
        expires_after=expires_after,
        expires_at=func.now() + LIFETIME,
    )
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def get(session: Session, project: Project, upload_id: str, *, lock: bool = False) -> tuple[Upload, File | None]:
    """An upload of the project, and its file once it is complete. Raises `NotFound`."""
    mine = select(Upload).where(Upload.id == upload_id, Upload.project_id == project.id)
    upload = session.scalar(mine.with_for_update() if lock else mine)
    if upload is None:
        raise NotFound(f"No such upload: {upload_id}", param="upload_id")
    return upload, session.get(File, upload.file_id) if upload.file_id else None


def add_part(session: Session, storage: Storage, project: Project, upload_id: str, incoming: Incoming) -> UploadPart:
    """Take a part that has arrived whole. Raises `InvalidRequest` for an upload that takes none any more."""
    upload, _ = get(session, project, upload_id, lock=True)
    _require_pending(session, upload)
    if incoming.bytes == 0:
        raise InvalidRequest("The part is empty.", param="data")
    arrived = session.scalar(select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == upload.id)) or 0
    if arrived + incoming.bytes > upload.bytes:
        raise TooLarge(
            f"The parts have {arrived + incoming.bytes} bytes together; {upload.bytes} were announced.", param="data"
        )
    let_rest(session)
    files.keep_blobs(session)
    blob = storage.commit(incoming)
    part = UploadPart(id=new_id("part_"), upload_id=upload.id, bytes=blob.bytes, sha256=blob.sha256)
    session.add(part)
    session.flush()
    session.refresh(part)
    return part


def complete(
    session: Session, storage: Storage, project: Project, upload_id: str, part_ids: list[str], md5: str | None
) -> tuple[Upload, File]:
    """Put the parts together in the order given. A repetition is answered with the file that was made.

    Raises `InvalidRequest` for parts that are not the upload's, are not all of its bytes, or have another MD5.
    """
    upload, file = get(session, project, upload_id, lock=True)
    if file is not None:
        return upload, file
    _require_pending(session, upload)
    rows = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))
    known = {part.id: part for part in rows}
    for part_id in part_ids:
        if part_id not in known:
            raise InvalidRequest(f"'{part_id}' is not a part of {upload.id}.", param="part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise InvalidRequest("A part is named twice.", param="part_ids")
    total = sum(known[part_id].bytes for part_id in part_ids)
    if total != upload.bytes:
        raise InvalidRequest(f"The parts have {total} bytes together; {upload.bytes} were announced.", param="part_ids")
    let_rest(session)
    digest = hashlib.md5(usedforsecurity=False)
    with storage.incoming() as incoming:
        for part_id in part_ids:
            for chunk in storage.read(known[part_id].sha256, size=known[part_id].bytes):
                incoming.write(chunk)
                digest.update(chunk)
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise InvalidRequest(
                f"The MD5 of the parts together is {digest.hexdigest()}. Send the parts that differ again.", param="md5"
            )
        file = files.receive(
            session,
            storage,
            project,
            incoming,
            filename=upload.filename,
            purpose=upload.purpose,
            expires_after=upload.expires_after,
            reserved=upload.bytes,
        )
    upload.status, upload.file_id = "completed", file.id
    session.flush()
    session.refresh(file)
    return upload, file


def cancel(session: Session, project: Project, upload_id: str) -> Upload:
    """Take no more parts; idempotent. Raises `InvalidRequest` for an upload that is complete."""
    upload, _ = get(session, project, upload_id, lock=True)
    if upload.status != "cancelled":
        _require_pending(session, upload)
        upload.status = "cancelled"
    return upload


def expire(session: Session) -> None:
    """Give up uploads that have waited too long, but for those that are being put together at this moment."""
    waiting = select(Upload.id).where(Upload.status == "pending", Upload.expires_at < func.now())
    due = waiting.with_for_update(skip_locked=True)
    session.execute(update(Upload).where(Upload.id.in_(due)).values(status="expired"))


def forget_parts(session: Session, count: int) -> set[str]:
    """Strike off some of the parts that nobody will put together any more; returns the blobs they were."""
    over = select(UploadPart.id).join(Upload, Upload.id == UploadPart.upload_id).where(Upload.status != "pending")
    gone = delete(UploadPart).where(UploadPart.id.in_(over.limit(count))).returning(UploadPart.sha256)
    return set(session.scalars(gone))


def _require_pending(session: Session, upload: Upload) -> None:
    over = session.scalar(select(func.now() > upload.expires_at))
    if upload.status != "pending" or over:
        status = "expired" if upload.status == "pending" else upload.status
        raise InvalidRequest(f"The upload {upload.id} is {status}. Make a new one.", param="upload_id")
