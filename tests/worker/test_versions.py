"""Old code beside new, as while a deployment is rolled out: what a newer version has written is read, or left to it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.auth import Project
from app.files.report import PreparedFile, Resolved
from app.jobs.models import Job, JobEvent
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.plans import history
from app.registry import manifest as manifests
from app.registry import service as registry
from app.storage import get_storage
from app.work.models import Attempt, Work
from tests.conftest import SetSettings
from tests.factories import WHO, make_manifest, make_prepared, make_queued_job, take
from worker.devices import Device
from worker.lease import Lease
from worker.outcomes import PassedOn
from worker.phases import Phases
from worker.runner import Slot
from worker.settlement import settle
from worker.standby import Trainers
from worker.vacancy import Vacancy


def of_tomorrow(document: Any) -> Any:
    """As a version that has one more field in each of its parts writes it."""
    if isinstance(document, dict):
        return {name: of_tomorrow(part) for name, part in document.items()} | {"of_tomorrow": 1}
    return [of_tomorrow(part) for part in document] if isinstance(document, list) else document


def test_what_preparing_found_is_read_for_what_is_known_of_it() -> None:
    made = make_prepared().model_copy(update={"resolved": Resolved(max_length=9, packing=False, holdout=0)})
    assert Prepared.model_validate(of_tomorrow(made.model_dump(mode="json"))) == made
    assert PreparedFile.model_validate(of_tomorrow(made.train.model_dump(mode="json"))) == made.train


def test_a_result_that_a_newer_worker_published_is_rolled_forward(session: Session, project: Project) -> None:
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
        made = make_manifest(session, claim).model_copy(update={"files": []})
    document = manifests.as_document(made)
    document["spec"] = of_tomorrow(document["spec"])
    document["base"] |= {"of_tomorrow": 1}
    get_storage().write_manifest(made.key, document | {"of_tomorrow": 1})
    assert manifests.newest_whole(get_storage(), claim.subject) == made


def test_plans_learn_from_jobs_that_newer_workers_have_trained(session: Session, project: Project) -> None:
    with session.begin():
        job = make_queued_job(session, project)
        manifest = make_manifest(session, take(session))
        registry.register(session, manifest, manifest_sha256="0" * 64)
        job.resolved = of_tomorrow(job.resolved)
        session.flush()
        assert [len(jobs) for jobs in history.measured(session).values()] == [1]


def test_a_worker_leaves_a_job_that_it_does_not_understand_to_a_newer_one(
    session: Session, project: Project, set_settings: SetSettings, tmp_path: Path
) -> None:
    set_settings(home=tmp_path, retry_delays="[60]")
    with session.begin():
        job = make_queued_job(session, project)
        body = JobSpec.model_validate(job.resolved).model_dump(mode="json")
        session.execute(update(Job).values(resolved=body | {"curriculum": "easy first"}))
        claim = take(session)

    phases = Phases(claim.kind)
    trainers = Trainers(Device.cpu(), "cpu-0", 0)
    slot = Slot(WHO, trainers, Vacancy(tmp_path / "lock", trainers, lambda: None))
    outcome = slot.attempt(claim, Lease(claim), phases)
    assert isinstance(outcome, PassedOn)
    settle(claim, outcome, phases)

    with session.begin():
        session.refresh(job)
        assert job.status == "queued"
        work = session.get_one(Work, claim.work_id, populate_existing=True)
        assert (work.status, work.failed_attempts) == ("queued", 0)
        assert session.scalar(select(Work.available_at > func.now()).where(Work.id == work.id))
        assert session.get_one(Attempt, (work.id, 1), populate_existing=True).outcome == "passed_on"
        told = session.scalars(select(JobEvent.message).order_by(JobEvent.seq.desc()).limit(1)).one()
    assert "curriculum" in told
    assert told.endswith("It waits for a newer worker")


@pytest.mark.parametrize("body", [{"curriculum": 1}, {"method": {"type": "supervised", "supervise": {}}}], ids=str)
def test_a_request_is_still_refused_for_what_nobody_knows(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Unknown field"):
        JobSpec.model_validate({"model": "tiny", "training_file": "file-1", **body})
