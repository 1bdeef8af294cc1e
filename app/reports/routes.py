"""/v1/files/{id}/report and /v1/files/{id}/preview"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from app import queue
from app.files.routes import FileId
from app.http import CallerDep, SessionDep, answer, content_of
from app.reports import service
from app.reports.models import FileReport
from app.reports.schemas import Asked, Pending, PreviewAsked, PreviewRead, ReportRead
from app.storage import get_storage

router = APIRouter(prefix="/v1/files", tags=["files"])

RETRY_AFTER = 1
"""Seconds; a report on some thousand rows takes about as long."""


def _later_as(kind: str) -> dict[int | str, dict[str, Any]]:
    """How an answer that is still being made is described, for a route's `responses`."""
    pending = {"object": kind, "id": "filerep-4f1c", "file_id": "file-9a02", "status": "in_progress"}
    return {
        202: {
            "model": Pending,
            "description": "It is being made.",
            "headers": {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}},
            "content": {"application/json": {"example": pending}},
        }
    }


@router.get("/{file_id}/report", response_model=ReportRead, responses=_later_as("file.report"))
def get_file_report(
    file_id: FileId, asked: Annotated[Asked, Query()], caller: CallerDep, session: SessionDep
) -> Response:
    """Report on every row of a file as a job with these settings would train on it: what fits, what does not, by line.

    202 with `retry-after` while it is being made.
    """
    with session.begin():
        made = service.report(session, caller, file_id, asked.data, validation_file=asked.validation_file)
        if made.finished_at is not None:
            return answer(ReportRead.of(made, *service.answer_of(session, made)))
    return _later(made)


@router.get(
    "/{file_id}/report/findings",
    response_class=StreamingResponse,
    responses=_later_as("file.report") | content_of("application/jsonl", format="binary"),
)
def get_file_findings(
    file_id: FileId, asked: Annotated[Asked, Query()], caller: CallerDep, session: SessionDep
) -> Response:
    """Download every finding of a report, one JSON object a line; 202 while it is being made."""
    with session.begin():
        made = service.report(session, caller, file_id, asked.data, validation_file=asked.validation_file)
        if made.finished_at is not None:
            _, findings = service.answer_of(session, made)
            return StreamingResponse(
                get_storage().read(findings.sha256, size=findings.bytes),
                media_type="application/jsonl",
                headers={"content-length": str(findings.bytes)},
            )
    return _later(made)


@router.post("/{file_id}/preview", response_model=PreviewRead, responses=_later_as("file.preview"))
def preview_file(file_id: FileId, asked: PreviewAsked, caller: CallerDep, session: SessionDep) -> Response:
    """Show some rows as they are trained on: the text, its tokens, and which of them the model learns to say.

    202 with `retry-after` while it is being made.
    """
    with session.begin():
        report = service.report(session, caller, file_id, asked.data, validation_file=asked.validation_file)
        if report.finished_at is not None:
            service.require_made(report.error)
            made = service.preview(session, report, asked=asked.wanted)
            if made.finished_at is not None:
                service.require_made(made.error)
                return answer(PreviewRead.of(made, report))
    return _later(report, Pending(object="file.preview", id=report.id, file_id=report.file_id))


def _later(made: FileReport, body: BaseModel | None = None) -> Response:
    queue.ring(queue.PREPARE)
    pending = body or Pending(object="file.report", id=made.id, file_id=made.file_id)
    response = answer(pending)
    response.status_code = 202
    response.headers["retry-after"] = str(RETRY_AFTER)
    return response
