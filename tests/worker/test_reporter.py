"""What a trainer says, on its way into the job's history."""

from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs.models import Job, JobEvent
from app.work.lifecycle import Claim
from tests.factories import make_queued_job, take
from worker import messages
from worker.reporter import Reporter

STEP_2_OF_10 = messages.Metrics(
    step=2,
    total_steps=10,
    epoch=0.2,
    loss=1.5,
    learning_rate=1e-4,
    grad_norm=0.5,
    tokens=80,
    tokens_per_second=20.0,
    seconds=4.0,
    memory_bytes=1024,
)


def _claimed(session: Session, project: Project) -> Claim:
    with session.begin():
        make_queued_job(session, project)
        return take(session)


def test_a_running_job_says_when_it_will_be_done(session: Session, project: Project, client: TestClient) -> None:
    claim = _claimed(session, project)
    with session.begin():
        now = session.scalars(select(func.now())).one().timestamp()

    with Reporter(claim) as reporter:
        reporter.hear(messages.Phase(phase="training", total_steps=10))
        reporter.hear(STEP_2_OF_10)

    job = client.get(f"/v1/fine_tuning/jobs/{claim.subject}").json()
    assert 15 <= job["estimated_finish"] - now <= 20  # eight steps at two seconds each
    assert job["progress"] == {
        "phase": "training",
        "step": 2,
        "total_steps": 10,
        "epoch": 0.2,
        "tokens": 80,
        "tokens_per_second": 20.0,
        "loss": 1.5,
        "memory_bytes": 1024,
        "estimated_finish": job["estimated_finish"],
    }


def test_a_step_is_an_event_with_openais_names(session: Session, project: Project, client: TestClient) -> None:
    claim = _claimed(session, project)

    with Reporter(claim) as reporter:
        reporter.hear(STEP_2_OF_10)

    event = client.get(f"/v1/fine_tuning/jobs/{claim.subject}/events").json()["data"][0]
    assert (event["type"], event["message"]) == ("metrics", "Step 2/10: training loss=1.5000")
    assert event["data"]["train_loss"] == 1.5


def test_what_the_longest_batch_took_is_shown_beside_the_plan_and_the_numbers_are_those_in_use(
    session: Session, project: Project, client: TestClient
) -> None:
    claim = _claimed(session, project)
    before = client.get(f"/v1/fine_tuning/jobs/{claim.subject}").json()
    assert before["probe"] is None
    asked = before["method"]["supervised"]["hyperparameters"]
    rows, accumulation = asked["per_device_train_batch_size"], asked["gradient_accumulation_steps"]

    with Reporter(claim) as reporter:
        reporter.hear(messages.Shrunk(rows // 2, accumulation * 2))
        reporter.hear(messages.Probed(memory_bytes=3 * 1024**3, seconds=1.25))

    job = client.get(f"/v1/fine_tuning/jobs/{claim.subject}").json()
    assert job["probe"] == {
        "memory_bytes": 3 * 1024**3,
        "memory_gib": 3.0,
        "seconds": 1.25,
        "per_device_train_batch_size": rows // 2,
    }
    shrunk = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": accumulation * 2}
    assert job["method"]["supervised"]["hyperparameters"] == asked | shrunk
    event = client.get(f"/v1/fine_tuning/jobs/{claim.subject}/events").json()["data"][0]
    assert event["message"] == "Probed: the longest batch fits, with 3.00 GiB at its peak (1.2 s)"
    session.expire_all()
    with session.begin():  # the next attempt goes on with them
        assert session.get_one(Job, claim.subject).current_spec.hyperparameters.gradient_accumulation_steps == (
            accumulation * 2
        )


def test_who_has_lost_the_claim_reports_nothing(session: Session, project: Project) -> None:
    claim = _claimed(session, project)
    with session.begin():
        before = session.scalar(select(func.count(JobEvent.id)))

    with Reporter(replace(claim, attempt=claim.attempt + 1)) as reporter:
        reporter.hear(STEP_2_OF_10)

    with session.begin():
        assert session.scalar(select(func.count(JobEvent.id))) == before
