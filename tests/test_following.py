"""Who follows a job hears everything, once, in order, until it has ended: events, its log, a browser with a token."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests import tiny
from tests.running import Service, wait_for

STEPS = 12


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    return service.upload(tiny.chat_rows(40))


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def path(job_id: str, what: str = "events/stream") -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/{what}".removesuffix("/")


def frames(client: httpx.Client, job_id: str, **options: Any) -> list[dict[str, str]]:
    """The fields of each server-sent event, until the stream ends."""
    found: list[dict[str, str]] = []
    with client.stream("GET", path(job_id), **options) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    for block in text.split("\n\n"):
        lines = [line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")]
        found.append({line[0]: line[1] for line in lines})
    return [frame for frame in found if "data" in frame]


@pytest.fixture(scope="module")
def followed(service: Service, http: httpx.Client, rows: str) -> tuple[str, list[list[dict[str, str]]]]:
    """A job, and what ten who followed it from its first moment heard."""
    job_id = service.submit(rows, max_steps=STEPS, batch_size=4)
    with ThreadPoolExecutor(10) as threads:
        return job_id, list(threads.map(lambda _: frames(http, job_id), range(10)))


def test_every_follower_hears_every_event_once_in_order(
    service: Service, followed: tuple[str, list[list[dict[str, str]]]]
) -> None:
    job_id, heard = followed
    told = [event.id for event in service.events(job_id)]
    for frames_ in heard:
        assert [frame["id"] for frame in frames_[:-1]] == told
        assert (frames_[-1]["event"], json.loads(frames_[-1]["data"])) == (
            "end",
            {"id": job_id, "status": "succeeded"},
        )
    first = json.loads(heard[0][0]["data"])
    assert (first["object"], first["message"]) == ("fine_tuning.job.event", f"Created fine-tuning job: {job_id}")


def test_a_stream_is_taken_up_after_the_last_event_that_came(
    http: httpx.Client, followed: tuple[str, list[list[dict[str, str]]]]
) -> None:
    job_id, (heard, *_) = followed
    last = heard[4]["id"]
    assert frames(http, job_id, headers={"Last-Event-ID": last}) == heard[5:]
    assert frames(http, job_id, params={"after": last}) == heard[5:]


def test_who_has_heard_all_is_told_to_ask_no_more(
    http: httpx.Client, followed: tuple[str, list[list[dict[str, str]]]]
) -> None:
    job_id, (heard, *_) = followed
    response = http.get(path(job_id), headers={"Last-Event-ID": heard[-2]["id"]})
    assert (response.status_code, response.content) == (204, b"")
    error = http.get(path(job_id), headers={"Last-Event-ID": "ftevent-none"})
    assert (error.status_code, error.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert http.get(path("ftjob-none")).status_code == 404


def test_a_browser_follows_with_a_token_that_opens_nothing_else(
    service: Service, http: httpx.Client, rows: str, followed: tuple[str, list[list[dict[str, str]]]]
) -> None:
    job_id, (heard, *_) = followed
    token = http.post(path(job_id, "events/token")).json()["token"]
    with httpx.Client(base_url=service.url, trust_env=False) as nobody:
        assert frames(nobody, job_id, params={"token": token}) == heard
        assert nobody.get(path(job_id, "logs"), params={"token": token}).status_code == 200
        other = service.submit(rows, max_steps=1)
        assert nobody.get(path(other), params={"token": token}).status_code == 401
        for what in ("", "events", "checkpoints", "metrics"):
            assert http.get(path(job_id, what)).status_code == 200, what  # it is there, for who may see it
            assert nobody.get(path(job_id, what), params={"token": token}).status_code == 401, what
        assert nobody.get(path(job_id)).status_code == 401
        assert nobody.get(path(job_id), params={"token": service.key}).status_code == 401
    service.client().fine_tuning.jobs.cancel(other)


@pytest.mark.long
def test_a_followed_stream_outlives_the_loss_of_its_connection_to_the_database(
    service: Service, http: httpx.Client, rows: str
) -> None:
    job_id = service.submit(rows, max_steps=30, batch_size=4, per_device_train_batch_size=1)
    heard: list[dict[str, str]] = []
    follower = threading.Thread(target=lambda: heard.extend(frames(http, job_id)))
    follower.start()
    wait_for(lambda: service.steps(job_id), 60)
    with service.database() as database:
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%job_news%'")
    follower.join(120)
    assert [frame["id"] for frame in heard[:-1]] == [event.id for event in service.events(job_id)]


@pytest.mark.long
def test_a_log_is_followed_and_read_again(service: Service, http: httpx.Client, rows: str) -> None:
    job_id = service.submit(rows, max_steps=4)
    with http.stream("GET", path(job_id, "logs"), params={"follow": "true"}) as response:
        followed_text = "".join(response.iter_text())
    assert service.finished(job_id).status == "succeeded"
    whole = http.get(path(job_id, "logs"))
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.text == followed_text
    assert "== train, attempt 1 ==" in whole.text
    assert "\r" not in whole.text
    assert http.get(path(job_id, "logs"), params={"tail": 1}).text == whole.text.splitlines(keepends=True)[-1]
