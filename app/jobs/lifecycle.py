"""The moves of a job: each in the transaction of its work's move, with the entry in its history.

No one else writes a job's status. Work is locked before its job, always, so that no two moves wait for each other.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from app.errors import IllegalMove
from app.jobs import events
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.jobs.status import FINAL, JobStatus, sources
from app.planning.recipes import Guardrail
from app.queue import PREPARE
from app.registry.models import RegisteredModel
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim, Who
from app.work.models import Work
from app.work.status import Desired, WorkKind


def submit(session: Session, job: Job) -> None:
    """A new job: validating_files, with its preparation queued."""
    session.add(job)
    session.flush()
    priority = JobSpec.model_validate(job.spec).resources.priority
    work_service.enqueue(session, WorkKind.PREPARE, subject=job.id, queue=PREPARE, priority=priority)
    events.tell(session, job.id, f"Created fine-tuning job: {job.id}")
    events.tell(session, job.id, f"Validating training file: {job.spec['training_file']}")


def claim(session: Session, queue: str, *, who: Who, lease: timedelta) -> Claim | None:
    """Take the first work of a queue; a job whose training is taken is running."""
    claimed = work.claim(session, queue, who=who, lease=lease)
    if claimed is not None and claimed.kind is WorkKind.TRAIN:
        job = _move(session, claimed.subject, JobStatus.RUNNING, started_at=func.coalesce(Job.started_at, func.now()))
        again = f" (attempt {claimed.attempt})" if claimed.attempt > 1 else ""
        events.tell(session, job.id, f"Fine-tuning job started on {who.host}{again}")
    return claimed


def queue_training(
    session: Session, holder: Claim, *, prepared: Prepared, resolved: JobSpec, warnings: list[Guardrail]
) -> None:
    """The files are prepared: queue the training, unless the job was cancelled meanwhile."""
    if _cancel_is_wished(session, holder):
        stop(session, holder)
        return
    work.succeed(session, holder)
    said = [
        {"code": found.code, "message": found.message, "param": found.param, "suggestion": found.suggestion}
        for found in warnings
    ]
    job = _move(
        session,
        holder.subject,
        JobStatus.QUEUED,
        prepared=prepared.model_dump(mode="json"),
        resolved=resolved.model_dump(mode="json"),
        warnings=said,
        progress=None,  # the training's begins anew
    )
    work_service.enqueue(session, WorkKind.TRAIN, subject=job.id, queue=job.queue, priority=resolved.resources.priority)
    for found in warnings:
        events.tell(session, job.id, f"{found.message} {found.suggestion or ''}".strip(), level="warn")
    events.tell(session, job.id, "Files validated, moving job to queued state")


def succeed(session: Session, holder: Claim, result: RegisteredModel, *, trained_tokens: int) -> None:
    """The result is in the registry, in this same transaction."""
    work.succeed(session, holder)
    job = _move(
        session,
        holder.subject,
        JobStatus.SUCCEEDED,
        fine_tuned_model=result.id,
        trained_tokens=trained_tokens,
        finished_at=func.now(),
    )
    events.tell(session, job.id, f"New fine-tuned model created: {result.id}")
    events.tell(session, job.id, "The job has successfully completed")


def fail(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """Give the job up, with the reason; one that its owner cancelled meanwhile is cancelled."""
    if _cancel_is_wished(session, holder):
        stop(session, holder)
        return
    work.fail(session, holder, error)
    job = _move(session, holder.subject, JobStatus.FAILED, error=error, finished_at=func.now())
    events.tell(session, job.id, f"The job failed: {error['message']}", level="error")


def retry(session: Session, holder: Claim, error: dict[str, Any], *, delay: timedelta, outcome: str = "failed") -> None:
    """Hand a job back after a failure of the infrastructure; one that its owner cancelled ends instead."""
    if _cancel_is_wished(session, holder):
        stop(session, holder)
        return
    work.retry(session, holder, error, delay=delay, outcome=outcome)
    _hand_back(session, holder)
    seconds = round(delay.total_seconds())
    when = f"trying again in {seconds} s" if seconds else "trying again"
    events.tell(session, holder.subject, f"Attempt {holder.attempt} failed: {error['message']} – {when}", level="warn")


def requeue(session: Session, holder: Claim) -> None:
    """Hand a job back unharmed: its worker is shutting down."""
    if _cancel_is_wished(session, holder):
        stop(session, holder)
        return
    work.requeue(session, holder)
    _hand_back(session, holder)
    events.tell(session, holder.subject, "The worker is shutting down; the job goes on with the next one")


def stop(session: Session, holder: Claim) -> None:
    """The worker heard the wish to cancel, and has ended the attempt."""
    work.stop(session, holder)
    job = _move(session, holder.subject, JobStatus.CANCELLED, finished_at=func.now())
    events.tell(session, job.id, "The job was cancelled")


def cancel(session: Session, job: Job) -> Job:
    """Cancel at once what waits; what runs is only wished to end, and ends within a step.

    Idempotent. Raises `IllegalMove` for a job that succeeded or failed.
    """
    still_running = work.cancel(session, job.id)
    session.refresh(job)
    status = JobStatus(job.status)
    if status is JobStatus.CANCELLED:
        return job
    if status in FINAL:
        raise IllegalMove(f"Job {job.id} has {status} already and cannot be cancelled.")
    if still_running:
        if job.desired != Desired.CANCEL:
            job.desired = Desired.CANCEL
            events.tell(session, job.id, "Cancelling: the trainer ends with its current step")
        return job
    job = _move(session, job.id, JobStatus.CANCELLED, desired=Desired.CANCEL, finished_at=func.now())
    events.tell(session, job.id, "The job was cancelled")
    return job


def _hand_back(session: Session, holder: Claim) -> None:
    if holder.kind is WorkKind.TRAIN:
        _move(session, holder.subject, JobStatus.QUEUED)


def _cancel_is_wished(session: Session, holder: Claim) -> bool:
    held = session.get(Work, holder.work_id, with_for_update=True, populate_existing=True)
    return held is not None and held.attempt == holder.attempt and held.desired == Desired.CANCEL


def _move(session: Session, job_id: str, target: JobStatus, **values: Any) -> Job:
    job = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(sources(target)))
        .values(status=target, **values)
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is None:
        raise IllegalMove(f"Job {job_id} has moved on.")
    return job
