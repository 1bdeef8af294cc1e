"""/v1/files"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.auth import Project
from app.files import body, service
from app.files.models import File
from app.files.schemas import FileDeleted, FileRead
from app.http import After, CallerDep, ListRead, Order, SessionDep, content_of, limit_query, list_of
from app.settings import get_settings
from app.storage import Incoming, get_storage

router = APIRouter(prefix="/v1/files", tags=["files"])

FileId = Annotated[str, Path(description="Id of a file.")]

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "purpose": {"type": "string", "enum": list(service.PURPOSES)},
                        "file": {"type": "string", "format": "binary"},
                        "expires_after": {"$ref": "#/components/schemas/ExpiresAfter"},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD)
async def upload_file(request: Request, caller: CallerDep, session: SessionDep) -> FileRead:
    """Upload a file; a fine-tune file is JSON lines, and its rows are checked before the answer."""
    storage = get_storage()
    with storage.incoming() as incoming:
        form = await body.receive(
            request.stream(),
            content_type=request.headers.get("content-type", ""),
            incoming=incoming,
            max_bytes=get_settings().max_file_bytes,
        )

        def enter(caller: Project, incoming: Incoming) -> File:
            with session.begin():
                return service.receive(
                    session,
                    storage,
                    caller,
                    incoming,
                    filename=form.filename,
                    purpose=form.purpose,
                    expires_after=form.expires_after,
                )

        return FileRead.of(await run_in_threadpool(enter, caller, incoming))


@router.get("")
def list_files(
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(10_000, 10_000) = 10_000,  # type: ignore[valid-type]  # an Annotated made by a function
    order: Order = "desc",
    purpose: Annotated[str | None, Query(description="Files that were uploaded for this.")] = None,
    sha256: Annotated[str | None, Query(max_length=64, description="Files with these bytes.")] = None,
) -> ListRead[FileRead]:
    """List files, newest first."""
    with session.begin():
        page = service.files(
            session,
            caller,
            purpose=purpose,
            sha256=sha256,
            after=after,
            limit=limit,
            oldest_first=order == "asc",
        )
        return list_of(page, [FileRead.of(file) for file in page.rows])


@router.get("/{file_id}")
def get_file(file_id: FileId, caller: CallerDep, session: SessionDep) -> FileRead:
    """Retrieve a file's description."""
    with session.begin():
        return FileRead.of(service.get(session, caller, file_id))


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses=content_of("application/octet-stream", format="binary"),
)
def get_file_content(file_id: FileId, caller: CallerDep, session: SessionDep) -> StreamingResponse:
    """Stream a file's bytes."""
    with session.begin():
        file = service.get(session, caller, file_id)
    return StreamingResponse(
        get_storage().read(file.sha256, size=file.bytes),
        media_type="application/octet-stream",
        headers={"content-length": str(file.bytes)},
    )


@router.delete("/{file_id}")
def delete_file(file_id: FileId, caller: CallerDep, session: SessionDep) -> FileDeleted:
    """Delete a file; a job that uses it keeps its bytes until the job has ended."""
    with session.begin():
        service.delete(session, caller, file_id)
    return FileDeleted(id=file_id)
