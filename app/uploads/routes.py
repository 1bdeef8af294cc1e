"""/v1/uploads"""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth import Project
from app.files import body
from app.http import CallerDep, SessionDep
from app.storage import Incoming, get_storage
from app.uploads import service
from app.uploads.schemas import UploadComplete, UploadCreate, UploadPartRead, UploadRead

router = APIRouter(prefix="/v1/uploads", tags=["files"])

UploadId = Annotated[str, Path(description="Id of an upload.")]

_PART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("")
def create_upload(given: UploadCreate, caller: CallerDep, session: SessionDep) -> UploadRead:
    """Announce a file that comes in parts; an hour later it expires, with what has come."""
    with session.begin():
        upload = service.create(
            session,
            caller,
            filename=given.filename,
            purpose=given.purpose,
            size=given.bytes,
            mime_type=given.mime_type,
            expires_after=given.expires_after.seconds if given.expires_after else None,
        )
    return UploadRead.of(upload, None)


@router.post("/{upload_id}/parts", openapi_extra=_PART)
async def add_upload_part(
    request: Request, upload_id: UploadId, caller: CallerDep, session: SessionDep
) -> UploadPartRead:
    """Send a part of at most 64 MiB; parts may come side by side and in any order."""
    storage = get_storage()
    await run_in_threadpool(_require, session, caller, upload_id)
    with storage.incoming() as incoming:
        await body.receive_part(
            request.stream(),
            content_type=request.headers.get("content-type", ""),
            incoming=incoming,
            max_bytes=service.MAX_PART_BYTES,
        )

        def enter(caller: Project, incoming: Incoming) -> UploadPartRead:
            with session.begin():
                return UploadPartRead.of(service.add_part(session, storage, caller, upload_id, incoming))

        return await run_in_threadpool(enter, caller, incoming)


def _require(session: Session, caller: Project, upload_id: str) -> None:
    """Before 64 MiB come for an upload that does not exist."""
    with session.begin():
        service.get(session, caller, upload_id)


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: UploadId, given: UploadComplete, caller: CallerDep, session: SessionDep) -> UploadRead:
    """Put the parts together; a fine-tune file's rows are checked before the answer."""
    with session.begin():
        done = service.complete(session, get_storage(), caller, upload_id, given.part_ids, given.md5)
        return UploadRead.of(*done)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: UploadId, caller: CallerDep, session: SessionDep) -> UploadRead:
    """Take no more parts."""
    with session.begin():
        return UploadRead.of(service.cancel(session, caller, upload_id), None)
