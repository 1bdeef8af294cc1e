"""What a user can do with files."""

import unicodedata
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, bindparam, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import let_rest, new_id
from app.errors import FileNotUsable, InvalidRequest, NotFound, TooLarge
from app.files import sources
from app.files.judging import UNJUDGED, Judgement, Judging
from app.files.models import File
from app.pages import Page, page_of
from app.queue import PREPARE
from app.settings import get_settings
from app.storage import Blob, Incoming, Storage
from app.uploads.models import Upload
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.status import WorkKind

FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
"""Made by the service; nobody uploads one."""
PURPOSES = ("assistants", "batch", FINE_TUNE, "vision", "user_data", "evals")
BLOBS_LOCK = 0x66696C65
"""Advisory lock: shared while a blob gets its row, exclusive while blobs without rows are deleted."""


class SourceUnusable(Exception):
    """What is at a file's source cannot be taken; the message is for its owner."""


def receive(
    session: Session,
    storage: Storage,
    project: Project,
    incoming: Incoming,
    *,
    filename: str,
    purpose: str,
    expires_after: int | None = None,
    reserved: int = 0,
    judging: Judging | None = None,
) -> File:
    """Enter an upload that has arrived whole; a fine-tune file is read through and judged by its rows.

    A file with unusable rows is kept with status `error`, so that its owner sees which line is wrong. `expires_after`:
    seconds; `reserved`: bytes that were announced for it; `judging`: began while it arrived. Raises `InvalidRequest`,
    or `TooLarge` for a file that there is no room for.
    """
    require_purpose(purpose)
    if incoming.bytes == 0:
        raise InvalidRequest("The file is empty.", param="file")
    _require_size(incoming.bytes, param="file")
    incoming.sync()
    # Before the first statement: a large file takes longer to read than a transaction may rest.
    judgement = (judging or Judging(incoming.path)).end() if purpose == FINE_TUNE else UNJUDGED
    require_room(session, project, incoming.bytes, param="file", reserved=reserved)
    # Storing the bytes is a copy over the network where storage is a bucket, with this transaction open.
    let_rest(session)
    keep_blobs(session)
    blob = storage.commit(incoming)
    file = _enter(session, project.id, blob, purpose=purpose, filename=filename, judgement=judgement)
    if expires_after is not None:
        file.expires_at = file.created_at + timedelta(seconds=expires_after)
    return file


def announce(
    session: Session, project: Project, source: str, *, purpose: str, expires_after: int | None = None
) -> File:
    """Enter a file that a worker shall fetch; it is `uploaded` until then. Raises `InvalidRequest`."""
    require_purpose(purpose)
    sources.require_allowed(source)
    require_room(session, project, 0, param="source")
    file = File(
        id=new_id("file-"),
        project_id=project.id,
        purpose=purpose,
        filename=display_name(source),
        bytes=0,
        sha256="",
        source=source,
        status="uploaded",
    )
    session.add(file)
    session.flush()
    session.refresh(file)
    if expires_after is not None:
        file.expires_at = file.created_at + timedelta(seconds=expires_after)
    work_service.enqueue(
        session, WorkKind.FETCH, subject=file.id, project_id=project.id, queue=PREPARE, priority="normal"
    )
    return file


def arrive(session: Session, holder: Claim, blob: Blob, judgement: Judgement) -> None:
    """The bytes of an announced file are stored: it is what an upload of them would be."""
    work.succeed(session, holder)
    keep_blobs(session)
    file = session.get(File, holder.subject)
    if file is None:
        return  # deleted meanwhile
    project = session.get_one(Project, file.project_id)
    try:
        require_room(session, project, blob.bytes, param="source")
    except TooLarge as error:
        file.status, file.status_details = "error", error.message
        return
    file.bytes, file.sha256, file.rows = blob.bytes, blob.sha256, judgement.rows
    file.status = "error" if judgement.problem else "processed"
    file.status_details = judgement.problem


def fail_to_arrive(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """An announced file cannot be fetched: its owner sees why."""
    work.fail(session, holder, error)
    file = session.get(File, holder.subject)
    if file is not None:
        file.status, file.status_details = "error", str(error["message"])


def require_trainable(session: Session, project: Project, file_id: str, *, param: str) -> File:
    """A file that jobs may train on. Raises `FileNotUsable`; `param` is the field that names it."""
    code = f"invalid_{param}"
    try:
        file = get(session, project, file_id)
    except NotFound as error:
        raise FileNotUsable(
            f"{param} '{file_id}' does not exist. Upload it with purpose 'fine-tune' and send its id.",
            param=param,
            code=code,
        ) from error
    if file.purpose != FINE_TUNE:
        raise FileNotUsable(
            f"{param} '{file_id}' has purpose '{file.purpose}'. Upload it with purpose 'fine-tune'.",
            param=param,
            code=code,
        )
    if file.status == "uploaded":
        raise FileNotUsable(
            f"{param} '{file_id}' is still being fetched. Submit the job once its status is 'processed'.",
            param=param,
            code=code,
        )
    if file.status == "error":
        raise FileNotUsable(f"{param} '{file_id}' cannot be trained on: {file.status_details}", param=param, code=code)
    return file


def require_arrived(file: File) -> None:
    """Raises `InvalidRequest` for a file that is still on its way."""
    if file.status == "uploaded":
        raise InvalidRequest(
            f"'{file.id}' is still being fetched from {file.source}. Ask again once its status is 'processed'.",
            param="file_id",
            code="file_not_ready",
        )


def require_purpose(purpose: str) -> None:
    """Raises `InvalidRequest` for what nobody uploads."""
    if purpose not in PURPOSES:
        raise InvalidRequest(f"'{purpose}' is not a purpose. Send one of: {', '.join(PURPOSES)}.", param="purpose")


def require_room(session: Session, project: Project, size: int, *, param: str, reserved: int = 0) -> None:
    """Raises `TooLarge` for a file beyond what a file, or all of a project's, may have; what is announced counts."""
    _require_size(size, param=param)
    allowed = get_settings().max_project_bytes
    stored = session.scalar(_shown(project).with_only_columns(func.sum(File.bytes)).order_by(None)) or 0
    announced = session.scalar(
        select(func.sum(Upload.bytes)).where(
            Upload.project_id == project.id, Upload.status == "pending", Upload.expires_at > func.now()
        )
    )
    used = int(stored) + int(announced or 0) - reserved
    if used + size > allowed:
        raise TooLarge(
            f"The project's files and uploads have {used} bytes, and may have {allowed} with this one. Delete files"
            " that no job needs, or cancel uploads.",
            param=param,
            code="project_full",
        )


def _require_size(size: int, *, param: str) -> None:
    allowed = get_settings().max_file_bytes
    if size > allowed:
        raise TooLarge(f"The file has {size} bytes; {allowed} are allowed.", param=param)


def enter_results(session: Session, project_id: str, blob: Blob) -> File:
    """A job's metrics, step by step. Its bytes are stored, under the lock that `keep_blobs` takes."""
    return _enter(session, project_id, blob, purpose=RESULTS, filename="step_metrics.csv")


def keep_blobs(session: Session) -> None:
    """Let no blob be deleted until this transaction ends: what it finds stored stays until it has its row."""
    session.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": BLOBS_LOCK})


def get(session: Session, project: Project, file_id: str) -> File:
    """A file of the project. Raises `NotFound`."""
    file = session.scalar(_GET, {"of_project": project.id, "file_id": file_id})
    if file is None:
        raise NotFound(f"No such file: {file_id}", param="file_id")
    return file


def files(
    session: Session,
    project: Project,
    *,
    purpose: str | None,
    sha256: str | None,
    after: str | None,
    limit: int,
    oldest_first: bool,
) -> Page[File]:
    """The project's files."""
    rows = _shown(project)
    if purpose is not None:
        rows = rows.where(File.purpose == purpose)
    if sha256 is not None:
        rows = rows.where(File.sha256 == sha256)
    return page_of(session, rows, File, after=after, limit=limit, oldest_first=oldest_first)


def delete(session: Session, project: Project, file_id: str) -> File:
    """Hide a file; jobs that were given it already keep it until they end."""
    file = get(session, project, file_id)
    file.deleted_at = func.now()
    return file


def used(session: Session, project_id: str, file_id: str) -> File:
    """A file that a job was given, deleted since or not."""
    return session.scalars(select(File).where(File.id == file_id, File.project_id == project_id)).one()


def expire(session: Session) -> None:
    """Delete what was to go by itself by now."""
    due = (File.expires_at < func.now(), File.deleted_at.is_(None))
    session.execute(update(File).where(*due).values(deleted_at=File.expires_at))


def display_name(filename: str) -> str:
    """A name that is safe to show and to put in a header: no path, no control characters, at most 255 of them."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    return shown[:255] or "file"


def _shown(project: Project) -> Select[File]:
    return _SHOWN.params(of_project=project.id)


_SHOWN = select(File).where(
    File.project_id == bindparam("of_project"),
    File.deleted_at.is_(None),
    or_(File.expires_at.is_(None), File.expires_at > func.now()),
)
_GET = _SHOWN.where(File.id == bindparam("file_id"))


def _enter(
    session: Session,
    project_id: str,
    blob: Blob,
    *,
    purpose: str,
    filename: str,
    judgement: Judgement = UNJUDGED,
) -> File:
    file = File(
        id=new_id("file-"),
        project_id=project_id,
        purpose=purpose,
        filename=display_name(filename),
        bytes=blob.bytes,
        sha256=blob.sha256,
        rows=judgement.rows,
        status="error" if judgement.problem else "processed",
        status_details=judgement.problem,
    )
    session.add(file)
    session.flush()
    return file
