"""Requests that are repeated, lists that are filtered, answers that have not changed."""

import threading
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.db import new_session
from app.jobs import lifecycle, service
from app.jobs.models import Job
from app.jobs.service import RETRIED_WITHIN, Repeat
from app.jobs.spec import JobRequest
from tests.factories import make_file, make_queued_job, take, upload_body

ROWS = b'{"prompt": "a", "completion": "b"}\n'
RETRY = {"x-stainless-retry-count": "1"}


@pytest.fixture
def body(client: TestClient) -> dict[str, Any]:
    return {"model": "tiny", "training_file": client.post("/v1/files", **upload_body(ROWS)).json()["id"]}


def create(client: TestClient, body: dict[str, Any], **headers: str) -> str:
    response = client.post("/v1/fine_tuning/jobs", json=body, headers={**headers})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def listed(client: TestClient, **query: Any) -> list[str]:
    response = client.get("/v1/fine_tuning/jobs", params=query)
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


def test_a_retry_of_the_stock_client_makes_no_second_job(client: TestClient, body: dict[str, Any]) -> None:
    first = create(client, body, **{"x-stainless-retry-count": "0"})
    assert create(client, body, **RETRY) == first
    assert create(client, {**body, "suffix": "other"}, **RETRY) != first


def test_the_same_spec_sent_twice_on_purpose_makes_two_jobs(client: TestClient, body: dict[str, Any]) -> None:
    assert create(client, body) != create(client, body)


def test_a_retry_whose_first_request_never_came_makes_a_job(client: TestClient, body: dict[str, Any]) -> None:
    create(client, body, **RETRY)
    assert len(listed(client)) == 1


def test_a_retry_is_not_matched_with_a_job_of_long_ago(
    client: TestClient, session: Session, body: dict[str, Any]
) -> None:
    old = create(client, body)
    with session.begin():
        session.execute(update(Job).values(created_at=Job.created_at - RETRIED_WITHIN))
    assert create(client, body, **RETRY) != old


def test_a_retry_is_not_matched_with_another_projects_job(
    client: TestClient, session: Session, body: dict[str, Any]
) -> None:
    create(client, body)
    with session.begin():
        other = create_key(session, "other", "tests")
    headers = {"Authorization": f"Bearer {other}", **RETRY}
    file = client.post("/v1/files", headers=headers, **upload_body(ROWS)).json()["id"]
    create(client, {**body, "training_file": file}, **headers)
    assert client.get("/v1/fine_tuning/jobs", headers=headers).json()["data"][0]["training_file"] == file


def test_a_retry_without_a_key_is_not_matched_with_a_job_that_came_with_one(
    client: TestClient, body: dict[str, Any]
) -> None:
    keyed = create(client, body, **{"Idempotency-Key": "k"})
    assert create(client, body, **RETRY) != keyed


@pytest.mark.parametrize("running", [True, False])
def test_a_retry_is_not_matched_with_a_job_that_was_cancelled_since(
    client: TestClient, session: Session, body: dict[str, Any], *, running: bool
) -> None:
    cancelled = create(client, body)
    if running:  # then the cancel is only wished when the retry comes
        with session.begin():
            take(session, "prepare")
    assert client.post(f"/v1/fine_tuning/jobs/{cancelled}/cancel").json()["desired"] == "cancel"
    again = create(client, body, **RETRY)
    assert again != cancelled
    assert create(client, body, **RETRY) == again


def test_an_idempotency_key_makes_one_job(client: TestClient, body: dict[str, Any]) -> None:
    first = create(client, body, **{"Idempotency-Key": "k"})
    assert create(client, body, **{"Idempotency-Key": "k"}) == first
    assert create(client, body, **{"Idempotency-Key": "l"}) != first
    response = client.post("/v1/fine_tuning/jobs", json={**body, "suffix": "other"}, headers={"Idempotency-Key": "k"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "idempotency_key_reused")
    assert first in error["message"]


@pytest.mark.parametrize("repeat", [Repeat("k"), Repeat(is_retry=True)], ids=["key", "retry"])
def test_of_requests_that_come_together_one_makes_the_job(session: Session, project: Project, repeat: Repeat) -> None:
    with session.begin():
        file = make_file(session, project)
    spec = JobRequest(model="tiny", training_file=file.id)

    def submit() -> None:
        with new_session() as mine, mine.begin():
            service.submit(mine, project, spec, repeat)

    together = [threading.Thread(target=submit) for _ in range(8)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    with session.begin():
        assert len(session.scalars(select(Job.id)).all()) == 1


def test_jobs_are_listed_by_metadata(client: TestClient, body: dict[str, Any]) -> None:
    plain = create(client, body)
    both = create(client, {**body, "metadata": {"team": "support", "run": "a b"}})
    empty = create(client, {**body, "metadata": {"team": ""}})
    assert listed(client, **{"metadata[team]": "support"}) == [both]
    assert listed(client, **{"metadata[team]": "support", "metadata[run]": "a b"}) == [both]
    assert listed(client, **{"metadata[team]": "support", "metadata[run]": "c"}) == []
    assert listed(client, **{"metadata[team]": ""}) == [empty]
    assert listed(client, metadata="null") == [plain]
    response = client.get("/v1/fine_tuning/jobs", params={"metadata": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "metadata")


def test_jobs_are_listed_by_what_a_dashboard_asks(client: TestClient, session: Session, body: dict[str, Any]) -> None:
    lora = create(client, {**body, "suffix": "Boxes_1"})
    full = create(client, {**body, "tuning": {"type": "full"}, "metadata": {"note": "50% of it"}})
    client.post(f"/v1/fine_tuning/jobs/{full}/cancel")
    assert listed(client, status="cancelled") == [full]
    assert listed(client, status=["cancelled", "validating_files"]) == [full, lora]
    assert listed(client, tuning="lora") == [lora]
    assert listed(client, method="supervised", model="tiny") == [full, lora]
    assert listed(client, model="other") == []
    assert listed(client, q="boxes_") == [lora]
    assert listed(client, q="50%") == [full]
    assert listed(client, q="%") == [full]
    assert listed(client, order="asc") == [lora, full]
    assert listed(client, created_after=2**32) == []
    response = client.get("/v1/fine_tuning/jobs", params={"status": "done"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "status.0")


def test_an_answer_that_has_not_changed_is_not_sent_again(
    client: TestClient, session: Session, project: Project
) -> None:
    with session.begin():
        job = make_queued_job(session, project)
    for path in (f"/v1/fine_tuning/jobs/{job.id}", "/v1/fine_tuning/jobs"):
        first = client.get(path)
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert client.get(path, headers={"if-none-match": '"other"'}).json() == first.json()
    etag = client.get(f"/v1/fine_tuning/jobs/{job.id}").headers["etag"]
    with session.begin():
        lifecycle.pause(session, session.get_one(Job, job.id))
    changed = client.get(f"/v1/fine_tuning/jobs/{job.id}", headers={"if-none-match": f'"x", W/{etag}'})
    assert (changed.status_code, changed.json()["status"]) == (200, "paused")
