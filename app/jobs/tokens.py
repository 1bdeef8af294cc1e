"""Short-lived tokens for following one job: what a browser may put into an address, where no key belongs."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from app import auth
from app.auth import Project
from app.errors import NotAuthenticated
from app.jobs.models import Job, StreamToken
from app.reads import Reads, question

LIFETIME = timedelta(minutes=10)
"""To begin or take up a stream in; one that has begun goes on."""


def make(session: Session, job: Job) -> tuple[str, datetime]:
    """A new token, of which there is no other copy, and when it expires. Those that have expired go."""
    session.execute(delete(StreamToken).where(StreamToken.expires_at < func.now()))
    token = "fts-" + secrets.token_urlsafe(32)
    row = StreamToken(sha256=auth.digest(token), job_id=job.id, expires_at=func.now() + LIFETIME)
    session.add(row)
    session.flush()
    session.refresh(row)
    return token, row.expires_at


async def project_of(reads: Reads, job_id: str, token: str) -> Project:
    """Whose job it is that a token is for. Raises `NotAuthenticated` for any other job, and after its time."""
    found = await reads.first(_PROJECT_OF_TOKEN, sha256=auth.digest(token), job_id=job_id)
    if found is None:
        raise NotAuthenticated(
            "The token is not one for this job, or has expired. Make one with POST"
            " /v1/fine_tuning/jobs/{id}/events/token."
        )
    return Project(id=found.id, name=found.name, created_at=found.created_at)


_PROJECT_OF_TOKEN = question(
    select(Project.__table__)
    .join(Job, Job.project_id == Project.id)
    .join(StreamToken, StreamToken.job_id == Job.id)
    .where(
        StreamToken.sha256 == bindparam("sha256"), Job.id == bindparam("job_id"), StreamToken.expires_at > func.now()
    )
)
