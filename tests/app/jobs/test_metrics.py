"""A job's series, and the file of it."""

import itertools

from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import events, metrics
from tests.factories import make_job


def test_a_step_that_was_done_again_counts_once_with_its_last_numbers(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project)
        for step, loss in ((1, 3.0), (2, 2.0), (3, 1.5), (2, 2.1), (3, 1.6)):
            events.measure(session, job.id, "", {"step": step, "train_loss": loss})
        events.measure(session, job.id, "", {"step": 3, "valid_loss": 1.7, "valid_mean_token_accuracy": 0.5})
    with session.begin():
        series = metrics.series(session, job.id)
        assert [entry["train_loss"] for entry in series] == [3.0, 2.1, 1.6]
        assert [entry["step"] for entry in metrics.series(session, job.id, after_step=2)] == [3]
    assert metrics.as_csv(series).splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,3.0,,,",
        "2,2.1,,,",
        "3,1.6,,1.7,0.5",
    ]


def test_a_thinned_series_keeps_its_ends_and_its_evaluations() -> None:
    entries = [{"step": step, "valid_loss": 1.0 if step % 100 == 0 else None} for step in range(1, 1001)]
    thin = metrics.thinned(entries, 50)
    assert len(thin) == 50
    assert (thin[0]["step"], thin[-1]["step"]) == (1, 1000)
    assert [entry["step"] for entry in thin if entry["valid_loss"]] == list(range(100, 1001, 100))
    gaps = [after["step"] - before["step"] for before, after in itertools.pairwise(thin)]
    assert max(gaps) < 60
    assert metrics.thinned(entries, 1000) == entries


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
