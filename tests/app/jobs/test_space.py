"""Jobs without room: set aside, not counted, and going on once there is some."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import lifecycle, space
from app.jobs.models import Job, JobEvent
from app.jobs.space import Lack
from app.work import service as work_service
from app.work.lifecycle import Claim, Who
from app.work.models import Work, Worker
from tests.conftest import SetSettings
from tests.factories import WHO, make_job, make_queued_job, take
from worker import moves
from worker.sweeper import sweep

GB = 10**9
OF_SCRATCH = Lack("scratch", "here", free_bytes=1 * GB, needed_bytes=5 * GB)
OF_STORAGE = Lack("storage", "here", free_bytes=1 * GB, needed_bytes=5 * GB)
DELAY = timedelta(minutes=10)


def run_out(session: Session, lack: Lack = OF_SCRATCH) -> None:
    with session.begin():
        lifecycle.run_out(session, take(session), lack, delay=DELAY)


def hear(session: Session, name: str = "here", queue: str = "cpu", /, **usage: float) -> None:
    """A heartbeat: `scratch_free_bytes=…`."""
    with session.begin():
        work_service.hear(session, Who(name, name, WHO.device), queue=queue, pid=1, usage=usage)


def swept(session: Session) -> list[str]:
    with session.begin():
        return sweep(session, take_back=False)


def status(session: Session) -> tuple[str, str | None]:
    with session.begin():
        job = session.execute(select(Job.status, Job.paused_by)).one()
    return job.status, job.paused_by


def told(session: Session) -> Sequence[str]:
    with session.begin():
        return session.scalars(select(JobEvent.message).order_by(JobEvent.seq)).all()


@pytest.fixture
def job(session: Session, project: Project) -> Job:
    with session.begin():
        return make_queued_job(session, project)


@pytest.mark.fault(21)
def test_an_attempt_without_room_pauses_its_job_and_is_not_counted(
    session: Session, client: TestClient, job: Job
) -> None:
    run_out(session)

    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert (shown["status"], shown["paused_by"], shown["error"]) == ("paused", "no_space", None)
    assert shown["queue"]["waiting_for"] == "no_space"
    room = "There is no room: the disk of the worker on here has 1.0 GB free, and 5.0 GB are needed"
    assert shown["queue"]["message"] == f"{room}. It goes on by itself once there is room."
    assert told(session)[-2:] == [
        f"{room}. What was saved is kept",
        "The job was paused; it goes on by itself once there is room",
    ]
    with session.begin():
        work = session.scalars(select(Work).where(Work.kind == "train")).one()
        assert (work.status, work.failed_attempts, work.attempt) == ("paused", 0, 1)
    (attempt,) = client.get(f"/v1/fine_tuning/jobs/{job.id}/attempts").json()["data"][-1:]
    assert attempt["outcome"] == "no_space"


@pytest.mark.parametrize(
    ("lack", "usage"),
    [
        pytest.param(OF_SCRATCH, "scratch_free_bytes", id="scratch"),
        pytest.param(OF_STORAGE, "storage_free_bytes", id="storage"),
    ],
)
def test_a_job_goes_on_once_a_worker_of_its_class_has_the_room(
    session: Session, job: Job, lack: Lack, usage: str
) -> None:
    hear(session, **{usage: 9 * GB})  # before it was paused
    run_out(session, lack)
    assert swept(session) == []
    hear(session, **{usage: 5 * GB - 1})
    hear(session, "elsewhere", "gpu-24", **{usage: 9 * GB})
    assert swept(session) == []
    assert status(session) == ("paused", "no_space")

    hear(session, **{usage: 5 * GB})
    with session.begin():
        session.execute(update(Worker).values(heard_at=func.now() + timedelta(minutes=-1)))
    assert swept(session) == []
    hear(session, **{usage: 5 * GB})
    assert swept(session) == ["cpu"]
    assert status(session) == ("queued", None)
    assert told(session)[-1] == "There is room again: the job goes on"


def test_a_worker_without_the_room_passes_over_a_job_that_ran_out_of_it(
    session: Session, client: TestClient, project: Project, job: Job
) -> None:
    run_out(session)
    hear(session, "roomy", scratch_free_bytes=6 * GB)
    swept(session)
    with session.begin():
        smaller = make_queued_job(session, project)
    hear(session, "roomy", scratch_free_bytes=2 * GB)
    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()["queue"]
    assert shown["waiting_for"] == "no_space"
    assert shown["message"] == "It needs 5.0 GB of a worker's disk, and the roomiest of cpu has 2.0 GB free."

    def claimed(free: int) -> Claim | None:
        with session.begin():
            return lifecycle.claim(session, "cpu", who=WHO, lease=timedelta(minutes=1), free=free)

    taken = [claimed(2 * GB), claimed(2 * GB), claimed(5 * GB)]
    assert [claim and claim.subject for claim in taken] == [smaller.id, None, job.id]
    with session.begin():
        assert taken[2] is not None
        moves.requeue(session, taken[2])
    again = claimed(0)  # handed back for another reason, which asks for no room
    assert again is not None
    assert again.subject == job.id


def test_its_owner_may_try_at_once_or_have_it_stay(session: Session, job: Job) -> None:
    run_out(session)
    with session.begin():
        lifecycle.resume(session, job)
    assert status(session) == ("queued", None)
    with session.begin():
        claim = lifecycle.claim(session, "cpu", who=WHO, lease=timedelta(minutes=1), free=0)
        assert claim is not None
        lifecycle.run_out(session, claim, OF_SCRATCH, delay=DELAY)
    with session.begin():
        lifecycle.pause(session, job)
    assert status(session) == ("paused", "user")
    hear(session, scratch_free_bytes=9 * GB)
    assert swept(session) == []
    assert status(session) == ("paused", "user")


def test_wishes_outrank_the_want_of_space(session: Session, project: Project, job: Job) -> None:
    with session.begin():
        claim = take(session)
        lifecycle.pause(session, job)
        lifecycle.run_out(session, claim, OF_SCRATCH, delay=DELAY)
    assert status(session) == ("paused", "user")
    with session.begin():
        lifecycle.resume(session, job)
        claim = take(session)
        lifecycle.cancel(session, job)
        lifecycle.run_out(session, claim, OF_SCRATCH, delay=DELAY)
    assert status(session) == ("cancelled", None)


def test_a_preparation_without_room_is_tried_later_and_not_counted(session: Session, project: Project) -> None:
    with session.begin():
        make_job(session, project)
        lifecycle.run_out(session, take(session, "prepare"), OF_STORAGE, delay=DELAY)
    assert status(session) == ("validating_files", None)
    with session.begin():
        waits = select(Work.failed_attempts, Work.available_at > func.now() + timedelta(minutes=9))
        assert session.execute(waits).one() == (0, True)


def test_a_job_larger_than_every_disk_of_its_class_is_warned_of(
    session: Session, project: Project, set_settings: SetSettings
) -> None:
    def codes(**sizes: int) -> list[Any]:
        with session.begin():
            return [found.code for found in space.forecast(session, "cpu", **sizes)]

    hear(session, "old")  # a version that does not report it
    assert codes(worker=9 * GB, storage=9 * GB) == []
    hear(session, "here", scratch_free_bytes=3 * GB, storage_free_bytes=4 * GB)
    hear(session, "there", scratch_free_bytes=5 * GB, storage_free_bytes=4 * GB)
    hear(session, "gpu", "gpu-24", scratch_free_bytes=99 * GB)
    assert codes(worker=5 * GB, storage=4 * GB) == []
    assert codes(worker=5 * GB + 1, storage=4 * GB + 1) == ["no_room_on_worker", "no_room_in_storage"]
    set_settings(storage_url="s3://bucket")
    assert codes(worker=5 * GB, storage=9 * GB) == []
