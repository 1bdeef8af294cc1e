"""Recommendations over HTTP: what is known of the model, the file and the workers, and what is refused."""

import gzip
import json
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.files.models import File
from app.files.report import Report
from app.jobs import lifecycle
from app.registry import identity
from app.registry import service as registry
from app.registry.manifest import PublishedFile
from app.reports import service as reports
from app.settings import get_settings
from app.storage import Blob, get_storage
from app.work import service as work_service
from app.work.lifecycle import Who
from tests import tiny
from tests.app.plans.conftest import LLAMA_3_8B
from tests.factories import make_manifest, make_queued_job, take, upload_body

URL = "/v1/fine_tuning/recommendations"


def recommended(client: TestClient, **asked: Any) -> dict[str, Any]:
    response = client.post(URL, json={"goal": "task", "model": "tiny", **asked})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def upload(client: TestClient, content: bytes) -> str:
    return str(client.post("/v1/files", **upload_body(content)).json()["id"])


def hear(session: Session, queue: str, gigabytes: float, worker_id: str = "") -> None:
    """Of a worker with so much memory."""
    kind = "cpu" if queue == "cpu" else "cuda"
    device = {"kind": kind, "name": "a device", "memory_bytes": int(gigabytes * 1e9), "uuid": None}
    with session.begin():
        work_service.hear(session, Who(worker_id or f"here:{queue}", "here", device), queue=queue, pid=1)


def test_every_choice_has_its_reason_and_its_source(client: TestClient, llama: str) -> None:
    found = recommended(client, model=llama, rows=1000, tokens=200_000, gpu_memory_gb=[24, 80])
    assert found["object"] == "fine_tuning.recommendation"
    assert (found["method"]["value"], found["tuning"]["value"], found["r"]["value"]) == ("supervised", "lora", 16)
    assert (found["learning_rate"]["value"], found["n_epochs"]["value"]) == (2e-4, 3)
    assert found["trained_params"] == 41_943_040
    for name in ("method", "tuning", "r", "lora_alpha", "use_rslora", "target_modules", "learning_rate", "n_epochs"):
        assert found[name]["reason"]
        assert found[name]["source"]
    assert [(one["name"], one["fits"]) for one in found["devices"]] == [("24 GB", True), ("80 GB", True)]
    assert len(found["alternatives"]) == 2
    assert found["spec"] == {"method": {"type": "supervised"}, "tuning": {"type": "lora", "r": 16}}
    assert found["data"] == {
        "rows": 1000,
        "tokens": 200_000,
        "longest_row": None,
        "rows_are": None,
        "basis": "given",
    }


def test_what_is_recommended_makes_a_job(client: TestClient, session: Session) -> None:
    hear(session, "cpu", 16)
    file = upload(client, tiny.jsonl(tiny.chat_rows(8)))
    found = recommended(client, training_file=file, priority="quality")
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file, **found["spec"]}).json()
    assert (
        (job["tuning"]["type"], job["tuning"]["r"]) == (found["tuning"]["value"], found["r"]["value"]) == ("lora", 64)
    )
    assert job["tuning"]["use_rslora"] is True


def test_the_workers_of_the_service_are_the_hardware(client: TestClient, session: Session, llama: str) -> None:
    hear(session, "gpu-16", 16.1)
    assert recommended(client, model=llama)["tuning"]["value"] == "qlora"
    hear(session, "gpu-24", 25.8, "here:gpu-24:0")
    hear(session, "gpu-24", 24.2, "here:gpu-24:1")
    hear(session, "prepare", 1)
    found = recommended(client, model=llama)
    assert found["tuning"]["value"] == "lora"
    assert [(one["name"], one["gib"]) for one in found["devices"]] == [("gpu-16", 14.99), ("gpu-24", 22.54)]
    assert found["hardware"] == ["gpu-16", "gpu-24"]


@pytest.mark.parametrize(
    ("row", "rows_are", "method"),
    [
        ({"prompt": "a", "completion": "b"}, "answers", "supervised"),
        ({"text": "a"}, "text", "continued_pretraining"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences", "dpo"),
        ({"prompt": "a", "completion": "b", "label": True}, "judged", "kto"),
        ({"prompt": "a"}, "prompts", "reinforcement"),
    ],
)
def test_the_rows_of_a_file_decide_the_method(
    client: TestClient, row: dict[str, Any], rows_are: str, method: str
) -> None:
    content = tiny.jsonl([row, row])
    found = recommended(client, training_file=upload(client, content))
    assert (found["data"]["rows_are"], found["method"]["value"]) == (rows_are, method)
    assert (found["data"]["rows"], found["data"]["basis"]) == (2, "estimate")
    assert found["data"]["tokens"] == len(content) // 4


def test_a_packed_file_is_not_measured_by_its_bytes(client: TestClient) -> None:
    file = upload(client, gzip.compress(tiny.jsonl(tiny.chat_rows(8))))
    found = recommended(client, training_file=file)
    assert (found["data"]["rows"], found["data"]["tokens"]) == (8, None)
    assert any("not known" in note for note in found["notes"])


def test_a_report_for_this_base_counts_the_tokens(client: TestClient, session: Session) -> None:
    content = tiny.jsonl(tiny.chat_rows(8))
    file = upload(client, content)
    with session.begin():
        _enter(session, file, identity.of_tokenizer(get_settings().models / "tiny")[0])
    found = recommended(client, training_file=file)["data"]
    assert (found["tokens"], found["longest_row"], found["basis"]) == (123, 45, "report")
    assert recommended(client, training_file=file, model="org/other")["data"]["basis"] == "estimate"


def _enter(session: Session, file_id: str, tokenizer_sha256: str) -> None:
    """A report on a file, as preparing would leave it."""

    lengths = dict.fromkeys(("min", "mean", "p50", "p90", "p95", "p99", "max"), 45)
    part = {
        "format": {
            "container": "jsonl",
            "compression": None,
            "shape": "messages",
            "conversion": None,
            "ignored_fields": {},
        },
        "rows": {"total": 8, "used": 8, "refused": 0},
        "tokens": 360,
        "trained_tokens": 123,
        "trained_share": 0.34,
        "lengths": {**lengths, "histogram": []},
        "truncated": {"rows": 0, "prompt_tokens": 0, "trained_tokens": 0},
    }
    report = Report.model_validate(
        {
            "key": "k",
            "method": "supervised",
            "tokenizer_sha256": tokenizer_sha256,
            "chat_template_sha256": None,
            "template": None,
            "settings": {},
            "resolved": {"max_length": 45, "packing": False, "holdout": 0.0},
            "training": part,
            "validation": None,
            "findings": [],
            "overlaps": [],
            "refusals": [],
            "train_set": None,
            "validation_set": None,
        }
    )
    training_sha256 = session.get_one(File, file_id).sha256
    reports.enter_set(session, report, Blob("0" * 64, 0), training_sha256=training_sha256, validation_sha256=None)


def test_a_hub_model_gets_what_can_be_said_without_its_config(client: TestClient) -> None:
    found = recommended(client, model="org/name", tokens=10**6)
    assert (found["tuning"]["value"], found["trained_params"], found["devices"]) == ("lora", None, [])
    assert any("config.json is not here" in note for note in found["notes"])


def test_a_full_model_of_the_registry_is_known_by_its_published_config(
    client: TestClient, session: Session, project: Project
) -> None:
    model = _result(session, project, "full", {"type": "full"}, config=json.dumps(LLAMA_3_8B).encode())
    assert recommended(client, model=model)["trained_params"] == 41_943_040


def test_a_published_config_that_is_lost_is_as_one_that_is_elsewhere(
    client: TestClient, session: Session, project: Project
) -> None:
    found = recommended(client, model=_result(session, project, "full", {"type": "full"}))
    assert (found["tuning"]["value"], found["trained_params"]) == ("lora", None)


def test_an_adapter_is_no_base(client: TestClient, session: Session, project: Project) -> None:
    model = _result(session, project, "adapter", {"type": "lora"})
    error = client.post(URL, json={"goal": "task", "model": model}).json()["error"]
    assert error["param"] == "model"
    assert "Ask about its base, 'tiny'" in error["message"]


def _result(
    session: Session, project: Project, kind: str, tuning: dict[str, Any], *, config: bytes | None = None
) -> str:
    files = []
    if config is not None:
        with get_storage().incoming() as incoming:
            incoming.write(config)
            blob = get_storage().commit(incoming)
        files = [PublishedFile(name="config.json", bytes=blob.bytes, sha256=blob.sha256)]
    with session.begin():
        make_queued_job(session, project, tuning=tuning)
        claim = take(session)
        manifest = make_manifest(session, claim).model_copy(update={"kind": kind, "files": files})
        result = registry.register(session, manifest, manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])
        return result.id


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"goal": None}, "goal", "'style', 'task', 'new_knowledge', 'preference' or 'reasoning'"),
        ({"gaol": "task"}, "gaol", "Did you mean 'goal'?"),
        ({"model": "tinny"}, "model", "Nearest: tiny"),
        ({"model": "ft:tiny:default::0"}, "model", "There is no model"),
        ({"training_file": "file-none"}, "training_file", "does not exist"),
        ({"training_file": "file-none", "rows": 3}, "rows", "Leave one of the two out"),
        ({"tokens": 0}, "tokens", "greater than or equal to 1"),
        ({"tokens": "many"}, "tokens", "integer"),
        ({"gpu_memory_gb": []}, "gpu_memory_gb", "at least 1 item"),
        ({"gpu_memory_gb": [24, 0]}, "gpu_memory_gb.1", "greater than or equal to 1"),
        ({"priority": "speed"}, "priority", "'balanced'"),
        ({"rows_are": "chats"}, "rows_are", "'answers'"),
    ],
)
def test_a_wrong_field_of_the_question_is_named(
    client: TestClient, body: dict[str, Any], param: str, says: str
) -> None:
    response = client.post(URL, json={"goal": "task", "model": "tiny", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert says in error["message"]


def test_a_file_that_cannot_be_trained_on_is_refused(client: TestClient) -> None:
    response = client.post(URL, json={"goal": "task", "model": "tiny", "training_file": upload(client, b"no JSON\n")})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "training_file")
    assert "line 1: it is not JSON" in error["message"]


def test_nobody_without_a_key_is_answered(client: TestClient) -> None:
    client.headers["Authorization"] = "Bearer nobody"
    assert client.post(URL, json={"goal": "task", "model": "tiny"}).status_code == 401
