"""What earlier jobs took corrects later plans, once there are three of a class."""

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import lifecycle
from app.jobs import service as jobs
from app.jobs.models import Job
from app.planning.dry_runs import DryRun
from app.planning.memory import MemoryEstimate
from app.plans import history
from app.plans.schemas import DryRunRead, PlanRead
from app.plans.service import of_job
from app.registry import service as registry
from app.work import service as work_service
from app.work.lifecycle import Who
from tests.app.plans.test_plan_routes import plan
from tests.conftest import SetSettings
from tests.factories import make_manifest, make_prepared, make_queued_job, take

GIB = 1024**3
CPU = {"kind": "cpu", "name": "cpu", "memory_bytes": 16 * GIB}


@pytest.fixture(autouse=True)
def _worker(session: Session, set_settings: SetSettings) -> None:
    set_settings(dry_runs=False)  # whose work would lie before that of the jobs here
    with session.begin():
        work_service.hear(session, Who("w1", "host", CPU), queue="cpu", pid=1)


def done(session: Session, project: Project, *, times_the_plan: float, times_the_dry_run: float | None = None) -> None:
    """A job of this plan that succeeded, and took so many times the memory it was planned to take."""
    with session.begin():
        job = make_queued_job(session, project)
        planned = of_job(session, project, job.current_spec, make_prepared())
        assert planned is not None
        answer = PlanRead.of(planned, DryRunRead(status="unavailable"))
        if times_the_dry_run is not None:
            by_formula = planned.plan.memory
            weights = times_the_plan / times_the_dry_run * by_formula.total - by_formula.context
            counted = MemoryEstimate("loss", weights, 0, 0, 0, 0, 0, 0, 0, context=by_formula.context)
            answer = answer.by(DryRun(counted, (), 0), correction=1.0)
        job.plan = answer.model_dump(mode="json")
        claim = take(session)
        manifest = make_manifest(session, claim, f"ft:tiny:default::{claim.work_id}")
        peak = round(times_the_plan * planned.plan.memory.total)
        report = manifest.report.model_copy(update={"peak_memory_bytes": peak, "train_seconds": 30.0})
        manifest = manifest.model_copy(update={"report": report})
        result = registry.register(session, manifest, manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])
    session.expire_all()


def probed(session: Session, project: Project, *, times_the_plan: float, shrinks: bool) -> None:
    """A job of this plan that trains, and whose probe took so many times the memory it was planned to take."""
    with session.begin():
        job = make_queued_job(session, project)
        planned = of_job(session, project, job.current_spec, make_prepared())
        assert planned is not None
        job.plan = PlanRead.of(planned, DryRunRead(status="unavailable")).model_dump(mode="json")
        claim = take(session)
        if shrinks:
            jobs.shrink(session, claim, per_device=1, accumulation=16)
        jobs.note_probe(session, claim, memory_bytes=round(times_the_plan * planned.plan.memory.total), seconds=1.0)


def test_plans_are_corrected_by_the_median_of_three_jobs(
    client: TestClient, session: Session, project: Project
) -> None:
    before = plan(client, "tiny")["memory"]
    for times, corrected in ((1.3, 1.0), (1.2, 1.0), (5.0, 1.3)):
        done(session, project, times_the_plan=times)
        after = plan(client, "tiny")["memory"]
        assert after["train_peak_gib"] == pytest.approx(corrected * before["train_peak_gib"], rel=0.01)
        assert after["breakdown_gib"]["correction"] == pytest.approx(
            (corrected - 1) * before["train_peak_gib"], abs=0.002
        )
    with session.begin():
        assert history.corrections(session) == {"cpu": pytest.approx(1.3, rel=0.01)}


def test_a_job_counts_by_its_probe_as_soon_as_it_trains_and_not_once_it_has_shrunk(
    session: Session, project: Project
) -> None:
    for times, shrinks in ((1.2, False), (1.3, False), (5.0, True), (1.4, False)):
        with session.begin():
            assert history.corrections(session) == {}
        probed(session, project, times_the_plan=times, shrinks=shrinks)
    with session.begin():
        assert history.corrections(session) == {"cpu": pytest.approx(1.3, rel=0.01)}


def test_a_dry_run_is_corrected_by_what_dry_runs_said(session: Session, project: Project) -> None:
    for _ in range(2):
        done(session, project, times_the_plan=1.2, times_the_dry_run=0.9)
    done(session, project, times_the_plan=1.2)
    with session.begin():
        assert history.corrections(session) == {"cpu": pytest.approx(1.2, rel=0.01)}
        assert history.corrections(session, "dry_run") == {}
    done(session, project, times_the_plan=1.2, times_the_dry_run=0.9)
    with session.begin():
        assert history.corrections(session) == {"cpu": pytest.approx(1.2, rel=0.01)}
        assert history.corrections(session, "dry_run") == {"cpu": pytest.approx(0.9, rel=0.01)}


def test_what_is_far_off_is_no_habit_of_the_device(client: TestClient, session: Session, project: Project) -> None:
    before = plan(client, "tiny")["memory"]["train_peak_gib"]
    for _ in range(3):
        done(session, project, times_the_plan=50)
    assert plan(client, "tiny")["memory"]["train_peak_gib"] == pytest.approx(2 * before, rel=0.01)


def test_the_interval_of_time_rests_on_them(client: TestClient, session: Session, project: Project) -> None:
    assert "no job" in plan(client, "tiny")["duration"]["basis"]
    for _ in range(3):
        done(session, project, times_the_plan=1)
    found = plan(client, "tiny")["duration"]
    assert found["basis"] == "3 earlier jobs on such a device"
    assert found["low"] < found["seconds"] < found["high"]
    with session.begin():
        (measured,) = history.measured(session).values()
    assert [one.seconds for one in measured] == [30.0] * 3
    assert session.query(Job).count() == 3
