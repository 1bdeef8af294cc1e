"""/v1/fine_tuning/checkpoints/{id}/permissions, where the id is a checkpoint's or a result's

Any key of the project that a model belongs to will do; OpenAI wants an administrator's.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from app.http import After, CallerDep, ListRead, SessionDep, limit_query, list_of
from app.pages import Page
from app.registry import permissions
from app.registry.schemas import PermissionDeleted, PermissionRead, PermissionsCreate

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["models"])

ModelId = Annotated[str, Path(alias="fine_tuned_model_checkpoint", description="Id of a checkpoint or a result.")]
PermissionId = Annotated[str, Path(description="Id of a permission.")]


@router.post("/{fine_tuned_model_checkpoint:path}/permissions")
def create_permissions(
    given: PermissionsCreate, model: ModelId, caller: CallerDep, session: SessionDep
) -> ListRead[PermissionRead]:
    """Let other projects use a model: see it, download it, start jobs from it."""
    with session.begin():
        granted = permissions.grant(session, caller, model, given.project_ids)
        return list_of(Page(granted, has_more=False), [PermissionRead.of(row) for row in granted])


@router.get("/{fine_tuned_model_checkpoint:path}/permissions")
def list_permissions(
    model: ModelId,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(10, 100) = 10,  # type: ignore[valid-type]  # an Annotated made by a function
    order: Annotated[
        Literal["ascending", "descending"], Query(description="By the time of creation; `descending`: newest first.")
    ] = "descending",
    project_id: Annotated[str | None, Query(max_length=300, description="Of the one project to look for.")] = None,
) -> ListRead[PermissionRead]:
    """List the projects that may use a model, newest first."""
    with session.begin():
        page = permissions.permissions(
            session,
            caller,
            model,
            project_id=project_id,
            after=after,
            limit=limit,
            oldest_first=order == "ascending",
        )
        return list_of(page, [PermissionRead.of(row) for row in page.rows])


@router.delete("/{fine_tuned_model_checkpoint:path}/permissions/{permission_id}")
def delete_permission(
    model: ModelId, permission_id: PermissionId, caller: CallerDep, session: SessionDep
) -> PermissionDeleted:
    """Hide a model from a project again; what it has started from the model goes on."""
    with session.begin():
        permissions.revoke(session, caller, model, permission_id)
    return PermissionDeleted(id=permission_id)
