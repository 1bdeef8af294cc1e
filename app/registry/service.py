"""Enter a result or a checkpoint, find it, read its files, delete it."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.errors import InvalidRequest, NotFound
from app.pages import Page, page_of
from app.registry.manifest import Manifest, PublishedFile
from app.registry.models import CheckpointPermission, RegisteredModel


def register(session: Session, manifest: Manifest, *, manifest_sha256: str) -> RegisteredModel:
    """Enter what was published. A job has one result: a second row for it breaks a unique constraint."""
    spec, report = manifest.spec, manifest.report
    row = RegisteredModel(
        id=manifest.id,
        project_id=manifest.project_id,
        job_id=manifest.job_id,
        step=manifest.step,
        parent=manifest.parent,
        kind=manifest.kind,
        base=manifest.base.model_dump(),
        method=spec.method.type,
        tuning=spec.published_tuning.model_dump(mode="json"),
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
    """A result or a checkpoint that the project may use: its own, or one it has a permission for. Raises `NotFound`."""
    row = session.scalar(_shown(project).where(RegisteredModel.id == model_id))
    if row is None:
        raise NotFound(f"No such model: {model_id}", param="model")
    return row


def owned(session: Session, project: Project, model_id: str) -> RegisteredModel:
    """One that is the project's own, to share or to delete. Raises `NotFound`, or `InvalidRequest` for a shared one."""
    row = get(session, project, model_id)
    if row.project_id != project.id:
        raise InvalidRequest(
            f"'{model_id}' is shared with your project: only the project that it belongs to can share or delete it.",
            param="model",
        )
    return row


def models(
    session: Session, project: Project, *, after: str | None, limit: int, checkpoints: bool = False
) -> Page[RegisteredModel]:
    """The results that the project may use, and the checkpoints where they are wanted, newest first."""
    rows = _shown(project)
    if not checkpoints:
        rows = rows.where(RegisteredModel.step.is_(None))
    return page_of(session, rows, RegisteredModel, after=after, limit=limit)


class Entry(NamedTuple):
    """What a list of all models says of one: no row is read whole for it, which is some kilobytes."""

    id: str
    created_at: datetime
    project_id: str


def entries(session: Session, project: Project) -> list[Entry]:
    """All results and checkpoints that the project may use, newest first, however many."""
    rows = _shown(project).with_only_columns(RegisteredModel.id, RegisteredModel.created_at, RegisteredModel.project_id)
    return [Entry(*row) for row in session.execute(rows.order_by(RegisteredModel.seq.desc()))]


def delete(session: Session, project: Project, model_id: str) -> None:
    """Hide a result or a checkpoint from everybody.

    A job that started from it keeps it until the job ends, and an adapter that was trained on it as long as there is
    one: it can go on training on this base and no other. Raises what `owned` does.
    """
    owned(session, project, model_id).deleted_at = func.now()


def keep_checkpoints(session: Session, job_id: str, *, newest: int, every: int | None = None) -> None:
    """Hide all of a job's checkpoints but so many, the best by validation loss or reward, and every n-th step's."""
    mine = (RegisteredModel.job_id == job_id, RegisteredModel.step.is_not(None), RegisteredModel.deleted_at.is_(None))
    last = select(RegisteredModel.id).where(*mine).order_by(RegisteredModel.step.desc()).limit(newest)
    measured = RegisteredModel.metrics["checkpoint"]
    cost = func.coalesce(-measured["valid_mean_reward"].as_float(), measured["valid_loss"].as_float())
    lowest = select(RegisteredModel.id).where(*mine, cost.is_not(None)).order_by(cost, RegisteredModel.step).limit(1)
    others = [*mine, RegisteredModel.id.not_in(last), RegisteredModel.id.not_in(lowest)]
    if every is not None:
        others.append(RegisteredModel.step % every != 0)
    session.execute(update(RegisteredModel).where(*others).values(deleted_at=func.now()))


def used(session: Session, model_id: str) -> RegisteredModel:
    """A model that a job started from, since then deleted, or no longer shared with the job's project, or not.

    Whether the project may use it was asked when the job was submitted.
    """
    return session.get_one(RegisteredModel, model_id)


def base_of(session: Session, model: RegisteredModel) -> RegisteredModel | None:
    """The full model that another was trained on, deleted since or not; None where the base is not of the registry."""
    return session.get(RegisteredModel, model.base["id"])


def _shown(project: Project) -> Select[RegisteredModel]:
    permitted = select(CheckpointPermission.model).where(CheckpointPermission.project_id == project.id)
    return select(RegisteredModel).where(
        or_(RegisteredModel.project_id == project.id, RegisteredModel.id.in_(permitted)),
        RegisteredModel.deleted_at.is_(None),
    )


def file_of(model: RegisteredModel, name: str) -> PublishedFile:
    """One of a result's files. Raises `NotFound`, with the names there are."""
    for file in model.files:
        if file["name"] == name:
            return PublishedFile.model_validate(file)
    names = ", ".join(file["name"] for file in model.files)
    raise NotFound(f"'{model.id}' has no file '{name}'. It has: {names}.", param="name")
