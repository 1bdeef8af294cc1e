"""The moves of a piece of work: claim, prolong, succeed, fail, retry, requeue, pause, resume, cancel. No one else
writes its status.

Each move is one UPDATE that also checks. What a worker writes is fenced by the number of its attempt: once the lease
ran out and another attempt began, its moves match no row. All times are the database's.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from app.errors import IllegalMove
from app.work.models import Attempt, Work
from app.work.status import Desired, WorkKind, WorkStatus, sources
from app.work.turns import Take, taking

CLAIMS_LOCK = 0x636C6169
UNBOUNDED = 2**62
TAKE = taking()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one attempt."""

    work_id: int
    kind: WorkKind
    subject: str
    attempt: int
    failed_attempts: int
    moved: bool = True
    """Whether its subject moved with it."""

    @property
    def is_of_job(self) -> bool:
        """Whether its subject is a job."""
        return self.kind in (WorkKind.PREPARE, WorkKind.TRAIN)

    def named(self) -> dict[str, Any]:
        """As log lines name it."""
        return {
            "job" if self.is_of_job else "subject": self.subject,
            "work": self.kind.value,
            "attempt": self.attempt,
        }


@dataclass(frozen=True, slots=True)
class Who:
    """The worker that claims, as its attempts shall show it."""

    worker_id: str
    host: str
    device: dict[str, Any]


def claim(
    session: Session,
    queue: str,
    *,
    who: Who,
    lease: timedelta,
    most: int | None = None,
    free: int | None = None,
    take: Take = TAKE,
    **values: Any,
) -> Claim | None:
    """Take the first work of a queue, or None; see `turns`. Two claimers never get the same row.

    `most`: pieces of training that a project may have running at once, in all queues together. `free`: bytes of the
    claimer's disk, which pass over work that needs more; None: whatever it needs. `take`: the statement, which takes
    the `values` too.
    """
    values |= {
        "of_queue": queue,
        "lease": lease,
        "free": UNBOUNDED if free is None else free,
        "by_worker_id": who.worker_id,
        "by_host": who.host,
        "by_device": who.device,
    }
    if most is None:
        row = session.execute(take.any, values).one_or_none()
    else:
        session.execute(select(func.pg_advisory_xact_lock(CLAIMS_LOCK)))  # what is counted holds until the commit
        row = session.execute(take.below_limit, {**values, "most": most}).one_or_none()
    if row is None:
        return None
    return Claim(row.id, WorkKind(row.kind), row.subject, row.attempt, row.failed_attempts, row.moved)


def prolong(session: Session, holder: Claim, *, lease: timedelta) -> Desired:
    """A heartbeat: keep the claim alive, and hear what is wished. Raises `IllegalMove` when it is lost."""
    desired = session.scalar(
        update(Work).where(*_held(holder)).values(lease_until=func.now() + lease).returning(Work.desired)
    )
    if desired is None:
        raise IllegalMove(f"Attempt {holder.attempt} at work {holder.work_id} was taken over.")
    return Desired(desired)


def require_held(session: Session, holder: Claim) -> None:
    """Nobody takes the claim over before this transaction ends. Raises `IllegalMove` when somebody has."""
    if session.scalar(select(Work.id).where(*_held(holder)).with_for_update(read=True)) is None:
        raise IllegalMove(f"Attempt {holder.attempt} at work {holder.work_id} was taken over.")


def succeed(session: Session, holder: Claim) -> None:
    """Running → succeeded."""
    _move(session, holder, WorkStatus.SUCCEEDED, finished_at=func.now())
    _end_attempt(session, holder, "succeeded")


def fail(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """Running → failed, for good."""
    _move(session, holder, WorkStatus.FAILED, finished_at=func.now(), failed_attempts=Work.failed_attempts + 1)
    _end_attempt(session, holder, "failed", error)


def retry(session: Session, holder: Claim, error: dict[str, Any], *, delay: timedelta, outcome: str = "failed") -> None:
    """Running → queued after a failure of the infrastructure, which counts against the retries.

    After a delay it stands behind its project's other work; without one it keeps its place.
    """
    _move(
        session,
        holder,
        WorkStatus.QUEUED,
        failed_attempts=Work.failed_attempts + 1,
        **({"available_at": func.now() + delay} if delay else {}),
    )
    _end_attempt(session, holder, outcome, error)


def requeue(session: Session, holder: Claim, *, outcome: str, delay: timedelta = timedelta()) -> None:
    """Running → queued, unharmed and uncounted: its worker is shutting down or too old, or a pause was wished.

    Without a delay in its old place.
    """
    _move(session, holder, WorkStatus.QUEUED, **({"available_at": func.now() + delay} if delay else {}))
    _end_attempt(session, holder, outcome)


def stop(session: Session, holder: Claim) -> None:
    """Running → cancelled, by the worker that heard the wish."""
    _move(session, holder, WorkStatus.CANCELLED, finished_at=func.now())
    _end_attempt(session, holder, "cancelled")


def cancel(session: Session, subject: str) -> bool:
    """Cancel what is queued of a subject, and wish it of what is running. Returns whether anything still runs."""
    _lock(session, subject)
    session.execute(
        update(Work)
        .where(Work.subject == subject, Work.status.in_((WorkStatus.QUEUED, WorkStatus.PAUSED)))
        .values(status=WorkStatus.CANCELLED, desired=Desired.CANCEL, finished_at=func.now())
    )
    return _wish(session, subject, Desired.CANCEL)


def pause(session: Session, subject: str, kind: WorkKind, *, room_bytes: int | None = None) -> bool:
    """Set aside what is queued of that kind, and wish it of what is running. Returns whether anything still runs.

    `room_bytes`: of a worker's disk, without which none takes it later.
    """
    _lock(session, subject)
    session.execute(
        update(Work)
        .where(Work.subject == subject, Work.kind == kind, Work.status == WorkStatus.QUEUED)
        .values(status=WorkStatus.PAUSED, desired=Desired.PAUSE, room_bytes=room_bytes)
    )
    return _wish(session, subject, Desired.PAUSE, kind=kind)


def resume(session: Session, subject: str, *, anywhere: bool = True) -> None:
    """Paused → queued; what is still running goes on, or is queued at once by the worker that stops it.

    `anywhere`: a worker takes it whether it has the room or not.
    """
    _lock(session, subject)
    session.execute(
        update(Work)
        .where(Work.subject == subject, Work.status == WorkStatus.PAUSED)
        .values(
            status=WorkStatus.QUEUED,
            desired=Desired.RUN,
            available_at=func.now(),
            **({"room_bytes": None} if anywhere else {}),
        )
    )
    session.execute(
        update(Work)
        .where(Work.subject == subject, Work.status == WorkStatus.RUNNING, Work.desired == Desired.PAUSE)
        .values(desired=Desired.RUN)
    )


def channel(work_id: int) -> str:
    """Where a worker listens for wishes, so that it hears them before its next heartbeat."""
    return f"work_{work_id}"


def _lock(session: Session, subject: str) -> None:
    """All unfinished work of a subject, in order: a claim and a wish for the same row cannot miss each other.

    Asked until it is nothing new: while a row is waited for, its holder may end it and queue the next.
    """
    unfinished = select(Work.id).where(Work.subject == subject, Work.finished_at.is_(None))
    locked: set[int] = set()
    while not locked.issuperset(found := session.scalars(unfinished.order_by(Work.id).with_for_update()).all()):
        locked.update(found)


def _wish(session: Session, subject: str, desired: Desired, *, kind: WorkKind | None = None) -> bool:
    """Tell the workers that have a subject; returns whether there is one."""
    running = update(Work).where(Work.subject == subject, Work.status == WorkStatus.RUNNING)
    if kind is not None:
        running = running.where(Work.kind == kind)
    told = session.scalars(running.values(desired=desired).returning(Work.id)).all()
    for work_id in told:
        session.execute(select(func.pg_notify(channel(work_id), desired)))
    return bool(told)


def _held(holder: Claim) -> tuple[ColumnElement[bool], ...]:
    return (Work.id == holder.work_id, Work.attempt == holder.attempt, Work.status == WorkStatus.RUNNING)


def _move(session: Session, holder: Claim, target: WorkStatus, **values: Any) -> None:
    if target is not WorkStatus.RUNNING:
        values["lease_until"] = None
    moved = session.scalar(
        update(Work)
        .where(*_held(holder), Work.status.in_(sources(target)))
        .values(status=target, **values)
        .returning(Work.id)
    )
    if moved is None:
        raise IllegalMove(f"Attempt {holder.attempt} at work {holder.work_id} was taken over.")


def _end_attempt(session: Session, holder: Claim, outcome: str, error: dict[str, Any] | None = None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.work_id == holder.work_id, Attempt.number == holder.attempt)
        .values(ended_at=func.now(), outcome=outcome, error=error)
    )
