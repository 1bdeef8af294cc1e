"""OpenAI's contract, what all calls share: headers, refusals, lists."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.jobs import events, lifecycle
from app.main import create_app
from app.registry import names
from app.registry import service as registry
from app.settings import get_settings
from app.webhooks import service as webhooks
from app.webhooks.models import EVENT_TYPES
from tests.contract.shapes import Page, Shape, refusal
from tests.factories import make_file, make_job, make_manifest, make_queued_job, take
from tests.stock import stock

STAINLESS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 3.54.0",
    "OpenAI-Organization": "org-123",
    "OpenAI-Project": "proj_abc",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "3.54.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.9",
    "x-stainless-async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
JSON = {"Content-Type": "application/json"}


class Item(Shape):
    """By the one field that the items of every list have."""

    id: str


@pytest.fixture
def job(session: Session, project: Project) -> str:
    """Of three, with eleven checkpoints; and three files."""
    with session.begin():
        for _ in range(3):
            make_file(session, project)
        for _ in range(2):
            lifecycle.cancel(session, make_job(session, project))
        made = make_queued_job(session, project).id
        claim = take(session)
        for step in range(1, 12):
            name = names.of_checkpoint("ft:tiny:default::1", step)
            manifest = make_manifest(session, claim, name).model_copy(update={"step": step})
            model = registry.register(session, manifest, manifest_sha256="6" * 64)
            lifecycle.enter_checkpoint(session, model, {"step": step})
    return made


def test_every_answer_has_a_request_id_of_its_own_which_the_stock_client_shows(client: TestClient, job: str) -> None:
    etag = client.get(f"/v1/fine_tuning/jobs/{job}").headers["etag"]
    answers = [
        client.get(f"/v1/fine_tuning/jobs/{job}"),
        client.get(f"/v1/fine_tuning/jobs/{job}", headers={"If-None-Match": etag}),
        client.get(f"/v1/files/{stock(client).files.list().data[0].id}/content"),
        client.get("/v1/files", headers={"Authorization": "Bearer none"}),
        client.get("/v1/nothing"),
        client.get("/v1/models/%00"),
        client.get("/healthz"),
    ]
    assert [answer.status_code for answer in answers] == [200, 304, 200, 401, 404, 400, 200]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(one.startswith("req_") for one in ids)
    assert len(set(ids)) == len(ids)
    assert (stock(client).fine_tuning.jobs.retrieve(job)._request_id or "").startswith("req_")


def test_what_the_stock_client_says_of_itself_is_taken_with_every_method(client: TestClient, job: str) -> None:
    """JSON is the type of a DELETE and of a POST that have no body at all."""
    file = stock(client).files.list().data[0].id
    for method, path in (
        ("GET", f"/v1/fine_tuning/jobs/{job}"),
        ("POST", f"/v1/fine_tuning/jobs/{job}/pause"),
        ("POST", f"/v1/fine_tuning/jobs/{job}/resume"),
        ("POST", f"/v1/fine_tuning/jobs/{job}/cancel"),
        ("DELETE", f"/v1/files/{file}"),
    ):
        answer = client.request(method, path, headers=STAINLESS)
        assert (answer.status_code, answer.request.read()) == (200, b""), answer.text


def test_a_refusal_has_the_envelope_whatever_refuses(client: TestClient) -> None:
    """With OpenAI's type for each status; `{"detail": …}` would leave the stock client without a word."""
    too_large = b'{"model": "' + b"x" * get_settings().max_body_bytes + b'"}'
    jobs = "/v1/fine_tuning/jobs"
    invalid, unknown = "invalid_request_error", "not_found_error"
    for status, kind, param, answer in (
        (400, invalid, None, client.post(jobs, content=b"{", headers=JSON)),
        (400, invalid, None, client.post(jobs)),
        (400, invalid, "training_file", client.post(jobs, json={"model": "tiny"})),
        (400, invalid, "limit", client.get(jobs, params={"limit": "many"})),
        (400, invalid, "file", client.post("/v1/files", json={})),
        (401, "authentication_error", None, client.get(jobs, headers={"Authorization": "Bearer none"})),
        (404, unknown, "fine_tuning_job_id", client.get(f"{jobs}/ftjob-none")),
        (404, unknown, "file_id", client.get("/v1/files/file-none/content")),
        (404, unknown, "model", client.get("/v1/models/none")),
        (404, invalid, None, client.get("/v1/assistants")),
        (405, invalid, None, client.put(jobs)),
        (405, invalid, None, client.options(jobs)),
        (413, invalid, None, client.post(jobs, content=too_large, headers=JSON)),
    ):
        error = refusal(answer, status)
        assert (error.type, error.param) == (kind, param), error


def test_a_crash_has_the_envelope_too(key: str) -> None:
    api = create_app()

    @api.get("/v1/crash")
    def crash() -> None:
        raise ZeroDivisionError("of no concern to a stranger")

    with TestClient(api, raise_server_exceptions=False) as client:
        answer = client.get("/v1/crash")
    error = refusal(answer, 500)
    assert error.type == "server_error"
    assert answer.headers["x-request-id"] in error.message
    assert "concern" not in answer.text


def test_the_description_promises_no_422_and_files_in_pages_of_10_000(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path in described["paths"].values():
        for call in path.values():
            assert "422" not in call["responses"]
    parameters = described["paths"]["/v1/files"]["get"]["parameters"]
    assert [one["schema"]["default"] for one in parameters if one["name"] == "limit"] == [10_000]


@pytest.fixture
def ended(session: Session, project: Project) -> str:
    """A job that has failed."""
    with session.begin():
        made = make_job(session, project).id
        lifecycle.fail(session, take(session, "prepare"), {"code": "x", "message": "It failed.", "param": None})
    return made


def test_no_mistake_of_a_user_is_answered_with_what_clients_repeat(
    client: TestClient, session: Session, ended: str
) -> None:
    """Which is 408, 409, 429 and everything from 500 on, unless `x-should-retry` says otherwise."""
    jobs = "/v1/fine_tuning/jobs"
    with session.begin():
        theirs = {"Authorization": f"Bearer {create_key(session, 'other', 'tests')}"}
    for answer in (
        *(client.post(f"{jobs}/{ended}/{move}") for move in ("cancel", "pause", "resume")),
        client.post(f"{jobs}/{ended}/cancel", headers=theirs),
        client.post(jobs, json={"model": "tiny", "training_file": "file-none", "method": {"type": "dpo"}}),
        client.delete("/v1/models/tiny"),
        client.delete("/v1/files/file-none"),
        client.post("/v1/uploads/upload_none/complete", json={"part_ids": ["part_none"]}),
        client.post("/v1/fine_tuning/checkpoints/none/permissions", json={"project_ids": ["proj_none"]}),
    ):
        refusal(answer, answer.status_code)
        assert answer.status_code in (400, 404)


def test_a_list_is_walked_by_its_last_id_until_it_has_no_more(
    client: TestClient, session: Session, project: Project, job: str
) -> None:
    with session.begin():
        types = list(EVENT_TYPES)
        hooks = [
            webhooks.create(session, project, name="hook", url="https://a.b/", event_types=types).id for _ in range(3)
        ]
        for _ in range(3):
            webhooks.announce(session, project.id, EVENT_TYPES[0], subject=job, at=datetime.now(UTC))
    for path, length in (
        ("/v1/files", 3),
        ("/v1/fine_tuning/jobs", 3),
        (f"/v1/fine_tuning/jobs/{job}/events", 15),
        (f"/v1/fine_tuning/jobs/{job}/checkpoints", 11),
        ("/v1/webhook_endpoints", 3),
        (f"/v1/webhook_endpoints/{hooks[0]}/deliveries", 3),
    ):
        whole = page(client, path, limit=100)
        ids = [one.id for one in whole.data]
        assert (len(set(ids)), whole.has_more) == (length, False), path
        walked: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        for _ in range(0, length, 2):
            some = page(client, path, **query)
            walked += [one.id for one in some.data]
            assert some.has_more is (len(walked) < length), path
            query["after"] = some.last_id
        assert walked == ids
        beyond = page(client, path, after=ids[-1])
        assert (beyond.data, beyond.has_more, beyond.first_id, beyond.last_id) == ([], False, None, None)
        assert refusal(client.get(path, params={"after": "none"})).param == "after"


def page(client: TestClient, path: str, **query: Any) -> Page[Item]:
    """One page, its ids those of its first and last item."""
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    found = Page[Item].model_validate(answer.json())
    if found.data:
        assert (found.first_id, found.last_id) == (found.data[0].id, found.data[-1].id)
    return found


def test_a_page_is_as_long_as_openais_where_nothing_is_said(
    client: TestClient, session: Session, project: Project, job: str
) -> None:
    with session.begin():
        for _ in range(20):
            make_job(session, project)
            events.tell(session, job, "There is more to tell.")
    jobs = "/v1/fine_tuning/jobs"
    for path, length in ((jobs, 20), (f"{jobs}/{job}/events", 20), (f"{jobs}/{job}/checkpoints", 10)):
        found = page(client, path)
        assert (len(found.data), found.has_more) == (length, True)
