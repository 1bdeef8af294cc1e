"""The fine-tuning API: lists, refusals, tenancy."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import create_key
from app.settings import get_settings
from tests import factories, tiny
from tests.factories import upload_body

GOOD = b'{"prompt": "a", "completion": "b"}\n'
TALK = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'


def upload(client: TestClient, content: bytes = GOOD) -> str:
    response = client.post("/v1/files", **upload_body(content))
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_lists_page_by_cursor_newest_first(client: TestClient) -> None:
    file = upload(client)
    made = [
        client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}).json()["id"]
        for _ in range(5)
    ]
    first = client.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:2:-1], True)
    rest = client.get("/v1/fine_tuning/jobs", params={"limit": 5, "after": first["last_id"]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[2::-1], False)
    assert error_of(client.get("/v1/fine_tuning/jobs", params={"after": "ftjob-none"}))["param"] == "after"
    assert error_of(client.get("/v1/fine_tuning/jobs", params={"limit": 0}))["param"] == "limit"


def test_a_spec_without_its_file_is_refused(client: TestClient) -> None:
    error = error_of(client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": "file-none"}))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert "purpose 'fine-tune'" in error["message"]


def test_a_file_with_another_purpose_is_refused(client: TestClient) -> None:
    body = {**upload_body(GOOD), "data": {"purpose": "assistants"}}
    file = client.post("/v1/files", **body).json()["id"]
    error = error_of(client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}))
    assert error["param"] == "training_file"
    assert "purpose 'assistants'" in error["message"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + b"not json\n", "line 2: it is not JSON"),
        (TALK + b'{"messages": [{"role": "user", "content": "x"}]}\n', "line 2: no message with role 'assistant'"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}\n', "line 1: Invalid enum value 'bot'"),
        (b'{"question": "x"}\n', "line 1: it has question"),
        (GOOD + b'{"prompt": "x", "completion": ""}\n', "line 2: 'completion' is empty"),
        (b'{"prompt": "\xff", "completion": "b"}\n', "line 1: it is not valid UTF-8"),
        (b'{"prompt": "a\x00", "completion": "b"}\n', "line 1: there is a NUL byte"),
        (b"[" * 100_000, "line 1: it is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(client: TestClient, content: bytes, says: str) -> None:
    uploaded = client.post("/v1/files", **upload_body(content)).json()
    assert uploaded["status"] == "error"
    assert says in uploaded["status_details"]
    body = {"model": "tiny", "training_file": uploaded["id"]}
    error = error_of(client.post("/v1/fine_tuning/jobs", json=body))
    assert error["param"] == "training_file"
    assert says in error["message"]


def test_an_unknown_base_is_refused_with_the_nearest(client: TestClient) -> None:
    body = {"model": "tinny", "training_file": upload(client)}
    error = error_of(client.post("/v1/fine_tuning/jobs", json=body))
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "Nearest: tiny" in error["message"]


def test_pickled_weights_are_refused_and_not_listed(client: TestClient) -> None:
    folder = _base_without_weights("pickled")
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    body = {"model": "pickled", "training_file": upload(client)}
    error = error_of(client.post("/v1/fine_tuning/jobs", json=body))
    assert (error["param"], error["code"]) == ("model", "unsafe_weights")
    assert "safetensors" in error["message"]
    assert "pickled" not in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_a_base_with_code_of_its_own_is_refused(client: TestClient) -> None:
    folder = _base_without_weights("remote-code")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    (folder / "model.safetensors").write_bytes(b"")
    body = {"model": "remote-code", "training_file": upload(client)}
    assert error_of(client.post("/v1/fine_tuning/jobs", json=body))["code"] == "unsafe_weights"


def _base_without_weights(name: str) -> Path:
    folder = get_settings().models / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "model", ["../tiny", "tiny/..", "/etc", "a/b/c", "..", ".", "", "tiny\0", "a/b@../x", "ft:x:y::z"]
)
def test_a_model_name_never_becomes_a_path(client: TestClient, model: str) -> None:
    body = {"model": model, "training_file": upload(client)}
    assert error_of(client.post("/v1/fine_tuning/jobs", json=body))["param"] == "model"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"[" * 100_000, None),
        (b"1" * 9999, None),
    ],
)
def test_a_body_that_is_no_object_is_refused(client: TestClient, body: bytes, code: str | None) -> None:
    response = client.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    error = error_of(response)
    assert code is None or error["code"] == code


def test_a_body_beyond_the_limit_is_refused_unread(client: TestClient) -> None:
    body = b'{"model": "' + b"x" * get_settings().max_body_bytes + b'"}'
    response = client.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    error_of(response, 413)


def test_no_content_type_opens_a_way_around_the_limit(client: TestClient) -> None:
    body = b"x" * (get_settings().max_body_bytes + 1)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    error_of(client.post("/v1/fine_tuning/jobs", content=body, headers=kind), 413)
    error_of(client.post("/v1/files", content=body, headers={**kind, "Authorization": "Bearer ft-wrong"}), 401)


@pytest.mark.parametrize(
    "body",
    [
        r'{"model": "tiny", "training_file": "f", "metadata": {"\ud800": "x"}}',
        r'{"model": "tiny", "training_file": "f", "metadata": {"x": "\ud800"}}',
        r'{"model": "tiny", "training_file": "f", "tuning": {"type": "lora", "target_modules": ["\u0000"]}}',
        r'{"model": "\ud800", "training_file": "f"}',
        r'{"model": "tiny", "training_file": "\ud800"}',
        r'{"\ud800": 1}',
    ],
)
def test_text_that_is_no_text_is_refused(client: TestClient, body: str) -> None:
    error_of(client.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"}))


def test_wrong_keys_are_refused_in_the_same_words(client: TestClient) -> None:
    answers = [
        error_of(client.get("/v1/fine_tuning/jobs", headers={"Authorization": sent}), 401)
        for sent in ("", "Bearer ft-wrong", "Bearer ", "Basic abc", "ft-wrong")
    ]
    assert len({str(answer) for answer in answers}) == 1


def test_another_project_sees_nothing_of_this_one(client: TestClient, session: Session) -> None:
    file = upload(client)
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}).json()["id"]
    with session.begin():
        other = {"Authorization": f"Bearer {create_key(session, 'other', 'tests')}"}
    for path in (
        f"/v1/files/{file}",
        f"/v1/files/{file}/content",
        f"/v1/fine_tuning/jobs/{job}",
        f"/v1/fine_tuning/jobs/{job}/events",
        f"/v1/fine_tuning/jobs/{job}/attempts",
    ):
        assert client.get(path).status_code == 200
        error_of(client.get(path, headers=other), 404)
    error_of(client.post(f"/v1/fine_tuning/jobs/{job}/cancel", headers=other), 404)
    error_of(client.delete(f"/v1/files/{file}", headers=other), 404)
    assert client.get("/v1/fine_tuning/jobs", headers=other).json()["data"] == []
    body = {"model": "tiny", "training_file": file}
    assert error_of(client.post("/v1/fine_tuning/jobs", json=body, headers=other))["param"] == "training_file"


def test_a_waiting_job_is_cancelled_at_once_and_again(client: TestClient) -> None:
    body = {"model": "tiny", "training_file": upload(client)}
    job = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    for _ in range(2):
        answer = client.post(f"/v1/fine_tuning/jobs/{job}/cancel", headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_a_retrieved_job_shows_the_numbers_that_auto_became(client: TestClient, session: Session) -> None:
    body = {"model": "tiny", "training_file": upload(client, tiny.jsonl(tiny.chat_rows(3)))}
    job = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    with session.begin():
        factories.prepare(session, factories.take(session, "prepare"))
    shown = client.get(f"/v1/fine_tuning/jobs/{job}").json()
    assert shown["hyperparameters"] == {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0}
    assert shown["tuning"]["r"] == 16
    assert shown["base"]["id"] == "tiny"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405), ("GET", "/v1/files/", 404)]
)
def test_unknown_urls_answer_in_the_envelope(client: TestClient, method: str, path: str, status: int) -> None:
    error_of(client.request(method, path), status)


@pytest.mark.parametrize(
    "path",
    ["/v1/models/%00", "/v1/files/file-%00", "/v1/fine_tuning/jobs/%00/events", "/v1/fine_tuning/jobs?after=%00"],
)
def test_a_nul_character_in_an_address_is_refused(client: TestClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 400
    assert "NUL" in response.json()["error"]["message"]
    assert response.headers["x-request-id"]


def test_it_says_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz", headers={"Authorization": ""}).json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "degraded", "database": "ok", "broker": "ok", "workers": 0}
