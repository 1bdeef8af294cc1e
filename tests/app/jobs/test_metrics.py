"""A job's series, and the file of it."""

import io
import itertools
import tracemalloc

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import events, metrics
from app.jobs.models import Job
from tests.factories import make_job, make_queued_job, take
from worker import settlement

NEVER = 2**31 - 1


def measure(session: Session, job: Job, steps: int, evaluated_every: int = NEVER) -> None:
    """As many steps as a long job has, in a moment."""
    session.execute(
        text(
            "INSERT INTO job_events (id, job_id, level, type, message, data)"
            " SELECT 'ftevent-' || step, :job_id, 'info', 'metrics', '', jsonb_build_object('step', step,"
            " 'train_loss', 1.0 / step, 'valid_loss', CASE WHEN step % :every = 0 THEN 1.0 END)"
            " FROM generate_series(1, :steps) AS step"
        ),
        {"job_id": job.id, "steps": steps, "every": evaluated_every},
    )


def table(session: Session, job: Job) -> list[str]:
    written = io.BytesIO()
    metrics.write_csv(session, job.id, written)
    return written.getvalue().decode().splitlines()


def test_a_step_that_was_done_again_counts_once_with_its_last_numbers(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        for step, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 2.1), (3, 1.6)):
            events.measure(session, job.id, "", {"step": step, "train_loss": loss})
        events.measure(session, job.id, "", {"step": 3, "valid_loss": 1.7, "valid_mean_token_accuracy": 0.5})
    with session.begin():
        series = metrics.series(session, job.id, most=10)
        assert [entry["train_loss"] for entry in series.entries] == [3.0, 2.1, 1.6]
        assert series.steps == 3
        assert [entry["step"] for entry in metrics.series(session, job.id, after_step=2, most=10).entries] == [3]
        assert metrics.series(session, job.id, after_step=3, most=10) == ([], 0)
        assert table(session, job) == [
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
            "1,3.0,,,",
            "2,2.1,,,",
            "3,1.6,,1.7,0.5",
        ]


def test_a_thinned_series_keeps_its_ends_and_its_evaluations(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        measure(session, job, 1000, evaluated_every=100)
    with session.begin():
        thin = metrics.series(session, job.id, most=50)
        whole = metrics.series(session, job.id, most=1000)
    assert (len(thin.entries), thin.steps) == (50, 1000)
    steps = [entry["step"] for entry in thin.entries]
    assert (steps[0], steps[-1]) == (1, 1000)
    assert [entry["step"] for entry in thin.entries if entry["valid_loss"]] == list(range(100, 1001, 100))
    assert max(after - before for before, after in itertools.pairwise(steps)) < 60
    assert [entry["step"] for entry in whole.entries] == list(range(1, 1001))


@pytest.mark.parametrize(("steps", "evaluated_every"), [(9, NEVER), (10, 1), (11, NEVER), (97, 1), (97, 3), (99, 2)])
@pytest.mark.parametrize("most", [4, 10, 11])
def test_a_thinned_series_is_as_long_as_is_asked_for(
    session: Session, project: Project, steps: int, evaluated_every: int, most: int
) -> None:
    with session.begin():
        job = make_job(session, project)
        measure(session, job, steps, evaluated_every)
        found = [entry["step"] for entry in metrics.series(session, job.id, most=most).entries]
    assert len(found) == min(most, steps)
    assert (found[0], found[-1]) == (1, steps)
    assert found == sorted(set(found))


def test_of_a_long_job_no_more_is_held_in_memory_than_is_shown(session: Session, project: Project) -> None:
    steps = 50_000
    with session.begin():
        job = make_queued_job(session, project)
        measure(session, job, steps)
        claim = take(session)
    tracemalloc.start()
    try:
        with session.begin():
            assert len(metrics.series(session, job.id, most=10).entries) == 10
        blob = settlement._table_of_metrics(claim)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024**2  # all of them are some 20 MB
    with session.begin():
        lines = table(session, job)
    assert len(lines) == steps + 1
    assert blob.bytes == sum(len(line) + 1 for line in lines)


def test_a_dashboard_asks_for_what_is_new(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        for step in range(1, 41):
            events.measure(session, job.id, "", {"step": step, "train_loss": 1 / step, "tokens_per_second": 5.0})
    path = f"/v1/fine_tuning/jobs/{job.id}/metrics"
    whole = client.get(path).json()
    assert (whole["object"], whole["steps"], len(whole["data"])) == ("fine_tuning.job.metrics", 40, 40)
    assert whole["data"][1]["train_loss"] == 0.5
    assert whole["data"][1]["grad_norm"] is None
    assert [entry["step"] for entry in client.get(path, params={"after_step": 38}).json()["data"]] == [39, 40]
    thin = client.get(path, params={"points": 10}).json()
    assert (thin["steps"], len(thin["data"])) == (40, 10)
