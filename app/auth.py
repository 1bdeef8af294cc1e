"""API keys and the projects they belong to.

A key is `ft-` and 32 random bytes; the database holds its SHA-256 only (the key is random, so no slow hash is needed).
"""

import hashlib
import secrets
from datetime import datetime

from sqlalchemy import BindParameter, ColumnElement, ForeignKey, and_, bindparam, func, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base, CreatedAt, Time, new_id
from app.errors import NotAuthenticated
from app.reads import Reads, question


class Project(Base):
    """Who files, jobs and models belong to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A caller's proof that it may act for a project."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time | None]
    revoked_at: Mapped[Time | None]


def create_key(session: Session, project_name: str, name: str, *, expires_at: datetime | None = None) -> str:
    """Make a key for a project, and the project if it is new. The answer is the only copy of the key."""
    project = session.scalar(select(Project).where(Project.name == project_name))
    if project is None:
        project = Project(id=new_id("proj_"), name=project_name)
        session.add(project)
        session.flush()
    key = "ft-" + secrets.token_urlsafe(32)
    session.add(ApiKey(id=new_id("key_"), project_id=project.id, name=name, sha256=digest(key), expires_at=expires_at))
    session.flush()
    return key


def authenticate(session: Session, key: str) -> Project:
    """The project a key acts for. Raises `NotAuthenticated`, in the same words whatever is wrong with the key."""
    project = session.scalar(select(Project).join(ApiKey, ApiKey.project_id == Project.id).where(is_valid(digest(key))))
    if project is None:
        raise refused()
    return project


async def caller(reads: Reads, key: str) -> Project:
    """The same on the event loop. Raises `NotAuthenticated`."""
    found = await reads.first(_CALLER, sha256=digest(key))
    if found is None:
        raise refused()
    return Project(id=found.id, name=found.name, created_at=found.created_at)


def is_valid(sha256: str | BindParameter[str]) -> ColumnElement[bool]:
    """Whether a row is the key with this digest, neither revoked nor expired."""
    alive = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    return and_(ApiKey.sha256 == sha256, ApiKey.revoked_at.is_(None), alive)


def refused() -> NotAuthenticated:
    """The same words whatever is wrong with the key."""
    return NotAuthenticated("Incorrect API key. Send 'Authorization: Bearer <key>' with a key of this server.")


def all_keys(session: Session) -> list[tuple[ApiKey, Project]]:
    """Every key ever made, with its project; the oldest first."""
    rows = session.execute(
        select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id).order_by(ApiKey.created_at)
    )
    return [(key, project) for key, project in rows]


def any_key(session: Session) -> bool:
    """Whether anybody could call this server at all."""
    return session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None


_CALLER = question(
    select(Project.__table__).join(ApiKey, ApiKey.project_id == Project.id).where(is_valid(bindparam("sha256")))
)


def digest(key: str) -> str:
    """What the database has of a key."""
    return hashlib.sha256(key.encode()).hexdigest()
