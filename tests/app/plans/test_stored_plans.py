"""Plans that are kept, and the dry run that follows each: made once a question, and in every plan that waits for it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.jobs.models import Job
from app.planning.dry_runs import Asked, DryRun
from app.planning.memory import MemoryEstimate
from app.plans import stored
from app.plans.models import StoredDryRun, StoredPlan
from app.plans.service import of_job
from app.queue import PREPARE
from app.work import lifecycle as work
from app.work.lifecycle import Claim, Who
from app.work.models import Work
from app.work.status import WorkKind
from tests.app.plans.test_plan_routes import GIB, URL, l4, plan
from tests.conftest import SetSettings
from tests.factories import make_prepared, make_queued_job

__all__ = ["l4"]
TRAIN = MemoryEstimate(
    moment="loss",
    weights=10 * GIB,
    quantization=0,
    adapter=1 * GIB,
    gradients=1 * GIB,
    optimizer=1 * GIB,
    activations=2 * GIB,
    loss=1 * GIB,
    temporary=0,
)
FOUND = DryRun(train=TRAIN, by_layer=(GIB, GIB), evaluation=12 * GIB)


def queued(session: Session) -> int:
    with session.begin():
        return session.scalar(select(func.count()).where(Work.kind == WorkKind.PLAN)) or 0


def claimed(session: Session) -> Claim:
    with session.begin():
        who = Who("w9", "host", {"kind": "cpu"})
        claim = work.claim(session, PREPARE, who=who, lease=timedelta(minutes=1))
    assert claim is not None
    assert claim.kind is WorkKind.PLAN
    return claim


def answered(session: Session, found: DryRun = FOUND) -> Asked:
    claim = claimed(session)
    with session.begin():
        asked = stored.asked(session, claim.subject)
        stored.answer(session, claim, found)
    assert asked is not None
    return asked


@pytest.mark.usefixtures("l4")
def test_a_plan_goes_by_the_formula_until_its_dry_run_is_there(
    client: TestClient, session: Session, llama: str
) -> None:
    first = plan(client, llama)
    assert (first["memory"]["basis"], first["formula"], first["dry_run"]["status"]) == ("formula", None, "in_progress")
    asked = answered(session)
    assert (asked.config["model_type"], asked.device.kind) == ("llama", "cuda")
    later = client.get(f"{URL}/{first['id']}").json()
    assert later["memory"]["basis"] == "dry_run"
    assert later["memory"]["train_peak_gib"] == 16
    assert later["memory"]["eval_peak_gib"] == 12
    assert sum(later["memory"]["breakdown_gib"].values()) == pytest.approx(16)
    assert later["formula"] == first["memory"]
    assert later["dry_run"] == {"status": "succeeded", "reason": None}
    here = next(device for device in later["devices"] if device["name"] == "gpu-24")
    assert (here["peak_gib"], here["headroom_gib"], here["fits"]) == (16, 6.5, True)
    again = plan(client, llama)
    assert again["memory"] == later["memory"]
    assert again["id"] != first["id"]


def test_specs_that_hold_the_same_share_a_dry_run(client: TestClient, session: Session, llama: str) -> None:
    def asked_with(**numbers: Any) -> int:
        plan(client, llama, method={"type": "supervised", "supervised": {"hyperparameters": numbers}})
        return queued(session)

    assert asked_with() == 1
    assert asked_with(learning_rate=1e-5, n_epochs=9, warmup_ratio=0.2) == 1
    assert asked_with(per_device_train_batch_size=1, batch_size=16) == 2
    assert asked_with(optim="adamw_torch") == 3


@pytest.mark.usefixtures("l4")
def test_what_fits_by_the_formula_alone_is_said(client: TestClient, session: Session, llama: str) -> None:
    first = plan(client, llama)
    assert first["fits"]
    answered(session, replace(FOUND, train=replace(TRAIN, weights=18.0 * GIB)))
    later = client.get(f"{URL}/{first['id']}").json()
    assert not later["fits"]
    assert "dry_run_does_not_fit" in [warning["code"] for warning in later["warnings"]]


def test_a_dry_run_that_cannot_be_made_leaves_the_formula(client: TestClient, session: Session, llama: str) -> None:
    first = plan(client, llama)
    claim = claimed(session)
    with session.begin():
        stored.fail(session, claim, {"code": "no_dry_run", "message": "ValueError: odd", "param": None})
    later = client.get(f"{URL}/{first['id']}").json()
    assert later["dry_run"] == {"status": "failed", "reason": "ValueError: odd"}
    assert later["memory"] == first["memory"]
    assert plan(client, llama)["dry_run"]["status"] == "failed"  # not tried again at once
    assert queued(session) == 1
    with session.begin():
        session.get_one(StoredDryRun, claim.subject).finished_at = func.now() - 2 * stored.TRIED_AGAIN_AFTER
    assert plan(client, llama)["dry_run"]["status"] == "in_progress"
    assert queued(session) == 2


def test_where_none_is_made_the_plan_says_why(
    client: TestClient, session: Session, llama: str, set_settings: SetSettings
) -> None:
    set_settings(dry_runs=False)
    off = plan(client, llama)["dry_run"]
    assert (off["status"], "FINETUNED_DRY_RUNS" in off["reason"]) == ("unavailable", True)
    assert queued(session) == 0


def test_a_job_s_own_plan_gets_its_dry_run(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        planned = of_job(session, project, job.current_spec, make_prepared())
        assert planned is not None
        job.plan = stored.keep_of_job(session, project, job, planned)
        assert job.plan["dry_run"]["status"] == "in_progress"
        formula = job.plan["memory"]
    answered(session)
    session.expire_all()
    with session.begin():
        after = session.get_one(Job, job.id).plan
    assert after is not None
    assert (after["memory"]["basis"], after["formula"]) == ("dry_run", formula)
    with session.begin():  # another of the same rows has it at once
        again = stored.keep_of_job(session, project, job, planned)
    assert again["memory"] == after["memory"]


def test_plans_are_their_project_s_own_and_go_with_time(client: TestClient, session: Session, llama: str) -> None:
    made = plan(client, llama)
    with session.begin():
        other = create_key(session, "other", "tests")
    assert client.get(f"{URL}/{made['id']}", headers={"Authorization": f"Bearer {other}"}).status_code == 404
    with session.begin():
        stored.forget(session, timedelta(hours=1))
        assert session.scalar(select(func.count(StoredPlan.id))) == 1
        stored.forget(session, timedelta(seconds=-1))
        assert session.scalar(select(func.count(StoredPlan.id))) == 0
        assert session.scalar(select(func.count(StoredDryRun.key))) == 0
    missing = client.get(f"{URL}/{made['id']}")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
