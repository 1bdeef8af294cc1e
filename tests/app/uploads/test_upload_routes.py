"""Files in parts."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.db import new_session
from app.jobs import retention
from app.storage import blob_key, get_storage
from app.uploads import service
from app.uploads.models import Upload
from tests.conftest import SetSettings
from tests.factories import sweep_blobs

ROWS = b"".join(b'{"prompt": "%d", "completion": "b"}\n' % number for number in range(20))


def announce(client: TestClient, size: int = len(ROWS), **fields: Any) -> Any:
    body = {"bytes": size, "filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    return client.post("/v1/uploads", json=body | fields)


def send(client: TestClient, upload: str, content: bytes) -> Any:
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("blob", content)})


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_parts_become_a_file_in_the_order_of_completion(client: TestClient) -> None:
    upload = announce(client, expires_after={"anchor": "created_at", "seconds": 7200}).json()
    assert (upload["object"], upload["status"], upload["file"]) == ("upload", "pending", None)
    assert upload["expires_at"] == upload["created_at"] + 3600
    second, first = send(client, upload["id"], ROWS[300:]).json(), send(client, upload["id"], ROWS[:300]).json()
    assert (first["object"], first["upload_id"]) == ("upload.part", upload["id"])
    body = {"part_ids": [first["id"], second["id"]], "md5": hashlib.md5(ROWS, usedforsecurity=False).hexdigest()}
    done = client.post(f"/v1/uploads/{upload['id']}/complete", json=body).json()
    assert done["status"] == "completed"
    file = done["file"]
    assert (file["purpose"], file["status"], file["rows"]) == ("fine-tune", "processed", 20)
    assert file["expires_at"] == file["created_at"] + 7200
    assert client.get(f"/v1/files/{file['id']}/content").content == ROWS
    again = client.post(f"/v1/uploads/{upload['id']}/complete", json=body).json()
    assert again["file"]["id"] == file["id"]
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_what_does_not_fit_together_is_refused_and_can_be_mended(client: TestClient) -> None:
    upload = announce(client).json()["id"]
    part = send(client, upload, ROWS[:300]).json()["id"]
    other = send(client, announce(client).json()["id"], ROWS[300:]).json()["id"]
    complete = f"/v1/uploads/{upload}/complete"
    assert "announced" in error_of(client.post(complete, json={"part_ids": [part]}))["message"]
    assert other in error_of(client.post(complete, json={"part_ids": [part, other]}))["message"]
    assert "twice" in error_of(client.post(complete, json={"part_ids": [part, part]}))["message"]
    rest = send(client, upload, ROWS[300:]).json()["id"]
    error = error_of(client.post(complete, json={"part_ids": [part, rest], "md5": "0" * 32}))
    assert (error["param"], hashlib.md5(ROWS, usedforsecurity=False).hexdigest() in error["message"]) == ("md5", True)
    assert error_of(send(client, upload, b"x"), 413)["param"] == "data"
    assert client.post(complete, json={"part_ids": [part, rest]}).json()["status"] == "completed"


def test_a_cancelled_upload_takes_nothing_more(client: TestClient) -> None:
    upload = announce(client).json()["id"]
    for _ in range(2):
        assert client.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert "is cancelled" in error_of(send(client, upload, b"x"))["message"]


def test_an_upload_expires_with_its_parts(client: TestClient, session: Session) -> None:
    upload = announce(client).json()["id"]
    content = b"of no other file"
    send(client, upload, content)
    blob = Path(get_storage()._root, blob_key(hashlib.sha256(content).hexdigest()))
    sweep_blobs(session, age=service.LIFETIME)
    assert blob.exists()
    with session.begin():
        session.execute(update(Upload).values(expires_at=text("now() - interval '1 minute'")))
    assert "is expired" in error_of(send(client, upload, b"x"))["message"]
    sweep_blobs(session, age=service.LIFETIME)
    assert not blob.exists()


def test_a_completed_uploads_bytes_stay_with_its_file(client: TestClient, session: Session) -> None:
    """Of a single part, the file and the part are one blob."""
    upload = announce(client).json()["id"]
    part = send(client, upload, ROWS).json()["id"]
    file = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part]}).json()["file"]["id"]
    sweep_blobs(session, age=service.LIFETIME)
    assert client.get(f"/v1/files/{file}/content").content == ROWS


def test_what_is_announced_takes_room_once(client: TestClient, set_settings: SetSettings) -> None:
    set_settings(max_project_bytes=2 * len(ROWS))
    first, second = announce(client).json()["id"], announce(client).json()["id"]
    assert error_of(announce(client, 1), 413)["code"] == "project_full"
    part = send(client, first, ROWS).json()["id"]
    assert client.post(f"/v1/uploads/{first}/complete", json={"part_ids": [part]}).status_code == 200
    assert error_of(announce(client, 1), 413)["code"] == "project_full"
    client.post(f"/v1/uploads/{second}/cancel")
    assert announce(client).status_code == 200


def test_an_upload_that_is_being_put_together_is_not_waited_for_by_who_sweeps(
    client: TestClient, session: Session, project: Project
) -> None:
    """Who sweeps has a lock that completing needs: if it waited here, neither would end."""
    upload = announce(client).json()["id"]
    with session.begin():
        session.execute(update(Upload).values(expires_at=text("now() - interval '1 minute'")))
    with new_session() as completing, completing.begin():
        service.get(completing, project, upload, lock=True)
        with session.begin():
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            retention.hide_expired(session)
            assert session.scalar(select(Upload.status)) == "pending"
    with session.begin():
        retention.hide_expired(session)
        assert session.scalar(select(Upload.status)) == "expired"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"purpose": "other"}, "purpose"), ({"size": 0}, "bytes"), ({"md5": "x"}, "md5"), ({"filename": ""}, "filename")],
)
def test_an_announcement_is_checked(client: TestClient, fields: dict[str, Any], param: str) -> None:
    assert error_of(announce(client, **fields))["param"] == param


def test_an_upload_is_its_projects_alone(client: TestClient, session: Session) -> None:
    upload = announce(client).json()["id"]
    with session.begin():
        client.headers["Authorization"] = f"Bearer {create_key(session, 'other', 'tests')}"
    assert error_of(send(client, upload, b"x"), 404)["param"] == "upload_id"
    assert error_of(client.post(f"/v1/uploads/{upload}/cancel"), 404)["param"] == "upload_id"
