"""Resume state in the storage: announced, entered once it is whole, found by the next attempt, let go.

Everything a worker writes here is fenced by its attempt.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.files import service as files
from app.jobs.models import Job, ResumeState
from app.jobs.status import JobStatus
from app.work import lifecycle as work
from app.work.lifecycle import Claim

KEPT = 2
"""The newest, and the one before it; and the best."""
ARRIVES_WITHIN = timedelta(hours=1)
"""What was announced so long ago by an attempt that is over comes no more: its worker has heard that by then."""
BATCH = 5
"""States at a time, which have several files each: whoever stores bytes waits meanwhile."""


def announce(session: Session, holder: Claim, step: int, contents: list[dict[str, Any]]) -> ResumeState:
    """A checkpoint will be stored: from here on nobody deletes its blobs. `contents`: `{name, bytes, sha256}` each.

    Raises `IllegalMove` once the claim is lost.
    """
    work.require_held(session, holder)
    files.keep_blobs(session)
    row = {"files": contents, "bytes": sum(one["bytes"] for one in contents), "manifest_sha256": None}
    announced = insert(ResumeState).values(job_id=holder.subject, step=step, attempt=holder.attempt, **row)
    same = [ResumeState.job_id, ResumeState.step, ResumeState.attempt]
    made = announced.on_conflict_do_update(index_elements=same, set_={**row, "deleted_at": None}).returning(ResumeState)
    return session.scalars(made, execution_options={"populate_existing": True}).one()


def enter(session: Session, holder: Claim, state: ResumeState, manifest_sha256: str, *, best: int | None) -> None:
    """It is whole; of the job's others the newest stays, and that of the best step. Raises `IllegalMove`."""
    work.require_held(session, holder)
    session.execute(
        update(ResumeState).where(ResumeState.id == state.id).values(manifest_sha256=manifest_sha256, deleted_at=None)
    )
    whole = _whole(holder.subject)
    newest = whole.order_by(ResumeState.step.desc(), ResumeState.attempt.desc())
    kept = or_(
        ResumeState.id.in_(newest.limit(KEPT).with_only_columns(ResumeState.id)),
        ResumeState.id.in_(
            newest.where(ResumeState.step == best).limit(1).with_only_columns(ResumeState.id),
        ),
    )
    session.execute(
        update(ResumeState)
        .where(ResumeState.job_id == holder.subject, ResumeState.deleted_at.is_(None), ~kept)
        .values(deleted_at=func.now())
    )


def strike(session: Session, holder: Claim, state: ResumeState) -> None:
    """One that is not as it was stored is not asked for again. Raises `IllegalMove` once the claim is lost."""
    work.require_held(session, holder)
    session.execute(update(ResumeState).where(ResumeState.id == state.id).values(deleted_at=func.now()))


def stored(session: Session, job_id: str) -> list[ResumeState]:
    """A job's, the newest first."""
    newest = _whole(job_id).order_by(ResumeState.step.desc(), ResumeState.attempt.desc())
    return list(session.scalars(newest))


def forget(session: Session, age: timedelta) -> list[ResumeState]:
    """Strike off some that are not used any more; of jobs that were cancelled, those that ended so long ago."""
    ended = or_(
        Job.status.in_((JobStatus.SUCCEEDED, JobStatus.FAILED)),
        (Job.status == JobStatus.CANCELLED) & (Job.finished_at < func.now() - age),
    )
    has_come = ResumeState.manifest_sha256.is_not(None) | (ResumeState.created_at < func.now() - ARRIVES_WITHIN)
    unused = (
        select(ResumeState)
        .join(Job, Job.id == ResumeState.job_id)
        .where(has_come, ResumeState.deleted_at.is_not(None) | ended)
        .limit(BATCH)
    )
    found = list(session.scalars(unused))
    for state in found:
        session.delete(state)
    session.flush()
    return found


def held(session: Session, blobs: set[str]) -> set[str]:
    """Those of the blobs that a state has, or waits for; and others of the same states."""
    rows = session.scalars(
        select(ResumeState.files).where(or_(*(ResumeState.files.contains([{"sha256": one}]) for one in blobs)))
    )
    return {file["sha256"] for row in rows for file in row}


def _whole(job_id: str) -> Any:
    return select(ResumeState).where(
        ResumeState.job_id == job_id, ResumeState.manifest_sha256.is_not(None), ResumeState.deleted_at.is_(None)
    )
