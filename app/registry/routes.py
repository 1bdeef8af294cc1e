"""/v1/models and /v1/registry/models

Ids of results have colons, ids of hub models a slash; clients send either raw or percent-encoded, and both arrive
decoded. So an id is a `:path`, and what follows it is matched first.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from app.errors import InvalidRequest
from app.http import After, CallerDep, ListRead, SessionDep, answer, content_of, limit_query, list_of
from app.registry import catalogue, names, service, tar
from app.registry.manifest import PublishedFile
from app.registry.schemas import (
    ModelDeleted,
    ModelList,
    ModelRead,
    RegisteredModelRead,
    VerificationRead,
    base_read,
    result_read,
)
from app.storage import get_storage

router = APIRouter(prefix="/v1", tags=["models"])

ModelId = Annotated[str, Path(description="Id of a base model, a result or a checkpoint.")]
ResultId = Annotated[str, Path(description="Id of a result or a checkpoint.")]
FileName = Annotated[str, Path(description="One of the `files` of the result.")]


@router.get("/models", response_model=ModelList)
def list_models(caller: CallerDep, session: SessionDep) -> Response:
    """List the base models on offer, and the project's results and checkpoints: all of them, in one page."""
    with session.begin():
        results = service.entries(session, caller)
    return answer(ModelList.of(catalogue.offered(), results))


@router.get("/models/{model:path}")
def get_model(model: ModelId, caller: CallerDep, session: SessionDep) -> ModelRead:
    """Retrieve a base model, a result or a checkpoint."""
    for base in catalogue.offered():
        if base.id == model:
            return base_read(base)
    with session.begin():
        return result_read(service.get(session, caller, model))


@router.delete("/models/{model:path}")
def delete_model(model: ResultId, caller: CallerDep, session: SessionDep) -> ModelDeleted:
    """Delete a result or a checkpoint; jobs that have started from it, and adapters trained on it, keep it."""
    if any(base.id == model for base in catalogue.offered()):
        raise InvalidRequest(f"'{model}' is a base model, which only the operator can remove.", param="model")
    with session.begin():
        service.delete(session, caller, model)
    return ModelDeleted(id=model)


@router.get("/registry/models")
def list_registered_models(
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 100) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
    checkpoints: Annotated[bool, Query(description="List checkpoints too.")] = False,
) -> ListRead[RegisteredModelRead]:
    """List results in full, newest first."""
    with session.begin():
        page = service.models(session, caller, after=after, limit=limit, checkpoints=checkpoints)
        return list_of(page, [RegisteredModelRead.of(row) for row in page.rows])


@router.get(
    "/registry/models/{model}/files/{name:path}",
    response_class=StreamingResponse,
    responses=content_of("application/octet-stream", format="binary"),
)
def get_registered_file(model: ResultId, name: FileName, caller: CallerDep, session: SessionDep) -> StreamingResponse:
    """Stream one file of a result."""
    with session.begin():
        file = service.file_of(service.get(session, caller, model), name)
    return StreamingResponse(
        get_storage().read(file.sha256, size=file.bytes),
        media_type="application/octet-stream",
        headers={"content-length": str(file.bytes), "etag": f'"{file.sha256}"'},
    )


@router.get(
    "/registry/models/{model}/download",
    response_class=StreamingResponse,
    responses=content_of("application/x-tar", format="binary"),
)
def download_registered_model(model: ResultId, caller: CallerDep, session: SessionDep) -> StreamingResponse:
    """Stream the whole folder of a result as a tar."""
    with session.begin():
        row = service.get(session, caller, model)
    folder = names.slug(row.id)  # a base's name may have letters that no header takes
    files = [PublishedFile.model_validate(file) for file in row.files]
    return StreamingResponse(
        tar.stream(get_storage(), folder, files, mtime=int(row.created_at.timestamp())),
        media_type="application/x-tar",
        headers={"content-disposition": f'attachment; filename="{folder}.tar"'},
    )


@router.get("/registry/models/{model}/verify")
def verify_registered_model(model: ResultId, caller: CallerDep, session: SessionDep) -> VerificationRead:
    """Read all bytes of a result, and say of each file whether they are what was published."""
    with session.begin():
        row = service.get(session, caller, model)
    storage = get_storage()
    files = [PublishedFile.model_validate(file) for file in row.files]
    return VerificationRead.of(row.id, {file.name: storage.problem(file.sha256, file.bytes) for file in files})


@router.get("/registry/models/{model}")
def get_registered_model(model: ResultId, caller: CallerDep, session: SessionDep) -> RegisteredModelRead:
    """Retrieve a result: its base by hashes, its tuning, its files, its metrics."""
    with session.begin():
        return RegisteredModelRead.of(service.get(session, caller, model))
