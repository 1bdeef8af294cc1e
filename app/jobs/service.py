"""What a user can do with jobs, and what a worker reports of one while it runs."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Select, and_, bindparam, func, or_, select, text, update
from sqlalchemy.orm import Session

from app import auth
from app.auth import ApiKey, Project
from app.db import new_id
from app.errors import InvalidRequest, NotFound
from app.files import service as files
from app.jobs import events, lifecycle, parents, tunings
from app.jobs.models import Job, JobCheckpoint, JobEvent, Label
from app.jobs.spec import JobRequest
from app.pages import Page, page_of
from app.planning import fitting
from app.planning.hardware import GIB
from app.plans import classes
from app.plans import service as plans
from app.reads import Reads, question
from app.registry.models import RegisteredModel
from app.work import lifecycle as work
from app.work.lifecycle import Claim
from app.work.models import Work
from app.work.status import Desired, WorkKind, WorkStatus

RETRIED_WITHIN = timedelta(minutes=15)
"""How long after a request its repetition is known: the stock client waits 10 minutes for an answer that was lost."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """What a request says of itself: the caller's own key, and whether its client has sent it before."""

    key: str | None = None
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs of a project are wanted; what is None or empty excludes none."""

    metadata: dict[str, str] | None = field(default_factory=dict)
    """Pairs that a job has among its own; None: jobs without any."""
    status: Sequence[str] = ()
    model: str | None = None
    method: str | None = None
    tuning: str | None = None
    created_after: int | None = None
    """Unix seconds."""
    q: str | None = None
    """Part of an id, a suffix, a model's name or a metadata value."""


def submit(session: Session, project: Project, request: JobRequest, repeat: Repeat) -> Job:
    """Accept a spec whose references exist: the files are the project's and usable, the base is offered.

    The repetition of a request that was accepted is answered with the job that it made. Raises `FileNotUsable`,
    `ModelNotFound` or `InvalidRequest` with the field that must change.
    """
    digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    if (made := _made_before(session, project, digest, repeat)) is not None:
        return made
    known_classes, wanted = classes.known(session), request.resources.gpu_memory_gb
    spec, chosen = tunings.decided(session, project, request, known_classes)
    spec = parents.require_model(session, project, spec)
    plans.require_room(session, project, spec, classes.open_to(known_classes, wanted))
    files.require_trainable(session, project, spec.training_file, param="training_file")
    if spec.validation_file is not None:
        files.require_trainable(session, project, spec.validation_file, param="validation_file")
    if spec.seed is None:
        spec = spec.model_copy(update={"seed": secrets.randbelow(2**31)})
    job = Job(
        id=new_id("ftjob-"),
        project_id=project.id,
        spec=spec.model_dump(mode="json"),
        request_sha256=digest,
        idempotency_key=repeat.key,
        queue=classes.queue_for(known_classes, wanted),
    )
    lifecycle.submit(session, job, warnings=chosen)
    return job


def get(session: Session, project: Project, job_id: str) -> Job:
    """A job of the project. Raises `NotFound`."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.project_id == project.id))
    if job is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", param="fine_tuning_job_id")
    return job


async def poll(reads: Reads, key: str, job_id: str) -> Job:
    """A job's columns, if the key is its project's. Raises `NotAuthenticated` or `NotFound`."""
    found = await reads.first(_JOB_OF_KEY, sha256=auth.digest(key), job_id=job_id)
    if found is None:
        raise auth.refused()
    if found.id is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", param="fine_tuning_job_id")
    return cast("Job", found)


_JOB_OF_KEY = question(
    select(Job.__table__)
    .select_from(ApiKey)
    .outerjoin(Job, and_(Job.project_id == ApiKey.project_id, Job.id == bindparam("job_id")))
    .where(auth.is_valid(bindparam("sha256")))
)


def jobs(
    session: Session,
    project: Project,
    wanted: Filter,
    *,
    after: str | None,
    limit: int,
    oldest_first: bool = False,
) -> Page[Job]:
    """The project's jobs, newest first."""
    rows = _filtered(select(Job).where(Job.project_id == project.id), wanted)
    return page_of(session, rows, Job, after=after, limit=limit, oldest_first=oldest_first)


def checkpoints(session: Session, job: Job, *, after: str | None, limit: int) -> Page[JobCheckpoint]:
    """A job's checkpoints that have not been deleted, newest first."""
    rows = (
        select(JobCheckpoint)
        .join(RegisteredModel, RegisteredModel.id == JobCheckpoint.model)
        .where(JobCheckpoint.job_id == job.id, RegisteredModel.deleted_at.is_(None))
    )
    return page_of(session, rows, JobCheckpoint, after=after, limit=limit)


def labels(session: Session, job: Job) -> dict[int, list[Label]]:
    """Of a job's checkpoints, by step: `best` by validation loss or reward, `last`.

    Of those there are, while there is no result, which says for itself which was the best.
    """
    mine = select(JobCheckpoint.step, JobCheckpoint.metrics).where(JobCheckpoint.job_id == job.id)
    costs = {step: _cost(metrics) for step, metrics in session.execute(mine)}
    evaluated = {step: cost for step, cost in costs.items() if cost is not None}
    best = min(sorted(evaluated), key=evaluated.__getitem__, default=None)
    result = session.get(RegisteredModel, job.fine_tuned_model) if job.fine_tuned_model else None
    if result is not None and result.metrics.get("best"):
        best = result.metrics["best"]["step"]
    found: dict[int, list[Label]] = {step: [] for step in costs}
    if best in found:
        found[best].append("best")
    if found:
        found[max(found)].append("last")
    return found


def _cost(metrics: dict[str, Any]) -> float | None:
    """The lower, the better: a validation loss, or where there is a reward its opposite."""
    reward: float | None = metrics.get("valid_mean_reward")
    return metrics.get("valid_loss") if reward is None else -reward


def history(session: Session, job: Job, *, after: str | None, limit: int) -> Page[JobEvent]:
    """A job's events, newest first."""
    return page_of(session, select(JobEvent).where(JobEvent.job_id == job.id), JobEvent, after=after, limit=limit)


def seq_of_event(session: Session, job: Job, event_id: str | None) -> int:
    """Where an event stands in a job's history; 0 for None, before the first. Raises `InvalidRequest`."""
    if event_id is None:
        return 0
    seq = session.scalar(select(JobEvent.seq).where(JobEvent.id == event_id, JobEvent.job_id == job.id))
    if seq is None:
        raise InvalidRequest(f"'{event_id}' is not an event of {job.id}.", param="Last-Event-ID")
    return seq


def has_events_after(session: Session, job: Job, seq: int) -> bool:
    """Whether a job's history goes on after that."""
    newer = select(JobEvent.id).where(JobEvent.job_id == job.id, JobEvent.seq > seq)
    return session.scalar(newer.limit(1)) is not None


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


def shrink(session: Session, holder: Claim, *, per_device: int, accumulation: int) -> None:
    """A step is made of smaller parts, in later attempts too. Raises `IllegalMove` once the claim is lost."""
    work.require_held(session, holder)
    job = session.get_one(Job, holder.subject, with_for_update=True)
    job.resolved = fitting.regrouped(job.current_spec, per_device, accumulation).model_dump(mode="json")


def note_probe(session: Session, holder: Claim, *, memory_bytes: int, seconds: float) -> None:
    """What the longest batch took, beside what was planned. Raises `IllegalMove` once the claim is lost."""
    work.require_held(session, holder)
    job = session.get_one(Job, holder.subject, with_for_update=True)
    job.probe = {
        "memory_bytes": memory_bytes,
        "memory_gib": round(memory_bytes / GIB, 4),
        "seconds": round(seconds, 2),
        "per_device_train_batch_size": job.current_spec.hyperparameters.per_device_train_batch_size,
    }


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


def _made_before(session: Session, project: Project, digest: str, repeat: Repeat) -> Job | None:
    """The job that this request, or the one it repeats, has made already.

    Equal requests wait here for each other, so that a repetition cannot overtake the transaction of its first.
    Raises `InvalidRequest` for a key that came with another body.
    """
    session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:request, 0))"),
        {"request": f"{project.id} {repeat.key or digest}"},
    )
    mine = select(Job).where(Job.project_id == project.id)
    if repeat.key is not None:
        made = session.scalar(mine.where(Job.idempotency_key == repeat.key))
        if made is not None and made.request_sha256 != digest:
            raise InvalidRequest(
                f"The Idempotency-Key '{repeat.key}' came with another body before; it made {made.id}. Send a new key"
                " for a new job.",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return made
    if not repeat.is_retry:
        return None
    recent = mine.where(
        Job.request_sha256 == digest,
        Job.created_at > func.now() - RETRIED_WITHIN,
        Job.idempotency_key.is_(None),  # whoever sends a key sends it again
        Job.desired != Desired.CANCEL,  # who has cancelled a job and sends it once more wants another
    )
    return session.scalar(recent.order_by(Job.seq.desc()).limit(1))


def _filtered(rows: Select[Job], wanted: Filter) -> Select[Job]:
    metadata = Job.spec["metadata"]
    if wanted.metadata is None:
        rows = rows.where(or_(metadata.astext.is_(None), metadata.astext == "{}"))
    elif wanted.metadata:
        rows = rows.where(metadata.contains(wanted.metadata))
    if wanted.status:
        rows = rows.where(Job.status.in_(wanted.status))
    for asked, column in (
        (wanted.model, Job.spec["model"]),
        (wanted.method, Job.spec["method"]["type"]),
        (wanted.tuning, Job.spec["tuning"]["type"]),
    ):
        if asked is not None:
            rows = rows.where(column.astext == asked)
    if wanted.created_after is not None:
        rows = rows.where(Job.created_at > datetime.fromtimestamp(wanted.created_after, UTC))
    if wanted.q:
        searched = func.concat_ws(
            " ", Job.id, Job.fine_tuned_model, *(Job.spec[name].astext for name in ("model", "suffix", "metadata"))
        )
        rows = rows.where(searched.icontains(wanted.q, autoescape=True))
    return rows


def _dated(session: Session, progress: dict[str, Any]) -> dict[str, Any]:
    """With the time of day, by the database's clock, at which the training will be done at its rate so far."""
    seconds_left = progress.get("seconds_left")
    if seconds_left is None:
        return progress
    finish = session.scalars(select(func.now() + timedelta(seconds=seconds_left))).one()
    rest = {name: value for name, value in progress.items() if name != "seconds_left"}
    return {**rest, "estimated_finish": int(finish.timestamp())}
