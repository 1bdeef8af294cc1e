"""A job's history: sentences and metrics, written in the transaction of what they tell.

Whoever adds to a history holds the job's row, so that entries become visible in the order of their `seq`: a reader that
has seen one has seen all before it.
"""

from typing import Any, Literal

from sqlalchemy import CTE, ColumnElement, Select, bindparam, func, insert, select
from sqlalchemy.orm import Session

from app.db import new_id
from app.jobs.models import Job, JobEvent

Level = Literal["info", "warn", "error"]
Entry = dict[str, Any]
CHANNEL = "job_news"
"""Where a listener hears the ids of jobs that have something new, in their history or their log."""


_COLUMNS = ("id", "level", "type", "message", "data")
"""Of an entry; as values of a statement with another prefix, or an UPDATE of jobs would take them for its own."""


def _announcing(jobs: CTE) -> Select[Any]:
    return select(func.pg_notify(CHANNEL, jobs.c.id))


def telling(jobs: CTE, **columns: ColumnElement[Any]) -> Select[Any]:
    """A statement that adds an entry, which `entry` makes, to the history of each job whose `id` the CTE returns.

    The CTE takes those rows: an entry is numbered only once it has been read. `columns`: other than the entry's.
    """
    bound = {name: bindparam(f"entry_{name}", type_=JobEvent.__table__.c[name].type) for name in _COLUMNS}
    made = insert(JobEvent).from_select(["job_id", *_COLUMNS], select(jobs.c.id, *(bound | columns).values()))
    return _announcing(jobs).add_cte(made.returning(JobEvent.seq).cte("told"))


_HELD = select(Job.id).where(Job.id == bindparam("job")).with_for_update(key_share=True).cte("held")
_HOLD = _announcing(_HELD)
_TELL = telling(_HELD)


def begin(session: Session, job_id: str, messages: list[str]) -> None:
    """The first sentences of a new job, which nobody else knows yet."""
    shared = {"job_id": job_id, "level": "info", "type": "message"}
    session.execute(_BEGIN, [{"id": new_id("ftevent-"), "message": message, **shared} for message in messages])


_BEGIN = insert(JobEvent.metadata.tables[JobEvent.__tablename__])


def tell(session: Session, job_id: str, message: str, *, level: Level = "info") -> None:
    """Add a sentence."""
    session.execute(_TELL, {"job": job_id, **entry(message, level=level)})


def measure(session: Session, job_id: str, message: str, data: dict[str, Any]) -> None:
    """Add numbers, with a sentence for those who read."""
    session.execute(_TELL, {"job": job_id, **entry(message, kind="metrics", data=data)})


def hold(session: Session, job_id: str) -> None:
    """Take the job's row until the transaction ends, and announce that something new will be told then."""
    session.execute(_HOLD, {"job": job_id})


def entry(message: str, *, level: Level = "info", kind: str = "message", data: dict[str, Any] | None = None) -> Entry:
    """The values that a statement of `telling` takes."""
    values = (new_id("ftevent-"), level, kind, message, data)
    return {f"entry_{name}": value for name, value in zip(_COLUMNS, values, strict=True)}
