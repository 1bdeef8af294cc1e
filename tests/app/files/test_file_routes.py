"""Files over HTTP: expiry, room, and bodies that trickle or break off."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.errors import TooSlow
from app.files import body
from app.files.models import File
from app.storage import blob_key, get_storage
from tests import small_disk
from tests.conftest import SetSettings
from tests.factories import sweep_blobs, upload_body

ROWS = b'{"prompt": "a", "completion": "b"}\n'


def upload(client: TestClient, content: bytes = ROWS, /, **fields: Any) -> Any:
    given = upload_body(content)
    return client.post("/v1/files", files=given["files"], data=given["data"] | fields)


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_a_file_goes_when_it_said(client: TestClient, session: Session) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(client, b'{"prompt": "once", "completion": "b"}\n', **fields).json()
    assert file["expires_at"] == file["created_at"] + 3600
    with session.begin():
        session.execute(update(File).values(expires_at=text("now() - interval '1 hour'")))
    assert client.get(f"/v1/files/{file['id']}").status_code == 404
    assert client.get("/v1/files").json()["data"] == []
    job = {"model": "tiny", "training_file": file["id"]}
    assert error_of(client.post("/v1/fine_tuning/jobs", json=job))["param"] == "training_file"
    sweep_blobs(session, age=timedelta(minutes=1))
    assert not Path(get_storage()._root, blob_key(file["sha256"])).exists()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"purpose": "x" * 65}, "purpose"),
    ],
)
def test_fields_beside_a_file_are_checked(client: TestClient, fields: dict[str, str], param: str) -> None:
    assert error_of(upload(client, **fields))["param"] == param


def test_a_project_has_only_so_much_room(client: TestClient, set_settings: SetSettings) -> None:
    set_settings(max_project_bytes=2 * len(ROWS))
    first = upload(client).json()["id"]
    assert upload(client).status_code == 200
    error = error_of(upload(client), 413)
    assert (error["code"], error["param"]) == ("project_full", "file")
    announced = {"bytes": 1, "filename": "x", "mime_type": "x", "purpose": "fine-tune"}
    assert error_of(client.post("/v1/uploads", json=announced), 413)["param"] == "bytes"
    client.delete(f"/v1/files/{first}")
    assert upload(client).status_code == 200


BOUNDARY = "multipart/form-data; boundary=x"
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("pause", "settings"),
    [(10.0, {"upload_idle_timeout": 0.2}), (0.02, {"upload_slowest": 1_000_000})],
    ids=["stands still", "trickles"],
)
def test_a_body_that_does_not_come_is_cut_off_and_leaves_nothing(
    servers: None,
    monkeypatch: pytest.MonkeyPatch,
    set_settings: SetSettings,
    pause: float,
    settings: dict[str, float],
) -> None:
    set_settings(**settings)
    monkeypatch.setattr(body, "GRACE", 0.3)

    async def trickling() -> AsyncIterator[bytes]:
        yield HEAD
        while True:
            yield b"a"
            await asyncio.sleep(pause)

    storage = get_storage()
    with storage.incoming() as incoming:
        cut_off = body.receive(trickling(), content_type=BOUNDARY, incoming=incoming, max_bytes=2**40)
        with pytest.raises(TooSlow, match=re.escape("stands still or trickles")):
            asyncio.run(asyncio.wait_for(cut_off, timeout=5))
    assert list(Path(storage._root, "tmp").iterdir()) == []


@pytest.fixture
def small_storage(tmp_path: Path, set_settings: SetSettings) -> Iterator[Path]:
    with small_disk.mounted(tmp_path / "small", megabytes=4) as small:
        set_settings(storage_url=f"file://{small}")
        get_storage.cache_clear()
        yield small
        get_storage.cache_clear()


@pytest.mark.fault(21)
def test_a_full_storage_refuses_a_file_and_keeps_nothing_of_it(small_storage: Path, client: TestClient) -> None:
    error = error_of(upload(client, ROWS * 200_000), 507)
    assert (error["code"], error["type"]) == ("no_space", "server_error")
    assert list((small_storage / "tmp").iterdir()) == []
    assert client.get("/v1/files").json()["data"] == []
    assert upload(client).status_code == 200  # what there is room for
