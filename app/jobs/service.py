"""What a user can do with jobs, and what a worker reports of one while it runs."""

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.errors import FileNotUsable, NotFound
from app.files import service as files
from app.files.models import File
from app.jobs import events, lifecycle
from app.jobs.models import Job, JobEvent
from app.jobs.spec import JobSpec
from app.pages import Page, page_of
from app.registry import catalogue
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.models import Work
from app.work.status import WorkKind, WorkStatus


def submit(session: Session, project: Project, spec: JobSpec) -> Job:
    """Accept a spec whose references exist: the files are the project's and usable, the base is offered.

    Raises `FileNotUsable` or `ModelNotFound` with the field that must change.
    """
    catalogue.require(spec.model)
    _require_trainable(session, project, spec.training_file, param="training_file")
    if spec.validation_file is not None:
        _require_trainable(session, project, spec.validation_file, param="validation_file")
    if spec.seed is None:
        spec = spec.model_copy(update={"seed": secrets.randbelow(2**31)})
    job = Job(
        id=new_id("ftjob-"),
        project_id=project.id,
        spec=spec.model_dump(mode="json"),
        queue=work_service.choose_queue(session, gpu_memory_gb=spec.resources.gpu_memory_gb),
    )
    lifecycle.submit(session, job)
    return job


def get(session: Session, project: Project, job_id: str) -> Job:
    """A job of the project. Raises `NotFound`."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.project_id == project.id))
    if job is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", param="fine_tuning_job_id")
    return job


def jobs(session: Session, project: Project, *, after: str | None, limit: int) -> Page[Job]:
    """The project's jobs, newest first."""
    return page_of(session, select(Job).where(Job.project_id == project.id), Job, after=after, limit=limit)


def history(session: Session, job: Job, *, after: str | None, limit: int) -> Page[JobEvent]:
    """A job's events, newest first."""
    return page_of(session, select(JobEvent).where(JobEvent.job_id == job.id), JobEvent, after=after, limit=limit)


def report(
    session: Session,
    holder: Claim,
    *,
    progress: dict[str, Any] | None,
    told: Sequence[tuple[events.Level, str]],
    measured: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    """Write what an attempt has to tell. Raises `IllegalMove` once its claim is lost: a zombie writes nothing."""
    work.require_held(session, holder)
    if progress is not None:
        session.execute(update(Job).where(Job.id == holder.subject).values(progress=_dated(session, progress)))
    for message, data in measured:
        events.measure(session, holder.subject, message, data)
    for level, message in told:
        events.tell(session, holder.subject, message, level=level)


def unfinished(session: Session, job_ids: list[str]) -> set[str]:
    """Those of some jobs that have not ended."""
    return set(session.scalars(select(Job.id).where(Job.id.in_(job_ids), Job.finished_at.is_(None))))


def being_prepared(session: Session, queue: str) -> bool:
    """Whether files are being prepared for a training in a queue."""
    on_its_way = (
        select(Work.id)
        .join(Job, Job.id == Work.subject)
        .where(Work.kind == WorkKind.PREPARE, Work.status == WorkStatus.RUNNING, Job.queue == queue)
    )
    return session.scalar(on_its_way.limit(1)) is not None


def _dated(session: Session, progress: dict[str, Any]) -> dict[str, Any]:
    """With the time of day, by the database's clock, at which the training will be done at its rate so far."""
    seconds_left = progress.get("seconds_left")
    if seconds_left is None:
        return progress
    finish = session.scalars(select(func.now() + timedelta(seconds=seconds_left))).one()
    rest = {name: value for name, value in progress.items() if name != "seconds_left"}
    return {**rest, "estimated_finish": int(finish.timestamp())}


def _require_trainable(session: Session, project: Project, file_id: str, *, param: str) -> File:
    code = f"invalid_{param}"
    try:
        file = files.get(session, project, file_id)
    except NotFound as error:
        raise FileNotUsable(
            f"{param} '{file_id}' does not exist. Upload it with purpose 'fine-tune' and send its id.",
            param=param,
            code=code,
        ) from error
    if file.purpose != files.FINE_TUNE:
        raise FileNotUsable(
            f"{param} '{file_id}' has purpose '{file.purpose}'. Upload it with purpose 'fine-tune'.",
            param=param,
            code=code,
        )
    if file.status == "error":
        raise FileNotUsable(f"{param} '{file_id}' cannot be trained on: {file.status_details}", param=param, code=code)
    return file
