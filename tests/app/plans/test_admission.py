"""Where a job goes: to the smallest worker class with room for it, or back to whoever sent it with what would fit."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.files.report import PreparedFile, Resolved
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.settings import get_settings
from app.work import service as work_service
from app.work.lifecycle import Who
from tests.factories import make_identity, make_job, take, upload_body
from worker import settlement
from worker.outcomes import FilesPrepared

ROWS = b'{"prompt": "a", "completion": "b"}\n' * 8
GIB = 1024**3


@pytest.fixture
def with_weights(llama: str) -> Iterator[str]:
    """That base with a file of weights, which a job can start from."""
    file = get_settings().models / llama / "model.safetensors"
    file.write_bytes((2).to_bytes(8, "little") + b"{}")
    yield llama
    file.unlink()


@pytest.fixture
def gpus(session: Session) -> Iterator[None]:
    """Workers with 24 and with 80 GB."""
    sizes = {"gpu-24": 22.5, "gpu-80": 79.6}
    with session.begin():
        for queue, gib in sizes.items():
            device = {"kind": "cuda", "name": queue, "memory_bytes": int(gib * GIB)}
            work_service.hear(session, Who(queue, "host", device), queue=queue, pid=1)
    yield
    with session.begin():
        for queue in sizes:
            work_service.forget(session, queue)


def submitted(client: TestClient, model: str, **fields: Any) -> Any:
    file = client.post("/v1/files", **upload_body(ROWS)).json()["id"]
    return client.post("/v1/fine_tuning/jobs", json={"model": model, "training_file": file, **fields})


def prepared_as(session: Session, job_id: str, *, longest: int) -> Job:
    """The job once a worker has settled its preparation."""
    with session.begin():
        claim = take(session, "prepare")
    file = PreparedFile(rows=1000, tokens=300_000, trained_tokens=9, longest_row=longest, sha256="0" * 64)
    identity = make_identity().model_copy(update={"id": "llama-3-8b"})
    found = Prepared(
        base=identity,
        model_type="llama",
        hidden_size=4096,
        context_length=8192,
        resolved=Resolved(max_length=longest, packing=False, holdout=0.0),
        train=file,
    )
    settlement.settle(claim, FilesPrepared(found))
    with session.begin():
        session.expire_all()
        return session.get_one(Job, job_id)


@pytest.mark.usefixtures("gpus")
def test_what_no_class_here_could_train_is_refused_with_what_would_fit(client: TestClient, with_weights: str) -> None:
    response = submitted(client, with_weights, tuning={"type": "full"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "does_not_fit")
    assert "'gpu-80', the largest worker class here, has 79.6" in error["message"]
    assert '"lora"' in error["message"]
    assert error["param"] in ("tuning.type", "method.supervised.hyperparameters.optim")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("longest", "queue"), [(256, "gpu-24"), (4096, "gpu-80")])
def test_a_job_goes_to_the_smallest_class_with_room(
    client: TestClient, session: Session, with_weights: str, longest: int, queue: str
) -> None:
    """Submitted to the smallest there is; what its rows take is known when they are prepared."""
    given = {"per_device_train_batch_size": 2, "gradient_checkpointing": False}
    method = {"type": "supervised", "supervised": {"hyperparameters": given}}
    asked = submitted(client, with_weights, method=method).json()
    assert asked["queue"]["name"] == "gpu-24"
    job = prepared_as(session, asked["id"], longest=longest)
    assert (job.status, job.queue) == ("queued", queue)
    assert job.plan is not None
    assert job.plan["device"] == queue
    assert job.plan["data"]["basis"] == "counted"
    with session.begin():
        assert take(session, queue).subject == job.id
    shown = client.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert shown["plan"] == job.plan


@pytest.mark.usefixtures("gpus")
def test_what_turns_out_not_to_fit_ends_with_what_would(
    client: TestClient, session: Session, with_weights: str
) -> None:
    given = {"per_device_train_batch_size": 64, "gradient_checkpointing": False}
    method = {"type": "supervised", "supervised": {"hyperparameters": given}}
    asked = submitted(client, with_weights, method=method).json()
    job = prepared_as(session, asked["id"], longest=4096)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "does_not_fit"
    assert job.error["message"].startswith("This job takes some ")
    assert "gradient_checkpointing true" in job.error["suggestion"]
    assert job.error["param"].endswith("gradient_checkpointing")
    assert job.error["log_lines"] == []


def test_a_base_that_is_not_here_is_queued_as_it_was_submitted(session: Session, project: Project) -> None:
    with session.begin():
        job = make_job(session, project, model="org/elsewhere")
        job_id = job.id
    job = prepared_as(session, job_id, longest=20)
    assert (job.status, job.queue, job.plan) == ("queued", "cpu", None)
    assert job.resolved is not None
    assert job.resolved["tuning"]["r"] == 16
