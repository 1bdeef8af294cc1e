"""A job's trace, whoever takes it or does not."""

import socket
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.monitoring import traces
from app.monitoring.otel import ids_of
from app.monitoring.traces import Span
from app.settings import get_settings
from tests import spans
from tests.factories import make_file, make_prepared, take
from tests.receiver import receiving
from worker import sweeper
from worker.messages import Phase
from worker.outcomes import FilesPrepared, Interrupted
from worker.phases import Phases
from worker.settlement import settle

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class SendTo:
    """The endpoint of this process, until the test ends."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __call__(self, port: int) -> None:
        self._patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        self._patch.setenv("NO_PROXY", "127.0.0.1")
        get_settings.cache_clear()
        traces.sender.cache_clear()


@pytest.fixture
def send_to() -> Iterator[SendTo]:
    with pytest.MonkeyPatch.context() as patch:
        yield SendTo(patch)
        traces.close(0)
    get_settings.cache_clear()


def posted(client: TestClient, session: Session, project: Project) -> str:
    with session.begin():
        file = make_file(session, project)
    answer = client.post(
        "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file.id}, headers={"traceparent": CALLER}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_the_processes_that_do_a_job_write_one_trace(
    client: TestClient, session: Session, project: Project, send_to: SendTo
) -> None:
    with receiving() as collector:
        send_to(collector.port)
        job_id = posted(client, session, project)
        with session.begin():
            preparing = take(session, "prepare")
        settle(preparing, FilesPrepared(make_prepared()), Phases(preparing.kind))
        with session.begin():
            training = take(session)
        phases = Phases(training.kind)
        for phase in ("training", "saving"):
            phases.hear(Phase(phase))
        settle(training, Interrupted(), phases)
        with session.begin():
            take(session)
            session.execute(text("UPDATE work SET lease_until = now() - interval '1 s' WHERE status = 'running'"))
            session.execute(text("UPDATE attempts SET resumed_from_step = 40 WHERE ended_at IS NULL"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FINETUNED_LEASE_TIMEOUT", "0.001")
            get_settings.cache_clear()
            with session.begin():
                sweeper.sweep(session, take_back=True)
        traces.close(20)

        found = spans.of_job(collector, job_id)

    by_name = {span["name"]: span for span in found}
    assert sorted(span["name"] for span in found) == sorted(
        ["submit", "wait", "prepare", "preparing", "wait", "train", "loading", "training", "saving", "wait", "train"]
    )
    first = by_name["submit"]
    assert (first["parent"], int(first["id"], 16)) == ("", ids_of(job_id).span_id)
    assert first["links"] == [CALLER.split("-")[1]]
    for span in found:
        assert span["end"] >= span["begin"]
        if span["name"] in ("wait", "prepare", "train"):
            assert span["parent"] == first["id"]
    interrupted, lost = [span for span in found if span["name"] == "train"]
    assert by_name["training"]["parent"] == by_name["saving"]["parent"] == interrupted["id"]
    assert (interrupted["finetuned.attempt"], interrupted["finetuned.outcome"]) == ("1", "interrupted")
    assert (lost["finetuned.attempt"], lost["finetuned.outcome"]) == ("2", "lease_expired")
    assert lost["finetuned.resumed_from_step"] == "40"
    assert lost["finetuned.error"] == "worker_lost"


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "refuses"])
def test_an_endpoint_that_takes_nothing_holds_nobody_up(
    client: TestClient,
    session: Session,
    project: Project,
    send_to: SendTo,
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if not hangs:
            silent.close()
        send_to(silent.getsockname()[1] if hangs else 1)
        assert traces.sender() is not None
        began = time.monotonic()
        job_id = posted(client, session, project)
        with session.begin():
            claim = take(session, "prepare")
        settle(claim, FilesPrepared(make_prepared()), Phases(claim.kind))
        for _ in range(50):  # more than are kept
            traces.told(job_id, Span("wait", 0.0, 1.0))
        traces.close(0.2)
        took = time.monotonic() - began

    assert took < 30  # the exporter itself tries for a minute
    assert client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "queued"


def test_nothing_is_made_where_there_is_no_endpoint(client: TestClient, session: Session, project: Project) -> None:
    posted(client, session, project)
    assert traces.sender() is None


def test_a_trace_is_found_by_the_id_of_its_job() -> None:
    """By `printf ftjob-1 | sha256sum | cut -c -32`, as the README has it."""
    assert f"{ids_of('ftjob-1').trace_id:032x}" == "3c114718bfb70ebcc0203a80319d956d"
