"""What is asked of work from outside an attempt: put it in a queue, find it, see who does it."""

from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, cast, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, distinct_on, insert
from sqlalchemy.orm import Session

from app.queue import PREPARE
from app.work.lifecycle import Claim, Who
from app.work.models import Attempt, Work, Worker
from app.work.status import PRIORITIES, WorkKind, WorkStatus

HEARD_WITHIN = timedelta(seconds=30)
"""Three heartbeats: a worker that was heard of so lately is up."""


def enqueue(
    session: Session,
    kind: WorkKind,
    *,
    subject: str,
    project_id: str,
    queue: str,
    priority: str,
    seconds: tuple[float, float] | None = None,
) -> None:
    """Queue work; whoever hears the doorbell after the commit claims it. `seconds`: how long it should take."""
    low, high = seconds or (None, None)
    values = {
        "kind": kind,
        "subject": subject,
        "project_id": project_id,
        "queue": queue,
        "priority": PRIORITIES[priority],
        "seconds_low": low,
        "seconds_high": high,
    }
    session.execute(_ENQUEUE, values)


_ENQUEUE = insert(Work.metadata.tables[Work.__tablename__])


def devices(session: Session) -> dict[str, dict[str, Any]]:
    """The worker classes heard of within a day, each with the device of the worker that has the least memory."""
    return {row.queue: row.device for row in session.execute(_DEVICES)}


_DEVICES = (
    select(Worker.queue, Worker.device)
    .where(Worker.heard_at > func.now() - timedelta(days=1), Worker.queue != PREPARE)
    .ext(distinct_on(Worker.queue))
    .order_by(Worker.queue, cast(Worker.device["memory_bytes"].astext, BigInteger))
)


def attempts(session: Session, subject: str) -> list[tuple[Work, Attempt]]:
    """All attempts at a subject's work, oldest first."""
    rows = session.execute(
        select(Work, Attempt)
        .join(Attempt, Attempt.work_id == Work.id)
        .where(Work.subject == subject)
        .order_by(Work.id, Attempt.number)
    )
    return [(work, attempt) for work, attempt in rows]


def ended(session: Session, subject: str, kind: WorkKind) -> WorkStatus | None:
    """How a subject's work of a kind ended for good; None while it has not."""
    status = session.scalar(
        select(Work.status).where(Work.subject == subject, Work.kind == kind, Work.finished_at.is_not(None))
    )
    return WorkStatus(status) if status else None


def note_resume(session: Session, holder: Claim, step: int) -> None:
    """Remember the checkpoint at which an attempt took up the training."""
    attempt = session.get_one(Attempt, (holder.work_id, holder.attempt))
    attempt.resumed_from_step = step


def note_phases(session: Session, holder: Claim, phases: dict[str, float]) -> None:
    """Remember how many seconds an attempt was at what, and waited before. To be noted before the move that ends it."""
    # Before the attempt, as every move does, so that a sweeper and a zombie do not wait for each other.
    session.execute(select(Work.id).where(Work.id == holder.work_id).with_for_update())
    ended_before = select(func.max(Attempt.ended_at)).where(
        Attempt.work_id == holder.work_id, Attempt.number < holder.attempt
    )
    could_be_claimed = func.greatest(Work.available_at, ended_before.scalar_subquery())
    waited = func.extract("epoch", Attempt.started_at - could_be_claimed)
    session.execute(
        update(Attempt)
        .where(Attempt.work_id == holder.work_id, Attempt.number == holder.attempt, Work.id == Attempt.work_id)
        .values(phases=func.jsonb_build_object("waiting", func.greatest(waited, 0)).concat(literal(phases, JSONB())))
    )


def hear(session: Session, who: Who, *, queue: str, pid: int, usage: dict[str, Any] | None = None) -> None:
    """Note that a worker lives, what its device is used for, and why it takes no work (`blocked`), if so."""
    row = {
        "host": who.host,
        "pid": pid,
        "queue": queue,
        "device": who.device,
        "heard_at": func.now(),
        "usage": usage or {},
    }
    session.execute(
        insert(Worker).values(id=who.worker_id, **row).on_conflict_do_update(index_elements=[Worker.id], set_=row)
    )


def forget(session: Session, worker_id: str) -> None:
    """Strike a worker off that has ended in order."""
    worker = session.get(Worker, worker_id)
    if worker is not None:
        session.delete(worker)


def forget_silent(session: Session, age: timedelta) -> None:
    """Strike those off that ended without a word so long ago: a container is another host each time it starts."""
    session.execute(delete(Worker).where(Worker.heard_at < func.now() - age))


def workers(session: Session) -> list[tuple[Worker, Work | None, bool]]:
    """Every worker known, what it is busy with, and whether it is up."""
    rows = session.execute(
        select(Worker, Work, Worker.heard_at > func.now() - HEARD_WITHIN)
        .outerjoin(Attempt, (Attempt.worker_id == Worker.id) & Attempt.ended_at.is_(None))
        .outerjoin(Work, (Work.id == Attempt.work_id) & (Work.status == WorkStatus.RUNNING))
        # A slot whose child was killed has two open attempts until the first one's lease runs out.
        .ext(distinct_on(Worker.host, Worker.id))
        .order_by(Worker.host, Worker.id, Attempt.started_at.desc().nulls_last())
    )
    return [(worker, work, alive) for worker, work, alive in rows]


def unheard(session: Session) -> list[str]:
    """Queues with work that could be claimed now."""
    return list(
        session.scalars(
            select(Work.queue).where(Work.status == WorkStatus.QUEUED, Work.available_at <= func.now()).distinct()
        )
    )


def silent(session: Session) -> list[tuple[Claim, dict[str, Any]]]:
    """Claims whose lease ran out, locked against their worker's coming back meanwhile."""
    rows = session.execute(
        select(Work, Attempt)
        .join(Attempt, (Attempt.work_id == Work.id) & (Attempt.number == Work.attempt))
        .where(Work.status == WorkStatus.RUNNING, Work.lease_until < func.now())
        .order_by(Work.id)
        .limit(100)
        .with_for_update(of=Work, skip_locked=True)
    )
    return [
        (
            Claim(work.id, WorkKind(work.kind), work.subject, work.attempt, work.failed_attempts),
            {"host": attempt.host},
        )
        for work, attempt in rows
    ]
