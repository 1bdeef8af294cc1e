"""OpenAI's contract, fine-tuning jobs: what is sent to make one, and how it looks from then on."""

from typing import Any

import openai.types.fine_tuning as stock
import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.jobs import lifecycle
from tests.contract.shapes import Event, Job, JobError, Page, read, refusal
from tests.factories import make_file, make_queued_job, prepare, take

JOBS = "/v1/fine_tuning/jobs"
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


@pytest.fixture
def body(session: Session, project: Project) -> dict[str, Any]:
    """As little as a job needs."""
    with session.begin():
        return {"model": "tiny", "training_file": make_file(session, project).id}


def create(client: TestClient, body: dict[str, Any]) -> Job:
    return read(client.post(JOBS, json=body), Job, stock.FineTuningJob)


def test_a_new_job_has_every_field_also_those_that_nothing_is_known_of(
    client: TestClient, body: dict[str, Any], project: Project
) -> None:
    job = create(client, body)
    assert (job.model, job.training_file, job.organization_id) == ("tiny", body["training_file"], project.id)
    assert job.status in ("validating_files", "queued")
    assert job.hyperparameters.model_dump() == job.method.supervised.hyperparameters.model_dump() == AUTO
    assert job.result_files == []
    assert (job.finished_at, job.fine_tuned_model, job.trained_tokens, job.estimated_finish) == (None,) * 4
    assert (job.error, job.validation_file, job.metadata) == (None,) * 3
    assert read(client.get(f"{JOBS}/{job.id}"), Job, stock.FineTuningJob) == job
    assert read(client.get(JOBS), Page[Job], stock.FineTuningJob).data == [job]


def test_a_job_shows_all_that_was_asked_for(client: TestClient, body: dict[str, Any]) -> None:
    hyperparameters = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}
    asked = {
        **body,
        "validation_file": body["training_file"],
        "suffix": "s" * 64,
        "seed": 2_147_483_647,
        "metadata": {"k" * 64: "v" * 512, **{str(number): "" for number in range(15)}},
        "integrations": [],
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }
    job = create(client, asked)
    assert (job.validation_file, job.seed, job.metadata) == (
        body["training_file"],
        2_147_483_647,
        asked["metadata"],
    )
    assert job.hyperparameters.model_dump() == job.method.supervised.hyperparameters.model_dump() == hyperparameters


def test_old_scripts_send_hyperparameters_at_the_top_and_get_them_in_both_places(
    client: TestClient, body: dict[str, Any]
) -> None:
    old = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 2}
    job = create(client, {**body, "hyperparameters": old})
    assert job.hyperparameters.model_dump() == job.method.supervised.hyperparameters.model_dump() == old
    new = {"type": "supervised", "supervised": {"hyperparameters": old}}
    assert refusal(client.post(JOBS, json={**body, "hyperparameters": old, "method": new})).param == "hyperparameters"


def test_null_is_as_good_as_absent_for_what_may_be_null(client: TestClient, body: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("validation_file", "suffix", "seed", "metadata", "integrations"))
    job = create(client, {**body, **nothing})
    assert (job.validation_file, job.metadata, job.hyperparameters.model_dump()) == (None, None, AUTO)
    assert create(client, body).seed != create(client, body).seed  # chosen, and told


def test_a_field_beyond_openais_bounds_is_refused_by_name(client: TestClient, body: dict[str, Any]) -> None:
    for field, value in (
        ("suffix", ""),
        ("suffix", "s" * 65),
        ("seed", -1),
        ("seed", 2_147_483_648),
        ("metadata", {str(number): "" for number in range(17)}),
        ("metadata", {"k" * 65: ""}),
        ("metadata", {"k": "v" * 513}),
        ("tunning", {}),
    ):
        error = refusal(client.post(JOBS, json={**body, field: value}))
        assert (error.type, error.param) == ("invalid_request_error", field)
        assert (error.code == "unknown_parameter") is (field == "tunning")


def test_a_job_is_paused_resumed_and_cancelled_without_a_body(
    client: TestClient, session: Session, body: dict[str, Any]
) -> None:
    job = create(client, body).id
    with session.begin():
        prepare(session, take(session, "prepare"))
    headers = {"Content-Type": "application/json", "Content-Length": "0"}
    for move, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("cancel", "cancelled")):
        moved = read(client.post(f"{JOBS}/{job}/{move}", headers=headers), Job)
        assert (moved.id, moved.status) == (job, status)
        assert (moved.finished_at is not None) is (status == "cancelled")
        assert isinstance(moved.hyperparameters.n_epochs, int)  # and no `auto`, once the files were looked at
    assert moved.error is None


def test_a_failed_job_says_why_in_three_fields(client: TestClient, session: Session, project: Project) -> None:
    why = {"code": "invalid_training_file", "message": "Line 1 is no JSON.", "param": "training_file"}
    with session.begin():
        job = make_queued_job(session, project, training_file="file-0").id
        lifecycle.fail(session, take(session), why)
    failed = read(client.get(f"{JOBS}/{job}"), Job, stock.FineTuningJob)
    assert (failed.status, failed.error) == ("failed", JobError.model_validate(why))
    assert failed.finished_at is not None
    assert (failed.fine_tuned_model, failed.trained_tokens, failed.estimated_finish) == (None, None, None)
    told = read(client.get(f"{JOBS}/{job}/events"), Page[Event], stock.FineTuningJobEvent)
    assert (told.data[0].level, told.data[0].type, told.data[0].data) == ("error", "message", None)
