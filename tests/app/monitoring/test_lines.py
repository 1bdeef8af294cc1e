"""Lines of JSON: each says what it is about, whichever thread or library writes it."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project
from app.http import CallerDep
from app.jobs import lifecycle
from app.monitoring import lines
from app.work.status import WorkKind
from tests import factories
from tests.conftest import SetSettings
from tests.running import wait_for
from worker.lease import Lease


class Written:
    """What a process would have on its standard error."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def written(set_settings: SetSettings) -> Iterator[Written]:
    set_settings(log_format="json")
    found = Written()
    handler = lines.handler(found.stream)
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield found
    root.removeHandler(handler)
    root.setLevel(before)


def test_a_line_is_about_what_its_thread_is_about(written: Written) -> None:
    def say() -> None:
        logging.getLogger("library").warning("within %d", 1)

    with lines.about(job="ftjob-1", attempt=2), lines.about(work="train"):
        for target in (lines.following(say), say):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        try:
            json.loads("no")
        except ValueError:
            logging.getLogger("library").exception("broke")
    logging.getLogger("library").info("after")

    following, alone, broke, after = written.all()
    named = {"job": "ftjob-1", "attempt": 2, "work": "train"}
    assert following.pop("time")
    assert following == {"level": "WARNING", "logger": "library", "message": "within 1", **named}
    assert set(alone) == set(after) == {"time", "level", "logger", "message"}
    assert broke.items() >= named.items()
    assert "JSONDecodeError" in broke["exception"].splitlines()[-1]


def test_what_a_lease_says_is_about_its_attempt(written: Written, session: Session, project: Project) -> None:
    with session.begin():
        factories.make_queued_job(session, project)
        claim = factories.take(session)
        lifecycle.requeue(session, claim)  # another has it now
    with lines.about(**claim.named()), Lease(claim) as lease:
        wait_for(lambda: lease.wish)

    (said,) = [line for line in written.all() if line["logger"] == "worker.lease"]
    assert said["message"].endswith("was taken over")
    assert (said["job"], said["attempt"], said["work"]) == (claim.subject, 1, WorkKind.TRAIN)


def test_a_request_that_fails_names_itself_its_project_and_its_job(
    written: Written, client: TestClient, project: Project
) -> None:
    api = client.app
    assert isinstance(api, FastAPI)

    @api.get("/broken/{job_id}")
    def broken(caller: CallerDep) -> None:
        logging.getLogger("library").warning("about to break")
        raise RuntimeError("broken")

    answer = client.get("/broken/ftjob-7")

    said = {line["logger"]: line for line in written.all()}
    assert answer.status_code == 500
    for line in (said["library"], said["app.http"]):
        assert line["request"] == answer.headers["x-request-id"]
        assert (line["project"], line["job"]) == (project.id, "ftjob-7")
    assert "RuntimeError" in said["app.http"]["exception"]


def test_a_process_that_dies_says_so_in_a_line() -> None:
    code = """
import threading
from app.monitoring import lines
lines.configure()
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
import warnings
warnings.warn("look")
raise SystemError("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"FINETUNED_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    thread, warned, end = (json.loads(line) for line in done.stderr.splitlines())
    assert thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert warned["logger"] == "py.warnings"
    assert (end["level"], end["exception"].splitlines()[-1]) == ("CRITICAL", "SystemError: the end")
