"""A job's history: sentences and metrics, written in the transaction of what they tell."""

from typing import Any, Literal

from sqlalchemy.orm import Session

from app.db import new_id
from app.jobs.models import JobEvent

Level = Literal["info", "warn", "error"]


def tell(session: Session, job_id: str, message: str, *, level: Level = "info") -> None:
    """Add a sentence."""
    _add(session, job_id, level, "message", message, None)


def measure(session: Session, job_id: str, message: str, data: dict[str, Any]) -> None:
    """Add numbers, with a sentence for those who read."""
    _add(session, job_id, "info", "metrics", message, data)


def _add(session: Session, job_id: str, level: Level, kind: str, message: str, data: dict[str, Any] | None) -> None:
    session.add(JobEvent(id=new_id("ftevent-"), job_id=job_id, level=level, type=kind, message=message, data=data))
