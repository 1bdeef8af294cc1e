"""What a job's trainers print: kept beside its events, so that it can be read wherever it was trained.

A place in it is a number of bytes from its beginning: a connection may break anywhere, in the middle of a letter too.
"""

from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import InvalidRequest
from app.jobs import events
from app.jobs.models import JobLog
from app.work.lifecycle import Claim

MAX_LINES = 100_000
LAST_LINES = 20
LAST_BYTES = 4096
"""Of what a failure shows: a traceback's end, and no more than an answer can carry."""


class Part(NamedTuple):
    """What a log says from some place on, up to now."""

    start: int
    """The place: the bytes of the log that come before."""
    text: bytes
    seq: int
    """Of the last entry in it; 0 where there is no log."""


def write(session: Session, job_id: str, text: str) -> None:
    """Add some lines, each with its newline."""
    events.hold(session, job_id)
    session.add(JobLog(job_id=job_id, text=text))


def tail(session: Session, job_id: str, lines: int) -> Part:
    """The last lines of a job's log."""
    found: list[str] = []
    last = 0
    pieces = select(JobLog).where(JobLog.job_id == job_id).order_by(JobLog.seq.desc()).execution_options(yield_per=100)
    with session.scalars(pieces) as newest_first:
        for piece in newest_first:
            last = max(last, piece.seq)
            found = piece.text.splitlines(keepends=True) + found
            if len(found) >= lines:
                break
    text = "".join(found[-lines:] if lines else []).encode()
    length = select(func.sum(func.octet_length(JobLog.text))).where(JobLog.job_id == job_id, JobLog.seq <= last)
    return Part((session.scalar(length) or 0) - len(text), text, last)


def heading(holder: Claim) -> str:
    """The line above what an attempt's trainer printed."""
    return f"== {holder.kind}, attempt {holder.attempt} ==\n"


def last_lines(session: Session, holder: Claim) -> list[str]:
    """What an attempt's trainer printed last, as far as it is in the log; the first of them may be cut."""
    mine, top = JobLog.job_id == holder.subject, heading(holder)
    begin = select(JobLog.seq).where(mine, JobLog.text.startswith(top)).order_by(JobLog.seq.desc()).limit(1)
    pieces = (
        select(JobLog.text)
        .where(mine, JobLog.seq >= begin.scalar_subquery())
        .order_by(JobLog.seq.desc())
        .execution_options(yield_per=100)
    )
    end = ""
    with session.scalars(pieces) as newest_first:
        for text in newest_first:
            end = text + end
            if len(end) > LAST_BYTES:
                break
    end = end.removeprefix(top).strip("\n").encode()[-LAST_BYTES:].decode(errors="ignore")
    return end.split("\n")[-LAST_LINES:] if end else []


def after(session: Session, job_id: str, place: int) -> Part:
    """A job's log from a place on. Raises `InvalidRequest` for one that lies behind its end."""
    came, last = 0, 0
    lengths = select(JobLog.seq, func.octet_length(JobLog.text)).where(JobLog.job_id == job_id).order_by(JobLog.seq)
    for seq, length in session.execute(lengths):
        if came + length > place:
            break
        came, last = came + length, seq
    rest = session.scalars(select(JobLog).where(JobLog.job_id == job_id, JobLog.seq > last).order_by(JobLog.seq)).all()
    text = "".join(piece.text for piece in rest).encode()
    if place - came > len(text):
        raise InvalidRequest(f"The log of {job_id} has {came + len(text)} bytes.", param="after")
    return Part(place, text[place - came :], rest[-1].seq if rest else last)
