"""Which other projects may use a result or a checkpoint: grant, list, revoke."""

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.auth import Project
from app.db import new_id
from app.errors import InvalidRequest, NotFound
from app.pages import Page, page_of
from app.registry import service
from app.registry.models import CheckpointPermission, RegisteredModel


def grant(session: Session, project: Project, model_id: str, project_ids: list[str]) -> list[CheckpointPermission]:
    """Let other projects use a model; those that may already keep the permission they have.

    Raises what `registry.service.owned` does, and `InvalidRequest` for a project that is unknown, or the model's own.
    """
    model = service.owned(session, project, model_id)
    known = set(session.scalars(select(Project.id).where(Project.id.in_(project_ids))))
    wanted = list(dict.fromkeys(project_ids))
    for project_id in wanted:
        if project_id not in known:
            raise InvalidRequest(f"There is no project '{project_id}'.", param="project_ids")
        if project_id == model.project_id:
            raise InvalidRequest(f"'{model.id}' is the project's own: it needs no permission.", param="project_ids")
    # Sorted, so that two requests for the same projects wait for each other and do not lock each other out.
    rows = [{"id": new_id("cp_"), "model": model.id, "project_id": project_id} for project_id in sorted(wanted)]
    session.execute(insert(CheckpointPermission).values(rows).on_conflict_do_nothing())
    granted = session.scalars(_of(model).where(CheckpointPermission.project_id.in_(wanted)))
    return sorted(granted, key=lambda permission: wanted.index(permission.project_id))


def permissions(
    session: Session,
    project: Project,
    model_id: str,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    oldest_first: bool,
) -> Page[CheckpointPermission]:
    """Who may use a model of the project, all or one of them. Raises what `registry.service.owned` does."""
    rows = _of(service.owned(session, project, model_id))
    if project_id is not None:
        rows = rows.where(CheckpointPermission.project_id == project_id)
    return page_of(session, rows, CheckpointPermission, after=after, limit=limit, oldest_first=oldest_first)


def revoke(session: Session, project: Project, model_id: str, permission_id: str) -> None:
    """Hide a model from a project again; jobs of the project that have started from it go on.

    Raises what `registry.service.owned` does, and `NotFound` for a permission that the model does not have.
    """
    mine = _of(service.owned(session, project, model_id)).where(CheckpointPermission.id == permission_id)
    permission = session.scalar(mine.with_for_update())
    if permission is None:
        raise NotFound(f"No such permission of '{model_id}': {permission_id}", param="permission_id")
    session.delete(permission)


def _of(model: RegisteredModel) -> Select[CheckpointPermission]:
    return select(CheckpointPermission).where(CheckpointPermission.model == model.id)
