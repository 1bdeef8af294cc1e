"""Webhook endpoints, as a user manages them."""

import asyncio
import json
import logging
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.main import create_app
from app.webhooks import addresses, service
from app.webhooks.models import EVENT_TYPES, WebhookDelivery, WebhookEndpoint
from tests.conftest import SetSettings
from tests.receiver import receiving
from tests.running import wait_for

URL = "http://127.0.0.1:9/hook"
ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture(autouse=True)
def allow_this_machine(set_settings: SetSettings) -> None:
    set_settings(webhook_allow="127.0.0.0/8")


@pytest.fixture
def stock(client: TestClient, key: str) -> openai.OpenAI:
    """The stock client, calling the API in this process."""
    return openai.OpenAI(api_key=key, base_url="http://testserver/v1", http_client=client, max_retries=0)


def make(client: TestClient, **fields: Any) -> Any:
    return client.post(ENDPOINTS, json={"name": "hook", "url": URL, "event_types": [EVENT_TYPES[0]]} | fields)


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_stock_client_manages_endpoints(stock: openai.OpenAI) -> None:
    assert set(stock.webhooks.event_types.list().data) == set(EVENT_TYPES)
    made = stock.webhooks.create(name="hook", url=URL, event_types=["fine_tuning.job.succeeded"])
    assert (made.object, made.name, made.url) == ("webhook_endpoint", "hook", URL)
    assert made.signing_secret.startswith("whsec_")
    assert made.updated_at == made.created_at

    got = stock.webhooks.retrieve(made.id)
    assert got.event_types == ["fine_tuning.job.succeeded"]
    assert got.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    changed = stock.webhooks.update(made.id, name="other", event_types=["fine_tuning.job.failed"])
    assert (changed.name, changed.url, changed.event_types) == ("other", URL, ["fine_tuning.job.failed"])

    more = [stock.webhooks.create(name=name, url=URL, event_types=["fine_tuning.job.failed"]).id for name in "ab"]
    assert [endpoint.id for endpoint in stock.webhooks.list(limit=2)] == [*reversed(more), made.id]

    rotated = stock.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    gone = stock.webhooks.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        stock.webhooks.retrieve(made.id)


def test_the_stock_client_tests_an_endpoint_and_unwraps_the_sample(stock: openai.OpenAI) -> None:
    with receiving() as receiver:
        made = stock.webhooks.create(name="hook", url=receiver.url, event_types=["fine_tuning.job.failed"])
        receiver.answer = lambda _: 418
        result = stock.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (result.object, result.success, result.status_code) == ("webhook_endpoint.test", True, 418)
    assert (result.webhook_endpoint_id, result.event_type) == (made.id, "fine_tuning.job.failed")
    (sample,) = receiver.received
    event = stock.webhooks.unwrap(sample.body, sample.headers, secret=made.signing_secret)
    assert (event.type, event.id) == ("fine_tuning.job.failed", sample.headers["webhook-id"])


def test_a_test_that_nobody_answers_says_so(client: TestClient) -> None:
    with receiving() as closed:
        pass
    endpoint = make(client, url=closed.url).json()["id"]
    error = error_of(client.post(f"{ENDPOINTS}/{endpoint}/test", json={"event_type": EVENT_TYPES[0]}))
    assert (error["param"], error["code"]) == ("url", "webhook_not_answered")


def test_more_tests_at_once_than_are_made_at_once_are_told_to_come_again(client: TestClient, session: Session) -> None:
    """Of one project; another's test goes on beside them."""
    with session.begin():
        other = {"Authorization": f"Bearer {create_key(session, 'other', 'tests')}"}
    end = threading.Event()
    with receiving() as silent, receiving() as quick, ThreadPoolExecutor() as threads:
        silent.before = lambda: end.wait(10)
        path = f"{ENDPOINTS}/{make(client, url=silent.url).json()['id']}/test"
        sample = {"event_type": EVENT_TYPES[0]}
        waiting = [threads.submit(client.post, path, json=sample) for _ in range(2)]
        wait_for(lambda: len(silent.received) == 2, 5)
        refused = client.post(path, json=sample)
        theirs = {"name": "hook", "url": quick.url, "event_types": [EVENT_TYPES[0]]}
        endpoint = client.post(ENDPOINTS, json=theirs, headers=other).json()["id"]
        assert client.post(f"{ENDPOINTS}/{endpoint}/test", json=sample, headers=other).json()["status_code"] == 200
        end.set()
        assert [test.result().status_code for test in waiting] == [200, 200]
        assert client.post(path, json=sample).status_code == 200
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "1"


def test_a_sample_is_signed_as_an_event_would_be(client: TestClient) -> None:
    with receiving() as receiver:
        endpoint = make(client, url=receiver.url).json()["id"]
        client.post(f"{ENDPOINTS}/{endpoint}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True})
        client.post(f"{ENDPOINTS}/{endpoint}/test", json={"event_type": EVENT_TYPES[0]})
    assert len(receiver.received[0].headers["webhook-signature"].split()) == 2


def test_an_error_of_the_database_names_no_secret(session: Session, project: Project) -> None:
    stranger = Project(id="proj_none", name="of no row")
    with pytest.raises(IntegrityError) as error, session.begin():
        service.create(session, stranger, name="hook", url=URL, event_types=[EVENT_TYPES[0]])
    assert "INSERT INTO webhook_endpoints" in str(error.value)
    assert "whsec_" not in str(error.value)


def test_a_secret_is_shown_once_and_logged_never(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = make(client).json()
    rotated = client.post(f"{ENDPOINTS}/{made['id']}/rotate_secret").json()
    for response in (
        client.get(ENDPOINTS),
        client.get(f"{ENDPOINTS}/{made['id']}"),
        client.post(f"{ENDPOINTS}/{made['id']}", json={"name": "other"}),
        client.get(f"{ENDPOINTS}/{made['id']}/deliveries"),
    ):
        assert response.status_code == 200
        for secret in (made["signing_secret"], rotated["signing_secret"]):
            assert secret not in response.text
            assert secret not in caplog.text


def test_an_update_that_changes_nothing_is_no_update(client: TestClient, session: Session) -> None:
    made = make(client).json()
    with session.begin():
        session.execute(update(WebhookEndpoint).values(updated_at=WebhookEndpoint.created_at - timedelta(minutes=1)))
    path = f"{ENDPOINTS}/{made['id']}"
    same = client.post(path, json={"name": "hook", "url": URL, "event_types": made["event_types"]}).json()
    assert same["updated_at"] == made["created_at"] - 60
    assert client.post(path, json={"name": "new"}).json()["updated_at"] >= made["created_at"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "http://2130706433/"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "http://user:password@127.0.0.1/"}, "url"),
        ({"url": "http://127.0.0.1/\0"}, "url"),
        ({"url": 7}, "url"),
        ({"url": "http://127.0.0.1/" + "a" * 2048}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["fine_tuning.job.exploded"]}, "event_types.0"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    assert error_of(make(client, **fields))["param"] == param
    endpoint = make(client).json()["id"]
    assert error_of(client.post(f"{ENDPOINTS}/{endpoint}", json=fields))["param"] == param


def test_half_a_character_is_refused_and_no_secret_is_logged_with_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for field in ("name", "url"):
        body = {"name": "hook", "url": URL, "event_types": [EVENT_TYPES[0]]} | {field: "http://127.0.0.1/HALF"}
        content = json.dumps(body).replace("HALF", "\\ud800")
        response = client.post(ENDPOINTS, content=content, headers={"content-type": "application/json"})
        assert error_of(response)["param"] == field
    assert "whsec_" not in caplog.text


def test_names_that_take_long_to_resolve_hold_up_no_other_request(
    key: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the API has threads; beyond a few of a project's they are told to come again."""
    end, ask = threading.Event(), socket.getaddrinfo

    def ask_slowly(host: Any, *args: Any, **options: Any) -> Any:
        if host == "slow.invalid":
            end.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ask(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask_slowly)
    monkeypatch.setattr(addresses, "PATIENCE", 20)
    with session.begin():
        other = {"Authorization": f"Bearer {create_key(session, 'other', 'tests')}"}

    async def create_all() -> list[Response]:
        headers = {"Authorization": f"Bearer {key}"}
        transport = ASGITransport(create_app())
        async with AsyncClient(transport=transport, base_url="http://tests", headers=headers, timeout=60) as api:
            fields = {"name": "hook", "event_types": [EVENT_TYPES[0]]}
            given = fields | {"url": "https://slow.invalid/"}
            slow = [asyncio.create_task(api.post(ENDPOINTS, json=given)) for _ in range(45)]
            await asyncio.sleep(1)
            try:
                async with asyncio.timeout(10):
                    assert (await api.get("/v1/files")).status_code == 200
                    theirs = await api.post(ENDPOINTS, json=fields | {"url": URL}, headers=other)
                    assert theirs.status_code == 200
            finally:
                end.set()
            return await asyncio.gather(*slow)

    answers = asyncio.run(create_all())
    assert Counter(answer.status_code for answer in answers) == {400: 4, 429: 41}
    assert {answer.json()["error"]["param"] for answer in answers} == {"url", None}


def test_a_refused_address_is_named_with_the_setting_that_allows_it(
    client: TestClient, set_settings: SetSettings
) -> None:
    set_settings(webhook_allow="")
    error = error_of(make(client))
    assert (error["param"], error["code"]) == ("url", "address_not_allowed")
    assert "127.0.0.1" in error["message"]
    assert "FINETUNED_WEBHOOK_ALLOW" in error["message"]


def test_a_project_has_so_many_endpoints(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_ENDPOINTS", 2)
    assert [make(client).status_code for _ in range(3)] == [200, 200, 400]


def test_endpoints_are_their_projects_alone(client: TestClient, session: Session, project: Project) -> None:
    endpoint = make(client).json()["id"]
    with session.begin():
        service.announce(session, project.id, EVENT_TYPES[0], subject="ftjob-x", at=project.created_at)
        delivery = session.scalar(select(WebhookDelivery.id))
        client.headers["Authorization"] = f"Bearer {create_key(session, 'other', 'tests')}"
    path = f"{ENDPOINTS}/{endpoint}"
    assert client.get(ENDPOINTS).json()["data"] == []
    for response in (
        client.get(path),
        client.post(path, json={"name": "mine"}),
        client.delete(path),
        client.post(f"{path}/rotate_secret"),
        client.post(f"{path}/test", json={"event_type": EVENT_TYPES[0]}),
        client.get(f"{path}/deliveries"),
        client.post(f"{path}/deliveries/{delivery}/retry"),
    ):
        assert error_of(response, 404)["param"] == "webhook_endpoint_id"


@pytest.mark.parametrize("path", [ENDPOINTS, "/v1/webhook_event_types"])
def test_nothing_is_told_without_a_key(client: TestClient, path: str) -> None:
    del client.headers["Authorization"]
    assert error_of(client.get(path), 401)["code"] == "invalid_api_key"


def test_deliveries_are_listed_newest_first_and_can_be_sent_again(
    client: TestClient, session: Session, project: Project
) -> None:
    endpoint = make(client).json()["id"]
    path = f"{ENDPOINTS}/{endpoint}/deliveries"
    with session.begin():
        for name in ("ftjob-a", "ftjob-b", "ftjob-c"):
            service.announce(session, project.id, EVENT_TYPES[0], subject=name, at=project.created_at)
    first = client.get(path, params={"limit": 2}).json()
    assert [row["data"]["id"] for row in first["data"]] == ["ftjob-c", "ftjob-b"]
    rest = client.get(path, params={"after": first["last_id"]}).json()
    (oldest,) = rest["data"]
    assert (oldest["object"], oldest["type"], oldest["status"]) == (
        "webhook_endpoint.delivery",
        EVENT_TYPES[0],
        "pending",
    )
    assert (oldest["attempts"], oldest["last_status_code"], oldest["delivered_at"]) == (0, None, None)

    with session.begin():
        session.execute(update(WebhookDelivery).values(status="failed", next_attempt_at=None, failures=10))
    again = client.post(f"{path}/{oldest['id']}/retry").json()
    assert (again["id"], again["event"], again["status"]) == (oldest["id"], oldest["event"], "pending")
    assert again["next_attempt_at"] is not None
    assert error_of(client.post(f"{path}/whd_none/retry"), 404)["param"] == "delivery_id"


def test_a_disabled_endpoint_is_shown_so_and_enabled_by_setting_its_url(
    client: TestClient, session: Session, project: Project
) -> None:
    endpoint = make(client).json()["id"]
    with session.begin():
        service.announce(session, project.id, EVENT_TYPES[0], subject="ftjob-a", at=project.created_at)
        service.disable(session, endpoint, "http://127.0.0.1/of/before")
    path = f"{ENDPOINTS}/{endpoint}"
    assert client.get(path).json()["disabled_at"] is None
    with session.begin():
        service.disable(session, endpoint, URL)
        service.announce(session, project.id, EVENT_TYPES[0], subject="ftjob-b", at=project.created_at)
    assert client.get(path).json()["disabled_at"] is not None
    (delivery,) = client.get(f"{path}/deliveries").json()["data"]
    assert delivery["status"] == "failed"
    retry = f"{path}/deliveries/{delivery['id']}/retry"
    assert "disabled" in error_of(client.post(retry))["message"]
    assert client.post(path, json={"url": URL}).json()["disabled_at"] is None
    assert client.post(retry).json()["status"] == "pending"


def test_deliveries_that_are_long_over_are_forgotten(client: TestClient, session: Session, project: Project) -> None:
    make(client)
    with session.begin():
        for name in ("ftjob-old", "ftjob-waiting"):
            service.announce(session, project.id, EVENT_TYPES[0], subject=name, at=project.created_at)
        session.execute(update(WebhookDelivery).values(created_at=WebhookDelivery.created_at - timedelta(days=31)))
        over = WebhookDelivery.body.contains("ftjob-old")
        session.execute(update(WebhookDelivery).where(over).values(status="failed", next_attempt_at=None))
        service.forget(session, timedelta(days=30))
        (left,) = session.scalars(select(WebhookDelivery.body))
    assert "ftjob-waiting" in left
