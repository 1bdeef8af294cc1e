"""/v1/fine_tuning/jobs"""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from sqlalchemy.orm import Session

from app import queue
from app.errors import InvalidRequest
from app.failpoints import failpoint
from app.http import (
    CONDITIONAL,
    After,
    BearerDep,
    CallerDep,
    ListRead,
    Order,
    ReadsDep,
    SessionDep,
    answer,
    conditional,
    limit_query,
    list_of,
)
from app.jobs import lifecycle, metrics, service, waiting
from app.jobs.models import Job
from app.jobs.schemas import AttemptList, AttemptRead, CheckpointRead, EventRead, JobRead, MetricsRead
from app.jobs.service import Filter, Repeat
from app.jobs.spec import JobRequest
from app.jobs.status import JobStatus
from app.jobs.waiting import Wait
from app.monitoring import traces
from app.work import service as work_service

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning jobs"])

JobId = Annotated[str, Path(description="Id of a job.")]

_LIST = CONDITIONAL | {
    "parameters": [
        *CONDITIONAL["parameters"],
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "description": "`metadata[key]=value`, any number of times; `metadata=null` for jobs without metadata.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    ],
}


async def _repeat(
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Requests with the same key make one job.")
    ] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Repeat:
    return Repeat(idempotency_key, is_retry=(x_stainless_retry_count or "0") != "0")


async def _filter(
    request: Request,
    status: Annotated[list[JobStatus] | None, Query(description="Any of these.")] = None,
    model: Annotated[str | None, Query(description="The spec's `model`.")] = None,
    method: Annotated[str | None, Query(description="`supervised`, …")] = None,
    tuning: Annotated[str | None, Query(description="`full`, `lora` or `qlora`.")] = None,
    created_after: Annotated[int | None, Query(ge=0, le=2**33, description="Unix seconds.")] = None,
    q: Annotated[str | None, Query(max_length=200, description="Part of an id, a name, a metadata value.")] = None,
) -> Filter:
    """The query's, whose metadata FastAPI has no type for: `metadata[key]=value`."""
    pairs: dict[str, str] | None = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            pairs = None
        elif name.startswith("metadata[") and name.endswith("]") and pairs is not None:
            pairs[name[len("metadata[") : -1]] = value
        elif name == "metadata":
            raise InvalidRequest("Send metadata[key]=value, or metadata=null for jobs without any.", param="metadata")
    return Filter(pairs, status or (), model, method, tuning, created_after, q)


def _read(session: Session, job: Job) -> JobRead:
    return JobRead.of(job, waiting.of_jobs(session, [job]).get(job.id, Wait()))


@router.post("", response_model=JobRead)
def create_job(
    request: JobRequest,
    caller: CallerDep,
    session: SessionDep,
    repeat: Annotated[Repeat, Depends(_repeat)],
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Queue a fine-tuning job; a request that a client repeats because the answer was lost makes no second one."""
    began = time.perf_counter()
    with session.begin():
        job = service.submit(session, caller, request, repeat)
        failpoint("before_commit")
    failpoint("after_commit_before_ring")
    queue.ring(queue.PREPARE, give=0.003)  # a doorbell: hands to a thread, waits for no broker, may be lost
    seconds = time.perf_counter() - began
    traces.submitted(job.id, begin=job.created_at.timestamp(), seconds=seconds, caller=traceparent)
    with session.begin():
        return answer(_read(session, job))


@router.get("", response_model=ListRead[JobRead], openapi_extra=_LIST)
def list_jobs(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    wanted: Annotated[Filter, Depends(_filter)],
    after: After = None,
    limit: limit_query(20, 100) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
    order: Order = "desc",
) -> Response:
    """List jobs, newest first. With `If-None-Match` the answer is 304 as long as nothing in it has changed."""
    with session.begin():
        page = service.jobs(session, caller, wanted, after=after, limit=limit, oldest_first=order == "asc")
        waits = waiting.of_jobs(session, page.rows)
    read = [JobRead.of(job, waits.get(job.id, Wait()), with_log=False) for job in page.rows]
    return conditional(request, list_of(page, read))


@router.get("/{job_id}", response_model=JobRead, openapi_extra=CONDITIONAL)
async def get_job(request: Request, job_id: JobId, reads: ReadsDep, bearer: BearerDep) -> Response:
    """Retrieve a job. With `If-None-Match` the answer is 304 as long as nothing in it has changed."""
    job = await service.poll(reads, bearer.credentials if bearer else "", job_id)
    return conditional(request, JobRead.of(job, await waiting.of_job(reads, job)))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: JobId, caller: CallerDep, session: SessionDep) -> JobRead:
    """Cancel a job: at once where it waits, with its current step where it runs (`desired` says so until then)."""
    with session.begin():
        return _read(session, lifecycle.cancel(session, service.get(session, caller, job_id)))


@router.post("/{job_id}/pause")
def pause_job(job_id: JobId, caller: CallerDep, session: SessionDep) -> JobRead:
    """Set a job aside: at once where it waits, with a checkpoint of its current step where it runs."""
    with session.begin():
        return _read(session, lifecycle.pause(session, service.get(session, caller, job_id)))


@router.post("/{job_id}/resume")
def resume_job(job_id: JobId, caller: CallerDep, session: SessionDep) -> JobRead:
    """Queue a paused job again; it goes on from its last checkpoint."""
    with session.begin():
        job = lifecycle.resume(session, service.get(session, caller, job_id))
        read = _read(session, job)
    queue.ring(job.queue)
    return read


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: JobId,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(10, 100) = 10,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[CheckpointRead]:
    """List the models from the middle of a job, newest first; each can be downloaded, and be the `model` of a job."""
    with session.begin():
        job = service.get(session, caller, job_id)
        page = service.checkpoints(session, job, after=after, limit=limit)
        labels = service.labels(session, job)
        return list_of(
            page, [CheckpointRead.of(checkpoint, labels.get(checkpoint.step, [])) for checkpoint in page.rows]
        )


@router.get("/{job_id}/events")
def list_events(
    job_id: JobId,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 1000) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[EventRead]:
    """List what happened to a job, newest first."""
    with session.begin():
        page = service.history(session, service.get(session, caller, job_id), after=after, limit=limit)
        return list_of(page, [EventRead.of(event) for event in page.rows])


@router.get("/{job_id}/metrics", response_model=MetricsRead, openapi_extra=CONDITIONAL)
def get_metrics(
    request: Request,
    job_id: JobId,
    caller: CallerDep,
    session: SessionDep,
    points: Annotated[int, Query(ge=10, le=100_000, description="At most so many entries, evenly thinned.")] = 1000,
    after_step: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only later steps: what is new.")] = 0,
) -> Response:
    """Retrieve a job's series, step by step: losses, rate, gradient norm, speed, memory."""
    with session.begin():
        job = service.get(session, caller, job_id)
        series = metrics.series(session, job.id, after_step=after_step, most=points)
    return conditional(request, MetricsRead.of(job, series.entries, steps=series.steps))


@router.get("/{job_id}/attempts")
def list_attempts(job_id: JobId, caller: CallerDep, session: SessionDep) -> AttemptList:
    """List the tries at a job, preparing and training, oldest first."""
    with session.begin():
        job = service.get(session, caller, job_id)
        return AttemptList(data=[AttemptRead.of(*both) for both in work_service.attempts(session, job.id)])
