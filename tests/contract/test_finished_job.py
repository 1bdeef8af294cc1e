"""OpenAI's contract, a job that has run: itself, its events, its checkpoints, its file of metrics."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai.types.fine_tuning as stock
import pytest
from openai.types import FileObject
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.graders import TextSimilarityGraderParam

from tests import tiny
from tests.contract.shapes import Checkpoint, Event, File, Job, Page, read
from tests.running import Service

STEPS = 2
METRICS = {
    *("step", "total_steps", "train_loss", "train_mean_token_accuracy"),
    *("valid_loss", "valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy"),
}


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def path(service: Service, http: httpx.Client) -> str:
    """Where the one job is that these tests look at: a checkpoint at each of its steps, an evaluation at the last."""
    rows = service.upload(tiny.chat_rows(20))
    hyperparameters = {"max_steps": STEPS, "batch_size": 4, "save_steps": 1, "eval_steps": 2}
    body = {
        "model": "tiny",
        "training_file": rows,
        "validation_file": rows,
        "suffix": "Wire",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }
    made = http.post("/fine_tuning/jobs", json=body).json()["id"]
    assert service.finished(made).status == "succeeded"
    return f"/fine_tuning/jobs/{made}"


def every(http: httpx.Client, path: str) -> list[Event]:
    """Of the job's events, oldest first."""
    page = read(http.get(f"{path}/events", params={"limit": 1000}), Page[Event], stock.FineTuningJobEvent)
    assert not page.has_more
    return page.data[::-1]


def test_a_succeeded_job_has_every_field(http: httpx.Client, path: str) -> None:
    job = read(http.get(path), Job, stock.FineTuningJob)
    assert (job.status, job.error, job.estimated_finish) == ("succeeded", None, None)
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    base, project, suffix, name = (job.fine_tuned_model or "").removeprefix("ft:").split(":")
    assert (base, project, suffix, bool(name)) == ("tiny", "default", "wire", True)
    assert (job.trained_tokens or 0) > 0
    assert len(job.result_files) == 1
    assert job.hyperparameters == job.method.supervised.hyperparameters
    assert "auto" not in job.hyperparameters.model_dump().values()


def test_every_event_has_every_field_and_the_usual_words(http: httpx.Client, path: str) -> None:
    job = http.get(path).json()
    told = every(http, path)
    said = [event.message for event in told if event.type == "message"]
    usual = [
        f"Created fine-tuning job: {job['id']}",
        f"Validating training file: {job['training_file']}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Checkpoint created at step 1",
        f"New fine-tuned model created: {job['fine_tuned_model']}",
        "The job has successfully completed",
    ]
    found = [next(place for place, words in enumerate(said) if words.startswith(begins)) for begins in usual]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, len(said) - 1)
    assert {event.data is None for event in told if event.type == "message"} == {True}


def test_metrics_are_told_in_openais_names(http: httpx.Client, path: str) -> None:
    measured = [event for event in every(http, path) if event.type == "metrics"]
    told: dict[str, Any] = {}
    for event in measured:
        assert event.data is not None
        assert event.data["total_steps"] == STEPS
        told |= event.data
    assert set(told) >= METRICS
    assert all(isinstance(told[name], int | float) for name in METRICS)
    steps = [event for event in measured if event.data and "train_loss" in event.data]
    assert [event.message.split("=")[0] for event in steps] == [
        f"Step {step}/{STEPS}: training loss" for step in range(1, STEPS + 1)
    ]


def test_every_checkpoint_has_every_field_and_every_metric(http: httpx.Client, path: str) -> None:
    page = read(http.get(f"{path}/checkpoints"), Page[Checkpoint], FineTuningJobCheckpoint)
    job = http.get(path).json()
    assert [checkpoint.step_number for checkpoint in page.data] == [2, 1]
    assert (page.first_id, page.last_id, page.has_more) == (page.data[0].id, page.data[-1].id, False)
    for checkpoint in page.data:
        name = f"{job['fine_tuned_model']}:ckpt-step-{checkpoint.step_number}"
        assert (checkpoint.fine_tuning_job_id, checkpoint.fine_tuned_model_checkpoint) == (job["id"], name)
        assert checkpoint.metrics.step == checkpoint.step_number
        assert checkpoint.metrics.train_loss is not None
        valid = {value for name, value in checkpoint.metrics if "valid" in name}
        assert (valid == {None}) is (checkpoint.step_number == 1)  # where nothing was evaluated


def test_the_result_file_is_a_file_and_plain_csv_under_openais_header(http: httpx.Client, path: str) -> None:
    (file_id,) = http.get(path).json()["result_files"]
    file = read(http.get(f"/files/{file_id}"), File, FileObject)
    assert (file.purpose, file.status) == ("fine-tune-results", "processed")
    table = csv.DictReader(io.StringIO(http.get(f"/files/{file_id}/content").text))
    assert table.fieldnames == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    rows = list(table)
    assert [row["step"] for row in rows] == [str(step) for step in range(1, STEPS + 1)]
    assert [bool(row["valid_loss"]) for row in rows] == [False, True]


@pytest.mark.long
def test_a_stock_client_trains_on_what_a_grader_says(service: Service) -> None:
    """From its file to its registry row, with OpenAI's names for all of it."""
    client = service.client()
    grader: TextSimilarityGraderParam = {
        "type": "text_similarity",
        "name": "alike",
        "evaluation_metric": "rouge_l",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }
    # Any, for two of them are TRL's.
    numbers: Any = {"n_epochs": 1, "batch_size": 2, "num_generations": 4, "max_completion_length": 8}
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=service.upload(tiny.graded_rows(4)),
        method={"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": numbers}},
        seed=7,
    )
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.grader.type == "text_similarity"

    ended = service.finished(job.id)

    assert ended.status == "succeeded", ended.error
    rewards = [
        event.data["train_mean_reward"] for event in service.events(job.id) if "train_loss" in (event.data or {})
    ]
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)
    (row,) = service.results(job.id)
    assert row["id"] == ended.fine_tuned_model
    assert row["metrics"]["steps"] == 2
