"""A failure as it is shown: its cause, what to try, and what its trainer printed last."""

from datetime import timedelta
from typing import Any, get_args

import pytest
import typer
from sqlalchemy import func, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.cli.watch import finish
from app.failures import SUGGESTIONS, Code
from app.jobs import lifecycle, logs
from app.jobs.models import Job
from app.registry.identity import UnsafeWeights, UnusableBase
from app.work.models import Attempt, Work
from tests.factories import make_queued_job, take
from worker.outcomes import Failed
from worker.settlement import settle
from worker.sweeper import sweep
from worker.training.failures import OF_FILES, TrainingSpoilt

JOBS = "/v1/fine_tuning/jobs"


def test_each_code_that_can_be_given_says_what_to_try_or_that_nobody_knows() -> None:
    """Whatever makes a `Failed` is typed to give one of these codes; here are those that classes hold as well."""
    held = {UnusableBase.code, UnsafeWeights.code, *(kind.code for kind in TrainingSpoilt.__subclasses__())}
    assert held | set(OF_FILES.values()) <= set(get_args(Code))
    assert list(SUGGESTIONS) == sorted(get_args(Code))
    for code, told in SUGGESTIONS.items():
        assert told is None or (told.endswith(".") and told[0].isupper()), code
    unknown = {code for code, told in SUGGESTIONS.items() if told is None}
    assert unknown == {"internal_error", "invalid_source", "no_dry_run", "no_space", "source_unavailable"}


def test_a_failed_job_and_its_attempts_show_the_last_lines_of_their_own(
    client: TestClient, session: Session, project: Project
) -> None:
    with session.begin():
        job_id = make_queued_job(session, project).id
    for attempt in (1, 2):
        with session.begin():
            session.execute(update(Work).values(available_at=func.now()))
            claim = take(session)
            logs.write(session, job_id, f"{logs.heading(claim)}of attempt {attempt}\nCUDA error\n")
        settle(claim, Failed("device_failed", "The worker's GPU failed.", retryable=attempt == 1))
    job = client.get(f"{JOBS}/{job_id}").json()
    assert job["error"] == {
        "code": "device_failed",
        "message": "The worker's GPU failed.",
        "param": None,
        "suggestion": SUGGESTIONS["device_failed"],
        "log_lines": ["of attempt 2", "CUDA error"],
    }
    attempts = client.get(f"{JOBS}/{job_id}/attempts").json()["data"]
    first, second = (attempt["error"] for attempt in attempts if attempt["kind"] == "train")
    assert (first["log_lines"], first["suggestion"]) == (["of attempt 1", "CUDA error"], SUGGESTIONS["device_failed"])
    assert second == job["error"]
    (listed,) = client.get(JOBS).json()["data"]
    assert listed["error"] == job["error"] | {"log_lines": None}


def test_a_lost_worker_leaves_the_last_lines_that_it_shipped(
    client: TestClient, session: Session, project: Project, set_settings: Any
) -> None:
    set_settings(lease_timeout=0.001)
    with session.begin():
        job_id = make_queued_job(session, project).id
        claim = take(session)
        logs.write(session, job_id, f"{logs.heading(claim)}step 17\n")
        session.execute(update(Work).where(Work.status == "running").values(lease_until=func.now() - timedelta(1)))
    with session.begin():
        sweep(session, take_back=True)
    *_, lost = client.get(f"{JOBS}/{job_id}/attempts").json()["data"]
    assert (lost["outcome"], lost["error"]["code"]) == ("lease_expired", "worker_lost")
    assert lost["error"]["message"] == "The worker on here has not been heard for 0.001 s."
    assert lost["error"]["log_lines"] == ["step 17"]


def test_what_knows_better_than_its_code_what_to_try_says_so(
    client: TestClient, session: Session, project: Project
) -> None:
    with session.begin():
        job_id = make_queued_job(session, project).id
        claim = take(session)
    settle(claim, Failed("out_of_memory", "Too large.", suggestion="Send fewer rows."))
    error = client.get(f"{JOBS}/{job_id}").json()["error"]
    assert (error["suggestion"], error["log_lines"]) == ("Send fewer rows.", [])


@pytest.mark.parametrize(("code", "told"), [("hung", SUGGESTIONS["hung"]), ("of_another_version", None)])
def test_an_error_from_before_there_were_suggestions_is_read(
    client: TestClient, session: Session, project: Project, code: str, told: str | None
) -> None:
    old: dict[str, Any] = {"code": code, "message": "It hung.", "param": None}
    with session.begin():
        job_id = make_queued_job(session, project).id
        lifecycle.fail(session, take(session), old)
        session.execute(update(Job).values(error=old))
        session.execute(update(Attempt).where(Attempt.error.is_not(None)).values(error=old))
    expected = old | {"suggestion": told, "log_lines": []}
    assert client.get(f"{JOBS}/{job_id}").json()["error"] == expected
    assert client.get(f"{JOBS}/{job_id}/attempts").json()["data"][-1]["error"] == expected


def test_the_fields_of_a_failure_are_described(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["JobError"]["properties"]
    assert set(fields) == {"code", "message", "param", "suggestion", "log_lines"}
    assert all(field["description"] for field in fields.values())
    of_attempts = schemas["AttemptRead"]["properties"]["error"]["anyOf"]
    assert {"$ref": "#/components/schemas/JobError"} in of_attempts


def test_the_command_says_the_cause_what_to_try_and_the_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "hung", "message": "It hung.", "param": None, "suggestion": "Try again.", "log_lines": ["a", "b"]}
    with pytest.raises(typer.Exit):
        finish({"id": "ftjob-1", "status": "failed", "error": error}, as_json=False)
    assert capsys.readouterr().err.splitlines() == [
        "ftjob-1 failed (hung): It hung.",
        "What to try: Try again.",
        "The trainer's last lines:",
        "    a",
        "    b",
        "Its whole log: finetuned logs ftjob-1",
    ]
    old = {"code": "hung", "message": "It hung.", "param": None}  # of an older server
    with pytest.raises(typer.Exit):
        finish({"id": "ftjob-1", "status": "failed", "error": old}, as_json=False)
    assert capsys.readouterr().err.startswith("ftjob-1 failed (hung): It hung.\nIts whole log")
