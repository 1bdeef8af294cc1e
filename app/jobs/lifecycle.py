"""The moves of a job: each in the transaction of its work's move, with the entry in its history.

No one else writes a job's status. Work is locked before its job, always, so that no two moves wait for each other.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import CTE, ColumnElement, Text, bindparam, case, func, or_, select, update
from sqlalchemy.orm import Session

from app.db import new_id
from app.errors import IllegalMove
from app.jobs import events, logs, space
from app.jobs.models import Job, JobCheckpoint, JobEvent
from app.jobs.prepared import Prepared
from app.jobs.space import NO_SPACE, Lack
from app.jobs.spec import JobSpec
from app.jobs.status import FINAL, JobStatus, sources
from app.planning.guardrails import Guardrail
from app.queue import PREPARE
from app.registry.models import RegisteredModel
from app.settings import get_settings
from app.webhooks import service as webhooks
from app.work import lifecycle as work
from app.work import service as work_service
from app.work.lifecycle import Claim, Who
from app.work.models import Work
from app.work.status import Desired, WorkKind
from app.work.turns import taking

log = logging.getLogger(__name__)


def submit(session: Session, job: Job, *, warnings: Sequence[Guardrail] = ()) -> None:
    """A new job: validating_files, with its preparation queued."""
    job.warnings = [asdict(found) for found in warnings]
    session.add(job)
    session.flush()
    priority = job.spec["resources"]["priority"]
    work_service.enqueue(
        session, WorkKind.PREPARE, subject=job.id, project_id=job.project_id, queue=PREPARE, priority=priority
    )
    events.begin(
        session,
        job.id,
        [
            f"Created fine-tuning job: {job.id}",
            *(found.message for found in warnings),
            f"Validating training file: {job.spec['training_file']}",
        ],
    )


def claim(session: Session, queue: str, *, who: Who, lease: timedelta, free: int | None = None) -> Claim | None:
    """Take the first work of a queue; a job whose training is taken is running. `free`: bytes of the claimer's disk.

    Work that waits although its job has ended or was paused, which no move leaves behind, follows its job: it would
    stand before all others for ever.
    """
    most = get_settings().max_running_per_project if queue != PREPARE else None
    told = events.entry(f"Fine-tuning job started on {who.host}")
    claimed = work.claim(session, queue, who=who, lease=lease, most=most, free=free, take=_TAKE, **told)
    if claimed is not None and not claimed.moved:
        log.error("work %d waited without reason: job %s has moved on", claimed.work_id, claimed.subject)
        if session.get_one(Job, claimed.subject).status == JobStatus.PAUSED:
            work.requeue(session, claimed, outcome="paused")
            work.pause(session, claimed.subject, WorkKind.TRAIN)
        else:
            work.stop(session, claimed)
        return claim(session, queue, who=who, lease=lease, free=free)
    return claimed


def _start(taken: CTE) -> ColumnElement[bool]:
    """Queued → running with the claim, in its statement: claims are what many workers wait for."""
    started = (
        update(Job)
        .where(Job.id == taken.c.subject, taken.c.kind == WorkKind.TRAIN, Job.status.in_(sources(JobStatus.RUNNING)))
        .values(
            status=JobStatus.RUNNING, started_at=func.coalesce(Job.started_at, func.now()), paused_by=None, lack=None
        )
        .returning(Job.id, taken.c.attempt)
        .cte("started")
    )
    again = case((started.c.attempt > 1, func.concat(" (attempt ", started.c.attempt, ")")), else_="")
    message = bindparam("entry_message", type_=Text) + again
    told = events.telling(started, message=message).scalar_subquery()
    return or_(taken.c.kind != WorkKind.TRAIN, told.is_not(None))


_TAKE = taking(_start)


def queue_training(
    session: Session,
    holder: Claim,
    *,
    prepared: Prepared,
    resolved: JobSpec,
    warnings: list[Guardrail],
    plan: dict[str, Any] | None = None,
    queue: str | None = None,
) -> None:
    """The files are prepared: queue the training, unless the job was cancelled or paused meanwhile.

    `queue`: of another worker class than it was submitted to.
    """
    if _wish_for(session, holder) is Desired.CANCEL:
        stop(session, holder)
        return
    work.succeed(session, holder)
    said_before = session.get_one(Job, holder.subject).warnings
    job = _move(
        session,
        holder.subject,
        JobStatus.QUEUED,
        prepared=prepared.model_dump(mode="json"),
        resolved=resolved.model_dump(mode="json"),
        warnings=[*said_before, *(asdict(found) for found in warnings)],
        plan=plan,
        progress=None,  # the training's begins anew
        **({"queue": queue} if queue is not None else {}),
    )
    work_service.enqueue(
        session,
        WorkKind.TRAIN,
        subject=job.id,
        project_id=job.project_id,
        queue=job.queue,
        priority=resolved.resources.priority,
        seconds=(plan["duration"]["low"], plan["duration"]["high"]) if plan is not None else None,
    )
    for found in warnings:
        events.tell(session, job.id, f"{found.message} {found.suggestion or ''}".strip(), level="warn")
    events.tell(session, job.id, "Files validated, moving job to queued state")
    if job.desired == Desired.PAUSE:
        pause(session, job)


def enter_checkpoint(session: Session, model: RegisteredModel, metrics: dict[str, Any]) -> None:
    """A checkpoint is in the registry, in this same transaction."""
    session.add(
        JobCheckpoint(id=new_id("ftckpt_"), job_id=model.job_id, model=model.id, step=model.step, metrics=metrics)
    )
    events.tell(session, model.job_id, _checkpoint_created(model.step))


def has_entered_checkpoint(session: Session, job_id: str, step: int | None) -> bool:
    """Whether a job's checkpoint of a step has been in the registry, deleted since or not.

    The history is asked, which outlives the row: an attempt that does a step again shall not bring back what was
    deleted.
    """
    told = select(JobEvent.id).where(JobEvent.job_id == job_id, JobEvent.message == _checkpoint_created(step))
    return session.scalar(told.limit(1)) is not None


def succeed(
    session: Session, holder: Claim, result: RegisteredModel, *, trained_tokens: int, result_files: list[str]
) -> None:
    """The result is in the registry, and the metrics' file among the files, in this same transaction."""
    work.succeed(session, holder)
    job = _move(
        session,
        holder.subject,
        JobStatus.SUCCEEDED,
        fine_tuned_model=result.id,
        trained_tokens=trained_tokens,
        result_files=result_files,
        finished_at=func.now(),
    )
    events.tell(session, job.id, f"New fine-tuned model created: {result.id}")
    events.tell(session, job.id, "The job has successfully completed")


def fail(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """Give the job up, with the reason; one that its owner cancelled meanwhile is cancelled."""
    if _wish_for(session, holder) is Desired.CANCEL:
        stop(session, holder)
        return
    error = {"log_lines": logs.last_lines(session, holder), **error}
    work.fail(session, holder, error)
    job = _move(session, holder.subject, JobStatus.FAILED, error=error, finished_at=func.now())
    events.tell(session, job.id, f"The job failed: {error['message']}", level="error")


def retry(session: Session, holder: Claim, error: dict[str, Any], *, delay: timedelta, outcome: str = "failed") -> None:
    """Hand a job back after a failure of the infrastructure; one that its owner cancelled ends instead."""
    wish = _wish_for(session, holder)
    if wish is Desired.CANCEL:
        stop(session, holder)
        return
    error = {"log_lines": logs.last_lines(session, holder), **error}
    work.retry(session, holder, error, delay=delay, outcome=outcome)
    seconds = round(delay.total_seconds())
    when = f"trying again in {seconds} s" if seconds else "trying again"
    events.tell(session, holder.subject, f"Attempt {holder.attempt} failed: {error['message']} – {when}", level="warn")
    _hand_back(session, holder, wish)


def requeue(session: Session, holder: Claim, *, outcome: str = "interrupted") -> None:
    """Hand a job back unharmed: its worker is shutting down, or its owner has paused it."""
    wish = _wish_for(session, holder)
    if wish is Desired.CANCEL:
        stop(session, holder)
        return
    work.requeue(session, holder, outcome=outcome)
    if outcome == "interrupted":
        events.tell(session, holder.subject, "The worker is shutting down; the job goes on with the next one")
    _hand_back(session, holder, wish)


def pass_on(session: Session, holder: Claim, reason: str, *, delay: timedelta) -> None:
    """Leave a job to another worker than the one that has it, and cannot do it."""
    wish = _wish_for(session, holder)
    if wish is Desired.CANCEL:
        stop(session, holder)
        return
    work.requeue(session, holder, outcome="passed_on", delay=delay)
    events.tell(session, holder.subject, f"{reason}. It waits for a newer worker", level="warn")
    _hand_back(session, holder, wish)


def run_out(session: Session, holder: Claim, lack: Lack, *, delay: timedelta) -> None:
    """Set a job aside, unharmed: the attempt found no room. What is not training yet is tried again after a delay."""
    wish = _wish_for(session, holder)
    if wish is Desired.CANCEL:
        stop(session, holder)
        return
    if holder.kind is not WorkKind.TRAIN:
        work.requeue(session, holder, outcome=NO_SPACE, delay=delay)
        events.tell(session, holder.subject, f"{lack}. It is tried again later", level="warn")
        return
    work.requeue(session, holder, outcome=NO_SPACE)
    events.tell(session, holder.subject, f"{lack}. What was saved is kept", level="warn")
    job = _move(session, holder.subject, JobStatus.QUEUED)
    if wish is Desired.PAUSE:
        pause(session, job)
        return
    work.pause(session, job.id, WorkKind.TRAIN, room_bytes=lack.needed_bytes if lack.disk == "scratch" else None)
    _move(
        session,
        job.id,
        JobStatus.PAUSED,
        desired=Desired.PAUSE,
        paused_by=NO_SPACE,
        lack=space.kept(session, lack),
    )
    events.tell(session, job.id, "The job was paused; it goes on by itself once there is room")


def go_on_where_there_is_room(session: Session) -> None:
    """Queue the jobs again that were paused for want of space which has come."""
    for job in space.fitting(session):
        session.refresh(job)
        if job.paused_by == NO_SPACE:  # its owner may have come first
            work.resume(session, job.id, anywhere=False)
            _move(session, job.id, JobStatus.QUEUED, desired=Desired.RUN)
            events.tell(session, job.id, "There is room again: the job goes on")


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
    job = _move(session, job.id, JobStatus.CANCELLED, finished_at=func.now())
    events.tell(session, job.id, "The job was cancelled")
    return job


def pause(session: Session, job: Job) -> Job:
    """Set aside at once what waits; what runs saves a checkpoint and ends with its step, what is validated ends that.

    Idempotent; one that waits for space does not go on by itself any more. Raises `IllegalMove` for a job that has
    ended, or is being cancelled.
    """
    still_running = work.pause(session, job.id, WorkKind.TRAIN)
    session.refresh(job)
    status = JobStatus(job.status)
    if status is JobStatus.PAUSED:
        if job.paused_by == NO_SPACE:
            job.paused_by, job.lack = "user", None
            events.tell(session, job.id, "The job was paused")
        return job
    _require_going_on(job, "paused")
    if still_running or status is JobStatus.VALIDATING_FILES:
        if job.desired != Desired.PAUSE:
            job.desired = Desired.PAUSE
            when = "with its current step" if still_running else "once its files are validated"
            events.tell(session, job.id, f"Pausing: the job is set aside {when}")
        return job
    job = _move(session, job.id, JobStatus.PAUSED, desired=Desired.PAUSE, paused_by="user")
    events.tell(session, job.id, "The job was paused")
    return job


def resume(session: Session, job: Job) -> Job:
    """Queue a paused job again, where it goes on from its last checkpoint; take back a pause that is only wished.

    Idempotent: a job that runs or waits is left as it is. Raises `IllegalMove` for one that has ended.
    """
    work.resume(session, job.id)
    session.refresh(job)
    _require_going_on(job, "resumed")
    if job.status == JobStatus.PAUSED:
        job = _move(session, job.id, JobStatus.QUEUED, desired=Desired.RUN)
        events.tell(session, job.id, "The job was resumed")
    elif job.desired == Desired.PAUSE:
        job.desired = Desired.RUN
        events.tell(session, job.id, "The pause was taken back")
    return job


def _checkpoint_created(step: int | None) -> str:
    return f"Checkpoint created at step {step}"


def _require_going_on(job: Job, done_to: str) -> None:
    if job.status in FINAL:
        raise IllegalMove(f"Job {job.id} has {job.status} already and cannot be {done_to}.")
    if job.desired == Desired.CANCEL:
        raise IllegalMove(f"Job {job.id} is being cancelled and cannot be {done_to}.")


def _hand_back(session: Session, holder: Claim, wish: Desired) -> None:
    if holder.kind is not WorkKind.TRAIN:
        return
    job = _move(session, holder.subject, JobStatus.QUEUED)
    if wish is Desired.PAUSE:
        pause(session, job)


def _wish_for(session: Session, holder: Claim) -> Desired:
    """What is wished of an attempt, and stays so until this transaction ends."""
    held = session.get(Work, holder.work_id, with_for_update=True, populate_existing=True)
    return Desired(held.desired) if held is not None and held.attempt == holder.attempt else Desired.RUN


def _move(session: Session, job_id: str, target: JobStatus, **values: Any) -> Job:
    values = {"paused_by": None, "lack": None, **values}
    if target in FINAL:  # a wish that came too late is none any more
        values["desired"] = Desired.CANCEL if target is JobStatus.CANCELLED else Desired.RUN
    job = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(sources(target)))
        .values(status=target, **values)
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is None:
        raise IllegalMove(f"Job {job_id} has moved on.")
    if job.finished_at is not None:
        webhooks.announce(session, job.project_id, f"fine_tuning.job.{target}", subject=job.id, at=job.finished_at)
    return job
