"""The api, the broker and the database killed, stopped or lied about, while jobs come and run."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import psutil
import pytest
from celery import Celery

from app.queue import RUN
from tests import tiny
from tests.faults.test_worker import frozen, pool_child_of, worker_of
from tests.running import Service, is_alive, wait_for

PROMPT = 1.0
"""Seconds that no answer may take, whatever lies dead beside the api; they are milliseconds where nothing else runs."""


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    return service.upload(tiny.chat_rows(8), "faults-of-servers.jsonl")


def submit(service: Service, rows: str, **hyperparameters: Any) -> str:
    return service.submit(rows, **{"max_steps": 2, "batch_size": 4} | hyperparameters)


def part(service: Service, *words: str) -> psutil.Process:
    return wait_for(lambda: service.part(*words), 60)


def took(*posts: Any) -> float:
    """The seconds of the slowest."""
    slowest = 0.0
    for post in posts:
        began = time.monotonic()
        post()
        slowest = max(slowest, time.monotonic() - began)
    return slowest


@contextmanager
def another_api(service: Service, **environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """One more api beside that of `up`, and its address."""
    model = part(service, "app.cli.api")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = psutil.Popen(
        [sys.executable, "-m", "app.cli", "api", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=model.environ() | environment,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, 60, every=0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize(("place", "made"), [("before_commit", 0), ("after_commit_before_ring", 1)])
@pytest.mark.long
def test_an_api_that_dies_in_a_create_leaves_no_half_of_a_job(
    service: Service, rows: str, place: str, made: int
) -> None:
    """The client is left without an answer, asks another api again, and has one job in the end."""
    mark = {"died": place}
    options: dict[str, Any] = {"extra_headers": {"Idempotency-Key": f"one-{place}"}}
    body: dict[str, Any] = {
        "model": "tiny",
        "training_file": rows,
        "metadata": mark,
        "hyperparameters": {"n_epochs": 1},
    }
    with another_api(service, FINETUNED_FAIL_AT=place) as (url, api):
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key=service.key, max_retries=0) as client,
            pytest.raises(openai.APIConnectionError),
        ):
            client.fine_tuning.jobs.create(**body, **options)
        wait_for(lambda: not is_alive(api), 10)
    found = list(service.client().fine_tuning.jobs.list(metadata=mark))
    assert len(found) == made

    again = service.client().fine_tuning.jobs.create(**body, **options)

    assert [job.id for job in service.client().fine_tuning.jobs.list(metadata=mark)] == [again.id]
    assert service.finished(again.id).status == "succeeded"


@pytest.mark.fault(12)
@pytest.mark.long
def test_jobs_are_taken_at_once_while_there_is_no_broker_and_run_when_there_is(service: Service, rows: str) -> None:
    up = psutil.Process(service.process.pid)
    with frozen(up):  # which would start it again
        broker = part(service, "valkey-server")
        broker.kill()
        jobs: list[str] = []
        slowest = took(*[lambda: jobs.append(submit(service, rows))] * 3)
        readiness = wait_for(lambda: ready(service, broker="down"), 30, every=0.5)
        assert readiness["status"] == "degraded"
        assert slowest < PROMPT
    assert {service.finished(job).status for job in jobs} == {"succeeded"}
    wait_for(lambda: ready(service, broker="ok"), 60, every=0.5)


@pytest.mark.fault(13)
@pytest.mark.long
def test_a_broker_that_never_answers_keeps_no_request_waiting(service: Service, rows: str) -> None:
    jobs: list[str] = []
    with frozen(part(service, "valkey-server")):
        slowest = took(*[lambda: jobs.append(submit(service, rows))] * 3)
    assert slowest < PROMPT
    assert {service.finished(job).status for job in jobs} == {"succeeded"}


def ready(service: Service, *, broker: str) -> dict[str, Any] | None:
    """What `/readyz` says, with 200, once it says that of the broker."""
    response = httpx.get(f"{service.url}/readyz", timeout=30, trust_env=False)
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found if found["broker"] == broker else None


@pytest.mark.fault(11)
@pytest.mark.long
def test_all_that_waits_runs_although_the_broker_was_emptied(service: Service, rows: str) -> None:
    preparing = part(service, "worker.main", "--queue prepare")
    with frozen(pool_child_of(preparing)):
        jobs = [submit(service, rows, max_steps=1) for _ in range(4)]
        with service.broker() as broker:
            broker.flushall()
    assert {service.finished(job, 240).status for job in jobs} == {"succeeded"}


@pytest.mark.fault(14)
@pytest.mark.long
def test_a_ring_that_is_delivered_eight_times_starts_one_attempt(service: Service, rows: str) -> None:
    celery = Celery(broker=f"redis+socket://{service.home}/run/valkey.sock")
    job = submit(service, rows)
    for queue in ("prepare", "cpu"):
        for _ in range(8):
            celery.send_task(RUN, args=[queue], queue=queue)
    assert service.finished(job).status == "succeeded"
    attempts = service.get(f"/v1/fine_tuning/jobs/{job}/attempts")["data"]
    assert [(one["kind"], one["number"]) for one in attempts] == [("prepare", 1), ("train", 1)]


@pytest.mark.fault(52)
@pytest.mark.long
def test_a_forged_ring_does_nothing(service: Service) -> None:
    """For a queue without work, with arguments that nobody sends, and as a task that there is not."""
    worker = worker_of(service)
    celery = Celery(broker=f"redis+socket://{service.home}/run/valkey.sock")
    celery.send_task(RUN, args=["cpu"], queue="cpu")
    celery.send_task(RUN, args=["ftjob-1", {"shell": "true"}], queue="cpu")
    celery.send_task("os.system", args=["true"], queue="cpu")
    with service.broker() as broker:
        wait_for(lambda: not broker.llen("cpu"), 30)
    assert is_alive(worker)
    job = submit(service, service.upload(tiny.chat_rows(4)), max_steps=1)
    assert service.finished(job).status == "succeeded"


@pytest.mark.fault(18)
@pytest.mark.long
def test_training_goes_on_while_postgres_restarts(service: Service, rows: str) -> None:
    job = submit(service, rows, max_steps=60, per_device_train_batch_size=1)
    wait_for(lambda: service.steps(job), 60, every=0.2)
    trainer = service.trainer_of(job)
    assert trainer is not None

    part(service, "postgres").send_signal(signal.SIGINT)  # its fast shutdown; `up` starts it again

    assert service.finished(job).status == "succeeded"
    (attempt,) = service.attempts(job)
    assert attempt["outcome"] == "succeeded"
    assert service.steps(job) == list(range(1, 61))


@pytest.mark.fault(19)
@pytest.mark.long
def test_connections_that_are_cut_again_and_again_cost_no_job_and_no_request(service: Service, rows: str) -> None:
    jobs = [submit(service, rows, max_steps=5) for _ in range(2)]
    client = service.client()  # which asks twice more by itself
    until = time.monotonic() + 8
    cut = asked = 0
    with service.database() as database:
        while time.monotonic() < until:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            cut += len(database.execute(f"{others} AND backend_type = 'client backend'").fetchall())
            for job in jobs:
                client.fine_tuning.jobs.retrieve(job)
                asked += 1
            time.sleep(0.2)
    assert cut > 10
    assert asked > 10
    assert {service.finished(job).status for job in jobs} == {"succeeded"}
    for job in jobs:
        assert len(service.results(job)) == 1
        assert [(one["outcome"], one["error"]) for one in service.attempts(job)] == [("succeeded", None)]


@pytest.mark.fault(20)
@pytest.mark.long
@pytest.mark.parametrize("hours", ["+2h", "-2h"])
def test_a_worker_whose_clock_is_hours_off_is_as_any_other(service: Service, rows: str, hours: str) -> None:
    libfaketime = pytest.importorskip("libfaketime", reason="needs libfaketime: pip install libfaketime")
    _, preloaded = libfaketime.get_reload_information()
    false = {**preloaded, "FAKETIME": hours, "DONT_FAKE_MONOTONIC": "1"}
    with frozen(worker_of(service)), service.another_worker(20, **false):
        job = submit(service, rows, max_steps=20)
        assert service.finished(job, 240).status == "succeeded"
    (attempt,) = service.attempts(job)
    assert attempt["outcome"] == "succeeded"
    assert abs(attempt["ended_at"] - time.time()) < 600
