"""/v1/files"""

import json
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app import queue
from app.auth import Project
from app.errors import InvalidRequest, TooLarge
from app.files import body, service
from app.files.judging import Judging
from app.files.models import File
from app.files.schemas import FileDeleted, FileRead, FileSource
from app.http import After, CallerDep, ListRead, Order, SessionDep, content_of, limit_query, list_of
from app.settings import get_settings
from app.storage import Incoming, get_storage

router = APIRouter(prefix="/v1/files", tags=["files"])

FileId = Annotated[str, Path(description="Id of a file.")]

MOST_ANNOUNCED = 16 * 1024
"""Bytes of a JSON body."""

_SOURCE = FileSource.model_json_schema(ref_template="#/components/schemas/{model}")
_SOURCE.pop("$defs")  # what it refers to is among the components already

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _SOURCE,
                "example": {"source": "hf://datasets/openai/gsm8k/main/train.parquet", "purpose": "fine-tune"},
            },
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
            },
        },
    }
}


@router.post("", openapi_extra=_UPLOAD)
async def upload_file(request: Request, caller: CallerDep, session: SessionDep) -> FileRead:
    """Upload a file, whose rows are checked before the answer; or, as JSON, name a `source` that the server fetches.

    A fine-tune file is JSON lines, a JSON array, CSV or Parquet, each plain or gzip. One that is fetched is `uploaded`
    until it has arrived.
    """
    if request.headers.get("content-type", "").startswith("application/json"):
        return await _announce(request, caller, session)
    storage = get_storage()
    with storage.incoming() as incoming, Judging(incoming.path) as judging:
        form = await body.receive(
            request.stream(),
            content_type=request.headers.get("content-type", ""),
            incoming=incoming,
            max_bytes=get_settings().max_file_bytes,
            begins=lambda purpose: judging.begin() if purpose in (None, service.FINE_TUNE) else None,
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
                    judging=judging,
                )

        return FileRead.of(await run_in_threadpool(enter, caller, incoming))


async def _announce(request: Request, caller: Project, session: Session) -> FileRead:
    """`UPLOADS` bound themselves, so this body does too. Raises `InvalidRequest`, `RequestValidationError`."""
    text = b""
    async for chunk in request.stream():
        text += chunk
        if len(text) > MOST_ANNOUNCED:
            raise TooLarge(f"A JSON body here has at most {MOST_ANNOUNCED} bytes.")
    try:
        body = json.loads(text)
        if isinstance(body, dict) and "source" not in body:
            raise InvalidRequest(
                "Send the file as multipart/form-data with 'purpose' and 'file', or as JSON the 'source' to fetch it"
                " from.",
                param="file",
            )
        asked = FileSource.model_validate(body)
    except ValidationError as error:
        located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(located, body=body) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not JSON.", code="invalid_json") from error

    def enter() -> FileRead:
        with session.begin():
            seconds = asked.expires_after.seconds if asked.expires_after else None
            file = service.announce(session, caller, asked.source, purpose=asked.purpose, expires_after=seconds)
            return FileRead.of(file)

    file = await run_in_threadpool(enter)
    queue.ring(queue.PREPARE)
    return file


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
        service.require_arrived(file)
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
