"""/v1/fine_tuning/jobs"""

from fastapi import APIRouter

from app import queue
from app.http import After, CallerDep, ListRead, SessionDep, limit_query, list_of
from app.jobs import lifecycle, service
from app.jobs.schemas import AttemptList, AttemptRead, EventRead, JobRead
from app.jobs.spec import JobSpec
from app.work import service as work_service

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning jobs"])


@router.post("")
def create_job(spec: JobSpec, caller: CallerDep, session: SessionDep) -> JobRead:
    """Queue a fine-tuning job."""
    with session.begin():
        job = service.submit(session, caller, spec)
        session.refresh(job)
        answer = JobRead.of(job)
    queue.ring(queue.PREPARE)  # a doorbell: hands to a thread, never waits, may be lost
    return answer


@router.get("")
def list_jobs(
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 100) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[JobRead]:
    """List jobs, newest first."""
    with session.begin():
        page = service.jobs(session, caller, after=after, limit=limit)
        return list_of(page, [JobRead.of(job) for job in page.rows])


@router.get("/{job_id}")
def get_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobRead:
    """Retrieve a job."""
    with session.begin():
        return JobRead.of(service.get(session, caller, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobRead:
    """Cancel a job: at once where it waits, with its current step where it runs (`desired` says so until then)."""
    with session.begin():
        return JobRead.of(lifecycle.cancel(session, service.get(session, caller, job_id)))


@router.get("/{job_id}/events")
def list_events(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    after: After = None,
    limit: limit_query(20, 1000) = 20,  # type: ignore[valid-type]  # an Annotated made by a function
) -> ListRead[EventRead]:
    """List what happened to a job, newest first."""
    with session.begin():
        page = service.history(session, service.get(session, caller, job_id), after=after, limit=limit)
        return list_of(page, [EventRead.of(event) for event in page.rows])


@router.get("/{job_id}/attempts")
def list_attempts(job_id: str, caller: CallerDep, session: SessionDep) -> AttemptList:
    """List the tries at a job, preparing and training, oldest first."""
    with session.begin():
        job = service.get(session, caller, job_id)
        return AttemptList(data=[AttemptRead.of(*both) for both in work_service.attempts(session, job.id)])
