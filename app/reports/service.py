"""What a user can ask of a file before it is trained on: a report, some rows token by token; and sets that are kept."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import array, insert
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.errors import InvalidRequest, NotFound, TooMany
from app.files import service as files
from app.files.models import File
from app.files.report import Report
from app.files.spec import DataSpec
from app.queue import PREPARE
from app.registry import catalogue, identity, names
from app.registry import service as registry
from app.reports import policy
from app.reports.models import FilePreview, FileReport, PreparedSet
from app.settings import get_settings
from app.storage import Blob
from app.work import service as work_service
from app.work.status import WorkKind

PENDING = 20
"""Reports that a project may wait for at once."""
TRIED_AGAIN_AFTER = timedelta(minutes=1)
"""A report that could not be made is made anew for whoever asks after that: a base is put right, a hub is back."""
HUB_BELIEVED_FOR = timedelta(hours=1)
"""How long a hub model that is named without a commit is taken for the same."""
KNOWN = 100
"""Sets of the same files that a preparation may choose from."""
BATCH = 5


def report(
    session: Session, project: Project, file_id: str, asked: DataSpec, *, validation_file: str | None = None
) -> FileReport:
    """The report on a file for these settings; one that nobody has asked for yet is queued. Its `finished_at` tells.

    Raises `NotFound` for the file, `ModelNotFound` or `InvalidRequest` for what is asked, `TooMany` for too much.
    """
    file = _readable(session, project, file_id, param="file_id")
    validation = _readable(session, project, validation_file, param="validation_file") if validation_file else None
    digest = _digest(session, project, asked, validation)
    mine = (FileReport.file_id == file.id, FileReport.request_sha256 == digest)
    made = session.scalar(select(FileReport).where(*mine))
    if made is not None:
        return _again(session, made) if _is_stale(session, made) else made
    waiting = select(func.count()).where(FileReport.project_id == project.id, FileReport.finished_at.is_(None))
    if (session.scalar(waiting) or 0) >= PENDING:
        raise TooMany(f"{PENDING} reports of this project are being made. Wait for one of them, then ask again.")
    row = {
        "id": new_id("filerep-"),
        "project_id": project.id,
        "file_id": file.id,
        "validation_file_id": validation.id if validation else None,
        "request": asked.model_dump(mode="json"),
        "request_sha256": digest,
    }
    inserted = insert(FileReport).values(**row).on_conflict_do_nothing().returning(FileReport.id)
    if session.scalar(inserted) is not None:  # else somebody asked at the same moment
        work_service.enqueue(
            session, WorkKind.REPORT, subject=str(row["id"]), project_id=project.id, queue=PREPARE, priority="normal"
        )
    return session.scalars(select(FileReport).where(*mine)).one()


def preview(session: Session, report: FileReport, *, asked: dict[str, list[int]]) -> FilePreview:
    """Some rows of a report's set, token by token; queued where nobody has asked for them yet."""
    digest = hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()
    mine = (FilePreview.report_id == report.id, FilePreview.asked_sha256 == digest)
    made = session.scalar(select(FilePreview).where(*mine))
    if made is not None and (made.error is None or not _is_old(session, made)):
        return made
    if made is not None:
        session.delete(made)
        session.flush()
    preview_id = new_id("filepre-")
    inserted = (
        insert(FilePreview)
        .values(id=preview_id, report_id=report.id, asked=asked, asked_sha256=digest)
        .on_conflict_do_nothing()
        .returning(FilePreview.id)
    )
    if session.scalar(inserted) is not None:
        work_service.enqueue(
            session, WorkKind.PREVIEW, subject=preview_id, project_id=report.project_id, queue=PREPARE, priority="high"
        )
    return session.scalars(select(FilePreview).where(*mine)).one()


def answer_of(session: Session, report: FileReport) -> tuple[Report, Blob]:
    """What a finished report says, and its findings as JSON lines. Raises `InvalidRequest` for one that failed."""
    require_made(report.error)
    found = session.get_one(PreparedSet, report.set_key)
    return Report.model_validate(found.report), Blob(found.findings_sha256, found.findings_bytes)


def require_made(error: dict[str, Any] | None) -> None:
    """Raises `InvalidRequest` with what was wrong with the model or the settings."""
    if error is not None:
        param = error.get("param")  # the path in a job's spec, of which a report is asked for by the last part
        raise InvalidRequest(
            f"{error['message']} {error.get('suggestion') or ''}".strip(),
            param=str(param).rsplit(".", 1)[-1] if param else None,
            code=error.get("code"),
        )


def enter_set(
    session: Session, report: Report, findings: Blob, *, training_sha256: str, validation_sha256: str | None
) -> None:
    """Keep a set for the next job of the same rows. Its blobs are stored, under the lock of `files.keep_blobs`."""
    sets = [made.sha256 for made in (report.train_set, report.validation_set) if made is not None]
    row = {
        "training_sha256": training_sha256,
        "validation_sha256": validation_sha256,
        "report": report.model_dump(mode="json"),
        "findings_sha256": findings.sha256,
        "findings_bytes": findings.bytes,
        "blobs": [*sets, findings.sha256],
        "used_at": func.now(),
    }
    made = insert(PreparedSet).values(key=report.key, **row)
    session.execute(made.on_conflict_do_update(index_elements=[PreparedSet.key], set_=row))


def known(session: Session, training_sha256: str, validation_sha256: str | None) -> dict[str, Report]:
    """Sets of the same files, by key; each is used, so that it stays. A set's key says whether it fits."""
    mine = (
        PreparedSet.training_sha256 == training_sha256,
        PreparedSet.validation_sha256.is_not_distinct_from(validation_sha256),
    )
    newest = select(PreparedSet.key).where(*mine).order_by(PreparedSet.used_at.desc()).limit(KNOWN)
    rows = session.scalars(
        update(PreparedSet).where(PreparedSet.key.in_(newest)).values(used_at=func.now()).returning(PreparedSet)
    )
    return {row.key: Report.model_validate(row.report) for row in rows}


def newest(
    session: Session, training_sha256: str, *, tokenizer_sha256: str, settings: dict[str, Any] | None = None
) -> Report | None:
    """The newest report on a file for a base with this tokenizer, and these other settings; None: there is none."""
    mine = (
        PreparedSet.training_sha256 == training_sha256,
        PreparedSet.report["tokenizer_sha256"].astext == tokenizer_sha256,
        *([PreparedSet.report["settings"] == settings] if settings is not None else []),
    )
    found = session.scalar(select(PreparedSet.report).where(*mine).order_by(PreparedSet.used_at.desc()).limit(1))
    return Report.model_validate(found) if found is not None else None


def forget_sets(session: Session, age: timedelta, *, needed: set[str]) -> set[str]:
    """Strike off some sets that no job has used for so long, or whose file is gone; returns their blobs.

    But for those of which a blob is `needed`: struck off, nobody would delete it later.
    """
    has_file = select(File.id).where(File.sha256 == PreparedSet.training_sha256).exists()
    unused = select(PreparedSet.key).where((PreparedSet.used_at < func.now() - age) | ~has_file).limit(BATCH)
    if needed:
        unused = unused.where(~PreparedSet.blobs.has_any(array(needed)))
    gone = session.scalars(delete(PreparedSet).where(PreparedSet.key.in_(unused)).returning(PreparedSet.blobs))
    return {sha256 for blobs in gone for sha256 in blobs}


def held(session: Session, blobs: set[str]) -> set[str]:
    """Those of the blobs that a kept set has."""
    rows = session.scalars(select(PreparedSet.blobs).where(PreparedSet.blobs.has_any(array(blobs))))
    return {sha256 for row in rows for sha256 in row}


def _readable(session: Session, project: Project, file_id: str, *, param: str) -> File:
    file = files.get(session, project, file_id)
    if file.purpose != files.FINE_TUNE:
        raise InvalidRequest(
            f"'{file_id}' has purpose '{file.purpose}'. Upload it with purpose 'fine-tune'.", param=param
        )
    files.require_arrived(file)
    return file


def _digest(session: Session, project: Project, asked: DataSpec, validation: File | None) -> str:
    """Of all that an answer depends on and that is known here; raises what `registry` and `catalogue` raise."""
    wanted = policy.current()
    parts = (
        asked.model_dump_json(),
        validation.sha256 if validation else "",
        wanted.model_dump_json(),
        *_benchmarks(wanted.benchmarks),
        *_tokenizer(session, project, asked.model),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _tokenizer(session: Session, project: Project, model: str) -> tuple[str, ...]:
    """Digests of a model's tokenizer and template, as far as this process can know them."""
    if names.is_registered(model):
        try:
            base = registry.get(session, project, model).base
        except NotFound as error:
            raise InvalidRequest(error.message, param="model", code="model_not_found") from error
        return base["tokenizer_sha256"], base["chat_template_sha256"] or ""
    catalogue.require(model)
    if "/" in model:
        return ()
    tokenizer, template = identity.of_tokenizer(get_settings().models / model)
    return tokenizer, template or ""


def _benchmarks(folder: str | None) -> list[str]:
    """What lies in the folder of benchmarks, as far as this process can see it."""
    if folder is None:
        return []
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _is_stale(session: Session, made: FileReport) -> bool:
    if made.finished_at is None:
        return False
    if made.error is not None:
        return _is_old(session, made)
    model = str(made.request["model"])
    is_moving = "/" in model and not names.is_registered(model) and not catalogue.is_pinned(model)
    return is_moving and _age(session, made) > HUB_BELIEVED_FOR


def _is_old(session: Session, made: FileReport | FilePreview) -> bool:
    return made.finished_at is not None and _age(session, made) > TRIED_AGAIN_AFTER


def _age(session: Session, made: FileReport | FilePreview) -> timedelta:
    age = session.scalar(select(func.now() - made.finished_at))
    assert isinstance(age, timedelta)  # noqa: S101  of what is finished
    return age


def _again(session: Session, made: FileReport) -> FileReport:
    """Have it made anew, once however many ask at the same moment."""
    reset = (
        update(FileReport)
        .where(FileReport.id == made.id, FileReport.finished_at == made.finished_at)
        .values(set_key=None, error=None, finished_at=None)
        .returning(FileReport.id)
    )
    if session.scalar(reset) is not None:
        work_service.enqueue(
            session, WorkKind.REPORT, subject=made.id, project_id=made.project_id, queue=PREPARE, priority="normal"
        )
    session.refresh(made)
    return made
