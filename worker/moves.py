"""The moves of work that does not end well, whatever it is done to: each also moves what it is done to."""

from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.files import service as files
from app.jobs import lifecycle as jobs
from app.plans import stored as plans
from app.reports import lifecycle as reports
from app.work import lifecycle as work
from app.work.lifecycle import Claim
from app.work.status import WorkKind

OF_JOBS = (WorkKind.PREPARE, WorkKind.TRAIN)


def fail(session: Session, claim: Claim, error: dict[str, Any]) -> None:
    """Running → failed, for good."""
    if claim.kind in OF_JOBS:
        jobs.fail(session, claim, error)
    elif claim.kind is WorkKind.FETCH:
        files.fail_to_arrive(session, claim, error)
    elif claim.kind is WorkKind.PLAN:
        plans.fail(session, claim, error)
    else:
        reports.fail(session, claim, error)


def retry(session: Session, claim: Claim, error: dict[str, Any], *, delay: timedelta, outcome: str = "failed") -> None:
    """Running → queued after a failure of the infrastructure."""
    if claim.kind in OF_JOBS:
        jobs.retry(session, claim, error, delay=delay, outcome=outcome)
    else:
        work.retry(session, claim, error, delay=delay, outcome=outcome)


def requeue(session: Session, claim: Claim, *, outcome: str = "interrupted") -> None:
    """Running → queued, unharmed."""
    if claim.kind in OF_JOBS:
        jobs.requeue(session, claim, outcome=outcome)
    else:
        work.requeue(session, claim, outcome=outcome)


def stop(session: Session, claim: Claim) -> None:
    """Running → cancelled."""
    if claim.kind in OF_JOBS:
        jobs.stop(session, claim)
    else:
        work.stop(session, claim)
