"""What a job's trainers print: kept beside its events, so that it can be read wherever it was trained."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs import events
from app.jobs.models import JobLog

MAX_LINES = 100_000


def write(session: Session, job_id: str, text: str) -> None:
    """Add some lines, each with its newline."""
    events.hold(session, job_id)
    session.add(JobLog(job_id=job_id, text=text))


def tail(session: Session, job_id: str, lines: int) -> tuple[str, int]:
    """The last lines of a job's log, and the `seq` up to which they go; 0 where there is no log."""
    found: list[str] = []
    last = 0
    pieces = select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.seq.desc()).execution_options(yield_per=100)
    for piece in session.scalars(pieces):
        last = max(last, piece.seq)
        found = piece.text.splitlines(keepends=True) + found
        if len(found) >= lines:
            break
    return "".join(found[-lines:] if lines else []), last
