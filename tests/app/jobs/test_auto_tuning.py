"""`tuning: "auto"`: decided when a job is created, shown with its reason, and kept."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.http import invalid_request
from app.jobs import lifecycle
from app.jobs.models import Job
from app.jobs.spec import JobRequest, JobSpec
from app.registry import service as registry
from app.settings import get_settings
from app.work import service as work_service
from app.work.lifecycle import Who
from tests import factories, tiny
from tests.factories import make_manifest, make_queued_job, take, upload_body

JOBS = "/v1/fine_tuning/jobs"
CHATS = tiny.jsonl(tiny.chat_rows(8))


def created(client: TestClient, content: bytes = CHATS, **fields: Any) -> dict[str, Any]:
    file = client.post("/v1/files", **upload_body(content)).json()["id"]
    response = client.post(JOBS, json={"model": "tiny", "training_file": file, "tuning": "auto", **fields})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def hear(session: Session, queue: str, memory_bytes: float) -> None:
    device = {"kind": "cpu" if queue == "cpu" else "cuda", "name": "a device", "memory_bytes": int(memory_bytes)}
    with session.begin():
        work_service.hear(session, Who(f"here:{queue}", "here", device), queue=queue, pid=1)


def test_auto_becomes_a_block_with_its_reason(client: TestClient, session: Session) -> None:
    hear(session, "cpu", 16e9)
    job = created(client)
    assert (job["tuning"]["type"], job["tuning"]["r"], job["tuning"]["lora_alpha"]) == ("lora", 16, "auto")
    (warning,) = job["warnings"]
    assert (warning["code"], warning["param"]) == ("tuning_chosen", "tuning")
    assert warning["message"].startswith("tuning 'auto' became lora of rank 16. Where an adapter on all layers")
    assert "LoRA Without Regret" in warning["message"]
    assert "send a block to decide yourself" in warning["suggestion"]
    told = [event["message"] for event in client.get(f"{JOBS}/{job['id']}/events").json()["data"]]
    assert warning["message"] in told


def test_the_choice_is_still_told_once_the_files_are_prepared(client: TestClient, session: Session) -> None:
    job_id = created(client)["id"]
    with session.begin():
        factories.prepare(session, take(session, "prepare"))
    job = client.get(f"{JOBS}/{job_id}").json()
    assert (job["status"], job["tuning"]["lora_alpha"]) == ("queued", 32)
    assert [warning["code"] for warning in job["warnings"]] == ["tuning_chosen"]


@pytest.mark.parametrize(
    ("method", "rows", "tuning"),
    [
        ("continued_pretraining", [{"text": "a"}], {"type": "lora", "r": 64, "use_rslora": True}),
        ("dpo", [{"prompt": "a", "chosen": "b", "rejected": "c"}], {"type": "lora", "r": 16, "use_rslora": False}),
    ],
)
def test_it_follows_the_method(client: TestClient, method: str, rows: list[Any], tuning: dict[str, Any]) -> None:
    job = created(client, tiny.jsonl(rows), method={"type": method})
    assert tuning.items() <= job["tuning"].items()


def test_it_follows_the_memory_of_the_workers_that_would_train(client: TestClient, session: Session) -> None:
    hear(session, "gpu-16", 16.1e9)
    hear(session, "gpu-24", 24.2e9)
    folder = get_settings().models / "eight-billion"
    folder.mkdir()
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 32000}
    config = {"model_type": "llama", "hidden_size": 4096, "max_position_embeddings": 4096, **shape}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    try:
        small = created(client, model="eight-billion")
        large = created(client, model="eight-billion", resources={"gpu_memory_gb": 20})
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert (small["queue"]["name"], small["tuning"]["type"]) == ("gpu-16", "qlora")
    assert "gpu-16 has 15.0" in small["warnings"][0]["message"]
    assert (large["queue"]["name"], large["tuning"]["type"]) == ("gpu-24", "lora")


def test_a_hub_model_gets_the_recipe_and_is_told_what_was_not_known(client: TestClient) -> None:
    job = created(client, model="org/name")
    assert job["tuning"]["type"] == "lora"
    assert "config.json is not here" in job["warnings"][0]["message"]


def test_an_adapter_goes_on_as_it_is(client: TestClient, session: Session, project: Project) -> None:
    with session.begin():
        make_queued_job(session, project, tuning={"type": "qlora", "r": 8, "target_modules": ["q_proj"]})
        claim = take(session)
        result = registry.register(session, make_manifest(session, claim), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])
        model = result.id
    job = created(client, model=model)
    assert {"type": "qlora", "r": 8, "target_modules": ["q_proj"]}.items() <= job["tuning"].items()
    assert "is an adapter, which goes on as it is" in job["warnings"][0]["message"]


def test_what_is_stored_is_a_block(client: TestClient, session: Session) -> None:
    job_id = created(client)["id"]
    with session.begin():
        assert session.get_one(Job, job_id).current_spec.tuning.type == "lora"
    assert [job["id"] for job in client.get(JOBS, params={"tuning": "lora"}).json()["data"]] == [job_id]


def test_a_job_with_a_block_is_told_nothing(client: TestClient) -> None:
    assert created(client, tuning={"type": "lora"})["warnings"] == []


def test_auto_and_the_block_that_it_becomes_are_two_requests(client: TestClient) -> None:
    file = client.post("/v1/files", **upload_body(CHATS)).json()["id"]
    body = {"model": "tiny", "training_file": file, "tuning": "auto"}
    key = {"Idempotency-Key": "one"}
    first = client.post(JOBS, json=body, headers=key).json()["id"]
    assert client.post(JOBS, json=body, headers=key).json()["id"] == first
    error = client.post(JOBS, json={**body, "tuning": {"type": "lora"}}, headers=key).json()["error"]
    assert error["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    "tuning", ["automatic", "", 3, None, {}, {"r": 8}, {"type": "lorra"}, {"type": "full", "r": 8}, {"type": "auto"}]
)
def test_a_request_refuses_what_a_spec_refuses_and_as_it_does(tuning: Any) -> None:
    def refusal(kind: type[JobSpec]) -> tuple[str | None, str]:
        body = {"model": "tiny", "training_file": "file-1", "tuning": tuning}
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(body)
        errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
        refused = invalid_request(errors, body)
        return refused.param, refused.message

    assert refusal(JobRequest) == refusal(JobSpec)


def test_the_schema_of_a_request_has_the_word_and_the_blocks() -> None:
    schema = TypeAdapter(JobRequest).json_schema()["properties"]["tuning"]
    word, blocks = schema["anyOf"]
    assert word == {"const": "auto", "type": "string"}
    assert set(blocks["discriminator"]["mapping"]) == {"full", "lora", "qlora"}
