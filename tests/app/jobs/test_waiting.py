"""Why a job waits, where it stands, and when it may start: what the API says of it."""

import random
import time
from datetime import timedelta
from typing import Any

import openai.types.fine_tuning as stock
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, authenticate, create_key
from app.jobs import lifecycle, waiting
from app.jobs.models import Job
from app.work import service as work_service
from app.work.lifecycle import Who
from app.work.models import Work
from tests.conftest import SetSettings
from tests.factories import WHO, make_job, make_queued_job, take

JOBS = "/v1/fine_tuning/jobs"
ERROR = {"code": "worker_lost", "message": "The trainer was killed.", "param": None}


def workers(session: Session, **slots: int) -> None:
    """Have so many slots of each class be up: `cpu=2`."""
    with session.begin():
        for queue, count in slots.items():
            for number in range(count):
                who = Who(f"here:{queue}:{number}", "here", WHO.device)
                work_service.hear(session, who, queue=queue.replace("_", "-"), pid=number)


def queue_of(client: TestClient, job_id: str) -> dict[str, Any]:
    """As the job says, which the list says too."""
    job = client.get(f"{JOBS}/{job_id}").json()
    assert stock.FineTuningJob.construct(**job).id == job_id
    listed = {one["id"]: one for one in client.get(JOBS, params={"limit": 100}).json()["data"]}
    seconds_later = {"starts_at_estimate": job["queue"]["starts_at_estimate"]}
    assert listed[job_id]["queue"] | seconds_later == job["queue"]
    found: dict[str, Any] = job["queue"]
    return found


def expect(session: Session, job: Job, low: float, high: float) -> None:
    """Have a plan say how long its training takes."""
    session.execute(
        update(Work).where(Work.subject == job.id, Work.kind == "train").values(seconds_low=low, seconds_high=high)
    )


def test_a_new_job_waits_for_its_files_to_be_prepared(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        first, second = make_job(session, project).id, make_job(session, project).id
    queue = queue_of(client, second)
    assert (queue["name"], queue["waiting_for"], queue["position"]) == ("cpu", "worker", 2)
    assert queue["message"] == "Its files are to be prepared: no worker of its class, prepare, is up. None is up."

    workers(session, prepare=1)
    queue = queue_of(client, second)
    assert (queue["waiting_for"], queue["position"], queue["starts_at_estimate"]) == ("files", 2, None)
    assert "1 is ahead of it" in queue["message"]

    with session.begin():
        take(session, "prepare")
    queue = queue_of(client, first)
    assert (queue["waiting_for"], queue["position"]) == ("files", None)
    assert queue["message"] == "Its files are being prepared."


def test_a_job_whose_class_has_no_worker_says_which_classes_have(
    client: TestClient, session: Session, project: Project
) -> None:
    workers(session, gpu_24=2, prepare=1)
    with session.begin():
        job = make_queued_job(session, project)
    queue = queue_of(client, job.id)
    assert (queue["waiting_for"], queue["position"]) == ("worker", 1)
    assert queue["message"] == "No worker of its class, cpu, is up. Up are: gpu-24 (2)."
    assert (queue["starts_at_estimate"], queue["no_estimate_because"]) == (None, "No worker of its class is up.")


def test_slots_whose_devices_are_not_free_do_not_count(client: TestClient, session: Session, project: Project) -> None:
    workers(session, cpu=2)
    with session.begin():
        job = make_queued_job(session, project)

    def block(number: int) -> dict[str, Any]:
        with session.begin():
            who = Who(f"here:cpu:{number}", "here", WHO.device)
            work_service.hear(session, who, queue="cpu", pid=1, usage={"blocked": f"Others hold {number}."})
        return queue_of(client, job.id)

    queue = block(1)
    assert (queue["waiting_for"], queue["message"]) == (
        "turn",
        "It is next, and a slot is free: a worker is about to take it.",
    )
    queue = block(0)
    assert (queue["waiting_for"], queue["position"]) == ("worker", 1)
    assert queue["message"] == "No slot of cpu takes work just now. Others hold 0."
    assert queue["no_estimate_because"] == "A device of its class has to be free first."
    assert queue["starts_at_estimate"] is None


def test_a_job_that_is_next_says_whether_a_slot_is_free(client: TestClient, session: Session, project: Project) -> None:
    workers(session, cpu=1)
    with session.begin():
        running, job = make_queued_job(session, project), make_queued_job(session, project)
    queue = queue_of(client, running.id)
    assert (queue["waiting_for"], queue["position"]) == ("turn", 1)
    assert "a slot is free" in queue["message"]
    assert abs(queue["starts_at_estimate"]["earliest"] - time.time()) < 60

    with session.begin():
        take(session)
    nothing = dict.fromkeys(("position", "waiting_for", "message", "retry_at", "starts_at_estimate"))
    assert queue_of(client, running.id) == {"name": "cpu", **nothing, "no_estimate_because": None}
    assert queue_of(client, job.id)["message"] == "It is next; 1 of 1 slot of cpu are busy."


def test_a_paused_job_says_by_whom(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        job = lifecycle.pause(session, make_queued_job(session, project))
    queue = queue_of(client, job.id)
    assert (queue["waiting_for"], queue["position"]) == ("resume", None)
    assert queue["message"] == "Paused by its owner: resume it to go on."


def test_a_job_that_is_tried_again_says_when(client: TestClient, session: Session, project: Project) -> None:
    workers(session, cpu=1)
    with session.begin():
        job = make_queued_job(session, project)
        lifecycle.retry(session, take(session), ERROR, delay=timedelta(minutes=5))
        due = session.scalars(select(Work.available_at).where(Work.status == "queued")).one()
    queue = queue_of(client, job.id)
    assert (queue["waiting_for"], queue["position"]) == ("retry", None)
    assert 0 <= queue["retry_at"] - due.timestamp() < 1


def test_a_job_beyond_its_projects_limit_says_so(
    client: TestClient, session: Session, project: Project, set_settings: SetSettings
) -> None:
    workers(session, cpu=4)
    with session.begin():
        jobs = [make_queued_job(session, project) for _ in range(2)]
    set_settings(max_running_per_project=1)
    with session.begin():
        take(session)
        assert lifecycle.claim(session, "cpu", who=WHO, lease=timedelta(seconds=60)) is None
    queue = queue_of(client, jobs[1].id)
    assert (queue["waiting_for"], queue["position"]) == ("quota", 1)
    assert queue["message"] == "Its project has 1 in training already, and may have 1 at once."
    assert queue["no_estimate_because"] == "Another job of its project has to end first."


def test_a_forecast_adds_up_what_is_ahead(client: TestClient, session: Session, project: Project) -> None:
    workers(session, cpu=1)
    with session.begin():
        running, between, job = (make_queued_job(session, project) for _ in range(3))
        take(session)
        now = time.time()
        session.execute(update(Job).where(Job.id == running.id).values(progress={"estimated_finish": int(now) + 1000}))
    queue = queue_of(client, job.id)
    assert queue["position"] == 2
    assert queue["no_estimate_because"] == "Nobody knows yet how long 1 piece of work before it will take."

    with session.begin():
        expect(session, between, 500, 800)
    starts = queue_of(client, job.id)["starts_at_estimate"]
    assert abs(starts["earliest"] - now - 1500) < 60
    assert abs(starts["latest"] - now - 1800) < 60

    workers(session, cpu=2)
    starts = queue_of(client, job.id)["starts_at_estimate"]  # the one ahead takes the free slot
    assert abs(starts["earliest"] - now - 250) < 60
    assert abs(starts["latest"] - now - 900) < 60


@pytest.mark.parametrize("seed", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_positions_are_the_order_of_the_claims(session: Session, seed: int) -> None:
    """Of several projects, with some of their jobs running, served at different times, of all priorities."""
    drawn = random.Random(seed)  # noqa: S311  no secret
    with session.begin():
        projects = [authenticate(session, create_key(session, f"p{number}", "k")) for number in range(4)]
        queued = [make_queued_job(session, drawn.choice(projects)) for _ in range(drawn.randint(0, 8))]
    for _ in queued[: drawn.randint(0, len(queued))]:
        with session.begin():
            claim = take(session)
            if drawn.random() < 0.3:
                lifecycle.fail(session, claim, ERROR)
    with session.begin():
        for _ in range(drawn.randint(5, 25)):
            priority = drawn.choice(["high", "normal", "normal", "low"])
            make_queued_job(session, drawn.choice(projects), resources={"priority": priority})
        jobs = list(session.scalars(select(Job).where(Job.status == "queued")))
        waits = waiting.of_jobs(session, jobs)
    said = sorted((waits[job.id].position, job.id) for job in jobs)
    assert [position for position, _ in said] == list(range(1, len(jobs) + 1))
    order = []
    for _ in jobs:
        with session.begin():
            order.append(take(session).subject)
    assert [job_id for _, job_id in said] == order


def test_no_more_is_counted_than_is_told(client: TestClient, session: Session, project: Project) -> None:
    workers(session, cpu=1)
    with session.begin():
        first = make_queued_job(session, project)
        session.execute(
            text(
                "INSERT INTO work (kind, subject, project_id, queue, priority)"
                " SELECT 'train', 'ftjob-' || n, :project, 'cpu', 1 FROM generate_series(1, :count) n"
            ),
            {"project": project.id, "count": waiting.COUNTED + 5},
        )
        last = make_queued_job(session, project)
    assert queue_of(client, first.id)["position"] == 1
    queue = queue_of(client, last.id)
    assert (queue["waiting_for"], queue["position"]) == ("turn", None)
    assert queue["message"] == f"More than {waiting.COUNTED} are ahead of it."
    assert queue["no_estimate_because"] == queue["message"]
