"""What Prometheus reads: the right numbers, for the right reader, whatever the database does."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app import queue
from app.auth import Project, create_key
from app.db import get_engine
from app.jobs import lifecycle
from app.main import create_app
from app.monitoring.figures import Figures
from app.work import service as work_service
from app.work.lifecycle import Claim
from app.work.models import Attempt, Work
from tests import factories
from tests.conftest import SetSettings
from tests.factories import WHO
from tests.running import wait_for
from worker import sweeper

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: TestClient) -> Samples:
    """By name and labels, as a Prometheus parses them, of now."""
    client.app.state.figures = Figures(kept=0)  # type: ignore[attr-defined]  # Starlette's
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def retry(session: Session, claim: Claim, outcome: str = "failed") -> None:
    work_service.note_phases(session, claim, {"loading": 2.0})
    error = {"code": "worker_lost", "message": "gone", "param": None}
    lifecycle.retry(session, claim, error, delay=timedelta(0), outcome=outcome)


def test_queues_and_workers_are_shown_with_age_and_use(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        work_service.hear(session, WHO, queue="cpu", pid=1, usage={"memory_used_bytes": 7, "memory_bytes": 9})
        for priority in ("normal", "normal", "high"):
            factories.make_queued_job(session, project, resources={"priority": priority})
        factories.take(session)
        session.execute(update(Work).where(Work.priority == 1).values(available_at=text("now() - interval '90 s'")))
        factories.make_job(session, project)

    found = scrape(client)

    assert of(found, "finetuned_database_up") == 1
    assert of(found, "finetuned_queue_depth", queue="cpu", priority="normal") == 2
    assert 90 <= of(found, "finetuned_queue_oldest_seconds", queue="cpu", priority="normal") < 300
    assert of(found, "finetuned_queue_depth", queue="cpu", priority="high") == 0  # the one that was taken
    assert of(found, "finetuned_queue_depth", queue="prepare", priority="normal") == 1
    assert of(found, "finetuned_running", queue="cpu", kind="train") == 1
    assert of(found, "finetuned_workers", queue="cpu", device="a processor") == 1
    assert of(found, "finetuned_device_memory_used_bytes", worker=WHO.worker_id, host="here", queue="cpu") == 7
    assert of(found, "finetuned_jobs", status="queued") == 2


def test_what_attempts_came_to_is_the_same_before_and_after_they_are_counted(
    client: TestClient, session: Session, project: Project
) -> None:
    with session.begin():
        factories.make_queued_job(session, project)
        retry(session, factories.take(session))
        retry(session, claim := factories.take(session), outcome="lease_expired")
        lifecycle.claim(session, "cpu", who=WHO, lease=timedelta(seconds=60))
        session.execute(update(Attempt).where(Attempt.number == 1).values(started_at=text("ended_at - interval '2 s'")))

    before = scrape(client)
    with session.begin():
        assert sweeper.sweep(session, take_back=False) == []
    after = scrape(client)

    of_attempts = {
        key: value for key, value in before.items() if key[0].startswith(("finetuned_attempt", "finetuned_ph"))
    }
    assert {key: after[key] for key in of_attempts} == pytest.approx(of_attempts)
    with session.begin():
        assert session.query(Attempt).filter_by(counted=True).count() == 3  # the preparation's too
    for found in (before, after):
        train = {"kind": "train", "queue": "cpu"}
        assert of(found, "finetuned_attempts_total", outcome="failed", **train) == 1
        assert of(found, "finetuned_attempt_seconds_total", outcome="failed", **train) == pytest.approx(2)
        assert of(found, "finetuned_lease_losses_total", **train) == 1
        assert of(found, "finetuned_retries_total", outcome="lease_expired", **train) == 1
        assert of(found, "finetuned_attempt_errors_total", code="worker_lost", **train) == 2
        assert of(found, "finetuned_phase_seconds_sum", phase="loading", **train) == 4
        assert of(found, "finetuned_phase_seconds_bucket", phase="loading", le="1", **train) == 0
        assert of(found, "finetuned_phase_seconds_bucket", phase="loading", le="2.5", **train) == 2
        assert of(found, "finetuned_phase_seconds_count", phase="waiting", **train) == 2
        assert of(found, "finetuned_attempts_total", kind="prepare", queue="prepare", outcome="succeeded") == 1
    assert claim.attempt == 2


def test_an_attempt_waits_from_the_end_of_the_one_before(session: Session, project: Project) -> None:
    """Not from its own row's `available_at`, which may be as old as the job."""
    with session.begin():
        factories.make_queued_job(session, project)
        retry(session, factories.take(session))
        claim = factories.take(session)
        session.execute(update(Work).values(available_at=text("now() - interval '1 hour'")))
        session.execute(
            update(Attempt).where(Attempt.ended_at.is_not(None)).values(ended_at=text("now() - interval '5 s'"))
        )
        work_service.note_phases(session, claim, {})
        waited = session.get_one(Attempt, (claim.work_id, 2), populate_existing=True).phases["waiting"]

    assert waited == pytest.approx(5)


def test_the_last_failure_of_a_job_is_no_retry(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        factories.make_queued_job(session, project)
        lifecycle.fail(session, factories.take(session), {"code": "out_of_memory", "message": "no", "param": None})

    found = scrape(client)

    assert of(found, "finetuned_attempt_errors_total", kind="train", queue="cpu", code="out_of_memory") == 1
    assert not [name for name, _ in found if name == "finetuned_retries_total"]
    assert of(found, "finetuned_lease_losses_total", kind="train", queue="cpu") == 0


def test_requests_are_counted_by_route_and_not_by_what_callers_make_up(client: TestClient) -> None:
    route = "/v1/fine_tuning/jobs/{job_id}"
    labels = {"method": "GET", "route": route, "status": "404"}
    client.get("/v1/fine_tuning/jobs/ftjob-before")
    before = scrape(client)

    for number in range(3):
        client.get(f"/v1/fine_tuning/jobs/ftjob-{number}")
        client.request(f"MADEUP{number}", f"/made/up/{number}")
    after = scrape(client)

    counted = [of(found, "finetuned_http_requests_total", **labels) for found in (before, after)]
    assert counted[1] - counted[0] == 3
    timed = [of(found, "finetuned_http_request_seconds_count", method="GET", route=route) for found in (before, after)]
    assert timed[1] - timed[0] == 3
    assert not [labels for _, labels in after if "made" in str(labels).lower()]
    assert of(after, "finetuned_http_requests_total", method="unknown", route="unknown", status="404") >= 3


def test_the_readers_are_those_with_a_key_or_with_the_token_alone(
    client: TestClient, session: Session, key: str, set_settings: SetSettings
) -> None:
    with session.begin():
        other = create_key(session, "other", "tests")

    def status(sent: str | None) -> int:
        headers = {"Authorization": f"Bearer {sent}"} if sent else {"Authorization": ""}
        return client.get("/metrics", headers=headers).status_code

    assert [status(sent) for sent in (None, "wrong", key, other)] == [401, 401, 200, 200]
    set_settings(metrics_token="operator")
    assert [status(sent) for sent in (None, "wrong", key, other, "operator")] == [401, 401, 401, 401, 200]
    assert client.get("/v1/models", headers={"Authorization": "Bearer operator"}).status_code == 401
    set_settings(metrics_token="")
    assert [status(sent) for sent in (None, "", key)] == [401, 401, 200]


def test_nobody_learns_ids_of_projects_or_jobs(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        job = factories.make_queued_job(session, project)
        retry(session, factories.take(session))
    client.get(f"/v1/fine_tuning/jobs/{job.id}")

    shown = client.get("/metrics").text

    assert "finetuned_attempts_total" in shown
    assert job.id not in shown
    assert project.id not in shown


@pytest.fixture
def without_database(servers: None, set_settings: SetSettings) -> Iterator[TestClient]:
    get_engine().dispose()
    get_engine.cache_clear()
    set_settings(metrics_token="operator", database_url="postgresql+psycopg://nobody:hunter2@127.0.0.1:1/none")
    with TestClient(create_app(), headers={"Authorization": "Bearer operator"}) as client:
        yield client
    get_engine.cache_clear()


def test_a_database_that_is_away_is_a_figure(without_database: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    found = scrape(without_database)

    assert "the database does not answer" in caplog.text
    assert "hunter2" not in caplog.text

    assert of(found, "finetuned_database_up") == 0
    assert of(found, "finetuned_database_connections", pool="sessions", state="in_use") == 0
    assert not [name for name, _ in found if name.startswith("finetuned_queue")]


def test_a_round_serves_many_scrapes(client: TestClient, session: Session, project: Project) -> None:
    client.app.state.figures = Figures(kept=3600)  # type: ignore[attr-defined]  # Starlette's
    assert 'finetuned_jobs{status="validating_files"}' not in client.get("/metrics").text
    with session.begin():
        factories.make_job(session, project)
    assert 'finetuned_jobs{status="validating_files"}' not in client.get("/metrics").text
    assert of(scrape(client), "finetuned_jobs", status="validating_files") == 1


@pytest.mark.long  # the broker's client takes its time
def test_rings_that_fail_are_counted(client: TestClient, set_settings: SetSettings) -> None:
    before = of(scrape(client), "finetuned_doorbell_rings_total", outcome="failed")
    set_settings(broker_url="redis://127.0.0.1:1/0")
    queue.get_celery.cache_clear()
    queue.ring("cpu")
    try:
        wait_for(lambda: of(scrape(client), "finetuned_doorbell_rings_total", outcome="failed") == before + 1)
    finally:
        queue.get_celery.cache_clear()
