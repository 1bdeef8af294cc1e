"""/v1/workers"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.http import CallerDep, SessionDep
from app.work import service

router = APIRouter(prefix="/v1", tags=["operation"])


class WorkerRead(BaseModel):
    """A slot: where it is, what it has, what it does."""

    id: str
    object: Literal["worker"] = "worker"
    host: str
    pid: int
    queue: str
    device: dict[str, Any]
    busy_with: str | None
    """Id of the job it is at."""
    started_at: int
    heard_at: int
    alive: bool
    """Heard within the last 30 s."""
    blocked: str | None
    """Why it takes no work just now: others hold its GPU's memory, or a trainer of before still runs."""


class WorkerList(BaseModel):
    """All workers known."""

    object: Literal["list"] = "list"
    data: list[WorkerRead]
    has_more: Literal[False] = False


@router.get("/workers")
def list_workers(caller: CallerDep, session: SessionDep) -> WorkerList:  # noqa: ARG001  a key is needed all the same
    """List who prepares and trains."""
    with session.begin():
        rows = service.workers(session)
    return WorkerList(
        data=[
            WorkerRead(
                id=worker.id,
                host=worker.host,
                pid=worker.pid,
                queue=worker.queue,
                device=worker.device,
                busy_with=work.subject if work else None,
                started_at=int(worker.started_at.timestamp()),
                heard_at=int(worker.heard_at.timestamp()),
                alive=alive,
                blocked=worker.usage.get("blocked") if alive else None,
            )
            for worker, work, alive in rows
        ]
    )
