"""How the work on a report or a preview ends: each in the transaction of its work's move."""

from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.reports.models import FilePreview, FileReport
from app.work import lifecycle as work
from app.work.lifecycle import Claim
from app.work.status import WorkKind


def answer(session: Session, holder: Claim, set_key: str) -> None:
    """The set is entered: it answers the report."""
    work.succeed(session, holder)
    made = session.get(FileReport, holder.subject)
    if made is not None:  # else its file was deleted meanwhile
        made.set_key, made.finished_at = set_key, func.now()


def show(session: Session, holder: Claim, rows: list[Any]) -> None:
    """The rows of a preview."""
    work.succeed(session, holder)
    made = session.get(FilePreview, holder.subject)
    if made is not None:
        made.rows, made.finished_at = rows, func.now()


def fail(session: Session, holder: Claim, error: dict[str, Any]) -> None:
    """It cannot be made: whoever asks hears why."""
    work.fail(session, holder, error)
    made: FileReport | FilePreview | None
    if holder.kind is WorkKind.REPORT:
        made = session.get(FileReport, holder.subject)
    else:
        made = session.get(FilePreview, holder.subject)
    if made is not None:
        made.error, made.finished_at = error, func.now()
