"""A job's history: sentences and metrics, written in the transaction of what they tell.

Whoever adds to a history holds the job's row, so that entries become visible in the order of their `seq`: a reader that
has seen one has seen all before it.
"""

from typing import Any, Literal

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.db import new_id
from app.jobs.models import Job, JobEvent

Level = Literal["info", "warn", "error"]
CHANNEL = "job_news"
"""Where a listener hears the ids of jobs that have something new, in their history or their log."""


def begin(session: Session, job_id: str, messages: list[str]) -> None:
    """The first sentences of a new job, which nobody else knows yet."""
    shared = {"job_id": job_id, "level": "info", "type": "message"}
    session.execute(
        insert(JobEvent), [{"id": new_id("ftevent-"), "message": message, **shared} for message in messages]
    )


def tell(session: Session, job_id: str, message: str, *, level: Level = "info") -> None:
    """Add a sentence."""
    hold(session, job_id)
    _add(session, job_id, level, "message", message, None)


def measure(session: Session, job_id: str, message: str, data: dict[str, Any]) -> None:
    """Add numbers, with a sentence for those who read."""
    hold(session, job_id)
    _add(session, job_id, "info", "metrics", message, data)


def hold(session: Session, job_id: str) -> None:
    """Take the job's row until the transaction ends, and announce that something new will be told then."""
    session.execute(select(func.pg_notify(CHANNEL, job_id)).where(Job.id == job_id).with_for_update(key_share=True))


def _add(session: Session, job_id: str, level: Level, kind: str, message: str, data: dict[str, Any] | None) -> None:
    session.add(JobEvent(id=new_id("ftevent-"), job_id=job_id, level=level, type=kind, message=message, data=data))
