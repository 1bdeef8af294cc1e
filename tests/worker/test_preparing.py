"""Reports and previews that somebody asked for: nothing is done for those of a file that was deleted meanwhile."""

from pathlib import Path

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.queue import PREPARE
from app.reports.models import FileReport, PreparedSet
from app.settings import get_settings
from tests import tiny
from tests.factories import take, upload_body
from worker import preparing
from worker.outcomes import Cancelled
from worker.supervisor import Ending


@pytest.fixture
def base(client: TestClient) -> str:
    name = "asked-about"
    tiny.make_base(get_settings().models / name)
    return name


def upload(client: TestClient) -> str:
    return str(client.post("/v1/files", **upload_body(tiny.jsonl(tiny.chat_rows(4)))).json()["id"])


def trainer() -> Ending:
    raise AssertionError("a trainer was started for it")


@pytest.mark.parametrize("deleted", ["training", "validation"])
def test_no_report_is_made_on_a_file_that_was_deleted(
    client: TestClient, session: Session, base: str, tmp_path: Path, deleted: str
) -> None:
    files = {"training": upload(client), "validation": upload(client)}
    asked = {"model": base, "validation_file": files["validation"]}
    answer = client.get(f"/v1/files/{files['training']}/report", params=asked)
    assert answer.status_code == 202, answer.text
    client.delete(f"/v1/files/{files[deleted]}").raise_for_status()

    assert isinstance(preparing.answer(take(session, PREPARE), tmp_path, trainer), Cancelled)


def test_no_preview_is_made_of_a_file_that_was_deleted(
    client: TestClient, session: Session, base: str, tmp_path: Path
) -> None:
    file_id = upload(client)
    report_id = client.get(f"/v1/files/{file_id}/report", params={"model": base}).json()["id"]
    with session.begin():
        take(session, PREPARE)
        made = PreparedSet(key="k", training_sha256="t", report={}, findings_sha256="f", findings_bytes=1, blobs=[])
        session.add(made)
        session.flush()
        report = session.get_one(FileReport, report_id)
        report.set_key, report.finished_at = made.key, func.now()
    answer = client.post(f"/v1/files/{file_id}/preview", json={"model": base})
    assert answer.status_code == 202, answer.text
    client.delete(f"/v1/files/{file_id}").raise_for_status()

    assert isinstance(preparing.show(take(session, PREPARE), tmp_path, trainer), Cancelled)
