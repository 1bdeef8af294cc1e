"""OpenAI's contract, webhooks: their endpoints, and what a receiver gets."""

import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta

import pytest
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    FineTuningJobCancelledWebhookEvent,
    WebhookEndpoint,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
)
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.webhooks import delivery
from app.webhooks.delivery import Delivered
from app.webhooks.models import EVENT_TYPES
from tests.conftest import SetSettings
from tests.contract.shapes import Endpoint, EndpointWithSecret, Page, WebhookEvent, read
from tests.factories import make_job
from tests.receiver import Received, receiving

ENDPOINTS = "/v1/webhook_endpoints"
HOOK = {"name": "hook", "url": "http://127.0.0.1:9/", "event_types": list(EVENT_TYPES)}


@pytest.fixture(autouse=True)
def allow_this_machine(set_settings: SetSettings) -> None:
    set_settings(webhook_allow="127.0.0.0/8")


def test_an_endpoint_has_every_field_and_its_secret_only_where_it_is_new(client: TestClient) -> None:
    made = read(client.post(ENDPOINTS, json=HOOK), EndpointWithSecret, WebhookEndpointWithSecret)
    assert (made.name, made.url, made.event_types) == tuple(HOOK.values())
    assert 24 <= len(base64.b64decode(made.signing_secret.removeprefix("whsec_"))) <= 64
    path = f"{ENDPOINTS}/{made.id}"
    shown = read(client.get(path), Endpoint, WebhookEndpoint)
    assert shown.model_dump() == made.model_dump(exclude={"signing_secret"})
    assert read(client.get(ENDPOINTS), Page[Endpoint], WebhookEndpoint).data == [shown]
    assert read(client.post(path, json={"name": "other"}), Endpoint, WebhookEndpoint).name == "other"
    rotated = read(client.post(f"{path}/rotate_secret"), EndpointWithSecret, WebhookEndpointWithSecret)
    assert rotated.signing_secret != made.signing_secret
    gone = client.delete(path).json()
    assert gone == {"id": made.id, "object": "webhook_endpoint.deleted", "deleted": True}
    DeletedWebhookEndpoint.model_validate(gone, strict=True)


def test_the_types_of_events_are_openais_three(client: TestClient) -> None:
    listed = client.get("/v1/webhook_event_types").json()
    types = [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    assert (listed["object"], sorted(listed["data"])) == ("list", sorted(types))


def test_a_delivery_is_an_event_signed_over_its_id_its_time_and_its_bytes(
    client: TestClient, session: Session, project: Project
) -> None:
    with receiving() as receiver:
        made = client.post(ENDPOINTS, json={**HOOK, "url": receiver.url}).json()
        with session.begin():
            job = make_job(session, project).id
        client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
        with session.begin():
            claimed = delivery.claim(session, lease=timedelta(seconds=60))
        assert claimed is not None
        assert delivery.attempt(claimed) == Delivered(200)
        (delivered,) = receiver.received
    event = WebhookEvent.model_validate(json.loads(delivered.body))
    FineTuningJobCancelledWebhookEvent.model_validate(json.loads(delivered.body), strict=True)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job)
    assert delivered.headers["content-type"] == "application/json"
    assert_signed(delivered, made["signing_secret"])


def test_a_sample_is_signed_likewise(client: TestClient) -> None:
    with receiving() as receiver:
        made = client.post(ENDPOINTS, json={**HOOK, "url": receiver.url}).json()
        answer = client.post(f"{ENDPOINTS}/{made['id']}/test", json={"event_type": "fine_tuning.job.failed"}).json()
        (sample,) = receiver.received
    WebhookEndpointTestResult.model_validate(answer, strict=True)
    assert answer == {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": made["id"],
        "event_type": "fine_tuning.job.failed",
        "status_code": 200,
        "success": True,
    }
    WebhookEvent.model_validate(json.loads(sample.body))
    assert_signed(sample, made["signing_secret"])


def assert_signed(received: Received, secret: str) -> None:
    """By the scheme's own words, without a library that has it."""
    headers = received.headers
    assert headers["webhook-id"] == json.loads(received.body)["id"]
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
