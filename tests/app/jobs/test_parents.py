"""Jobs that start from a registry model: what fits, and what is refused with the field to change."""

from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.jobs import lifecycle
from app.registry import service as registry
from app.registry.models import RegisteredModel
from tests.factories import make_manifest, make_queued_job, take, upload_body

ROWS = b'{"prompt": "a", "completion": "b"}\n'
ADAPTER = "ft:tiny:default::1"


@pytest.fixture
def adapter(session: Session, project: Project) -> str:
    """A LoRA result with r = 8 on two modules."""
    with session.begin():
        tuning = {"type": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]}
        make_queued_job(session, project, tuning=tuning)
        claim = take(session)
        result = registry.register(session, make_manifest(session, claim, ADAPTER), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])
    return ADAPTER


def create(client: TestClient, model: str, rows: bytes = ROWS, **fields: Any) -> Any:
    file = client.post("/v1/files", **upload_body(rows)).json()["id"]
    return client.post("/v1/fine_tuning/jobs", json={"model": model, "training_file": file, **fields})


def test_an_adapter_goes_on_with_the_shape_it_has(client: TestClient, adapter: str) -> None:
    job = create(client, adapter).json()
    assert (job["model"], job["tuning"]["type"]) == (adapter, "lora")
    assert (job["tuning"]["r"], job["tuning"]["target_modules"]) == (8, ["q_proj", "v_proj"])


def test_one_that_began_in_the_base_goes_on_with_the_rank_it_was_published_with(
    client: TestClient, session: Session, project: Project
) -> None:
    with session.begin():
        tuning = {"type": "lora", "r": 8, "lora_alpha": 16, "init_lora_weights": "pissa"}
        make_queued_job(session, project, tuning=tuning)
        claim = take(session)
        row = registry.register(session, make_manifest(session, claim, ADAPTER), manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, row, trained_tokens=4, result_files=[])
    tuning = create(client, ADAPTER).json()["tuning"]
    assert (tuning["r"], tuning["lora_alpha"], tuning["init_lora_weights"]) == (16, 32, True)
    error = create(client, ADAPTER, tuning={"type": "lora", "r": 8}).json()["error"]
    assert (error["param"], "trained with r 16" in error["message"]) == ("tuning.r", True)


def test_its_base_may_be_in_4_bits_this_time(client: TestClient, adapter: str) -> None:
    tuning = create(client, adapter, tuning={"type": "qlora", "r": 8}).json()["tuning"]
    assert (tuning["type"], tuning["r"]) == ("qlora", 8)


@pytest.mark.parametrize(
    ("tuning", "param", "says"),
    [
        ({"type": "full"}, "tuning.type", "only an adapter can go on training from it"),
        ({"type": "lora", "r": 16}, "tuning.r", "trained with r 8"),
        ({"type": "lora", "target_modules": "all-linear"}, "tuning.target_modules", "['q_proj', 'v_proj']"),
    ],
)
def test_another_shape_is_refused(
    client: TestClient, adapter: str, tuning: dict[str, Any], param: str, says: str
) -> None:
    response = create(client, adapter, tuning=tuning)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("kind", "method", "asked", "says"),
    [
        ("adapter", "reward", "supervised", "is a reward model: it gives numbers"),
        ("full", "reward", "dpo", "is a reward model: it gives numbers"),
        ("adapter", "supervised", "reward", "gives words: a reward model cannot go on from it"),
        ("full", "supervised", "reward", None),
        ("full", "reward", "reward", None),
        ("adapter", "supervised", "dpo", None),
    ],
)
def test_what_gives_numbers_does_not_go_on_giving_words(
    client: TestClient, session: Session, project: Project, adapter: str, kind: str, method: str, asked: str, says: Any
) -> None:
    with session.begin():
        row = registry.get(session, project, adapter)
        row.kind, row.method = kind, method  # type: ignore[assignment]  # one of the two
    rows = {
        "supervised": ROWS,
        "dpo": (pair := b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'),
        "reward": pair,
    }
    response = create(client, adapter, rows[asked], method={"type": asked})
    if says is None:
        assert response.json()["method"]["type"] == asked
    else:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "method.type")
        assert says in error["message"]


def test_an_adapter_whose_base_is_gone_from_the_registry_is_nobodys_start(
    client: TestClient, session: Session, project: Project, adapter: str
) -> None:
    full = "ft:tiny:default::0"
    with session.begin():
        row = registry.get(session, project, adapter)
        row.base = {**row.base, "id": full}
        job_id = row.job_id
    error = create(client, adapter).json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert f"the base it was trained on, '{full}', which is not in the registry any more" in error["message"]
    with session.begin():
        base = {column.key: getattr(row, column.key) for column in RegisteredModel.__table__.columns}
        session.add(RegisteredModel(**{**base, "id": full, "seq": None, "kind": "full", "step": 1, "job_id": job_id}))
    assert client.delete(f"/v1/models/{full}").status_code == 200
    assert create(client, adapter).json()["model"] == adapter  # hidden, and kept for who needs it


def test_a_deleted_model_is_nobodys_start(client: TestClient, adapter: str) -> None:
    assert client.delete(f"/v1/models/{adapter}").json() == {"id": adapter, "object": "model", "deleted": True}
    response = create(client, adapter)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "model_not_found")
    assert client.delete(f"/v1/models/{adapter}").status_code == 404


def test_another_projects_model_is_nobodys_start(client: TestClient, session: Session, adapter: str) -> None:
    with session.begin():
        client.headers["Authorization"] = f"Bearer {create_key(session, 'other', 'tests')}"
    response = create(client, adapter)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "model_not_found")


def test_a_base_model_is_not_deleted_over_http(client: TestClient) -> None:
    response = client.delete("/v1/models/tiny")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
