"""Enter a result, find it, read its files."""

import re
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import Project
from app.errors import NotFound
from app.pages import Page, page_of
from app.registry.manifest import Manifest, PublishedFile
from app.registry.models import RegisteredModel


def name_of_result(base: str, project_name: str, suffix: str | None) -> str:
    """`ft:<base, last path part>:<project>:<suffix>:<id>`; an absent suffix keeps its colons."""
    last = base.rsplit("/", 1)[-1].split("@", 1)[0]
    return f"ft:{last}:{slug(project_name)}:{slug(suffix or '')}:{secrets.token_hex(6)}"


def slug(words: str) -> str:
    """Words as they may stand in a name: `[a-z0-9._-]`."""
    return re.sub(r"[^a-z0-9._-]+", "-", words.lower()).strip("-")


def register(session: Session, manifest: Manifest, *, manifest_sha256: str) -> RegisteredModel:
    """Enter a published result. A job has one row: a second one for it breaks a unique constraint."""
    spec, report = manifest.spec, manifest.report
    row = RegisteredModel(
        id=manifest.id,
        project_id=manifest.project_id,
        job_id=manifest.job_id,
        kind=manifest.kind,
        base=manifest.base.model_dump(),
        method=spec.method.type,
        tuning=spec.tuning.model_dump(mode="json"),
        trained_parameters=report.trained_parameters,
        all_parameters=report.all_parameters,
        bytes=manifest.bytes,
        files=[file.model_dump() for file in manifest.files],
        manifest_key=manifest.key,
        manifest_sha256=manifest_sha256,
        training_file=manifest.training_file.model_dump(),
        seed=spec.seed,
        versions=report.versions,
        metrics=report.model_dump(exclude={"versions", "trained_parameters", "all_parameters"}),
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, project: Project, model_id: str) -> RegisteredModel:
    """A result of the project. Raises `NotFound`."""
    row = session.scalar(
        select(RegisteredModel).where(RegisteredModel.id == model_id, RegisteredModel.project_id == project.id)
    )
    if row is None:
        raise NotFound(f"No such model: {model_id}", param="model")
    return row


def models(session: Session, project: Project, *, after: str | None, limit: int) -> Page[RegisteredModel]:
    """The project's results, newest first."""
    rows = select(RegisteredModel).where(RegisteredModel.project_id == project.id)
    return page_of(session, rows, RegisteredModel, after=after, limit=limit)


def file_of(model: RegisteredModel, name: str) -> PublishedFile:
    """One of a result's files. Raises `NotFound`, with the names there are."""
    for file in model.files:
        if file["name"] == name:
            return PublishedFile.model_validate(file)
    names = ", ".join(file["name"] for file in model.files)
    raise NotFound(f"'{model.id}' has no file '{name}'. It has: {names}.", param="name")
