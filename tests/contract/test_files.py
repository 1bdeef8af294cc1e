"""OpenAI's contract, files and uploads: shapes, and the calls that the stock client makes of them."""

import hashlib
import time
from typing import Any

import openai.types
from openai.types.uploads import UploadPart
from starlette.testclient import TestClient

from tests.contract.shapes import File, FileDeleted, Page, Part, Upload, read, refusal
from tests.stock import stock

ROWS = b"".join(b'{"prompt": "%d", "completion": "b"}\n' % number for number in range(20))


def upload(client: TestClient, content: bytes = ROWS, **fields: str) -> Any:
    """As the stock client sends it: its type of content says nothing."""
    file = ("rows.jsonl", content, "application/octet-stream")
    return client.post("/v1/files", files={"file": file}, data={"purpose": "fine-tune", **fields})


def test_a_file_has_every_field_where_it_is_made_retrieved_and_listed(client: TestClient) -> None:
    made = read(upload(client), File, openai.types.FileObject)
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(ROWS), "rows.jsonl", "fine-tune", "processed")
    assert (made.expires_at, made.status_details) == (None, None)
    assert abs(made.created_at - time.time()) < 60
    assert read(client.get(f"/v1/files/{made.id}"), File, openai.types.FileObject) == made
    listed = read(client.get("/v1/files"), Page[File], openai.types.FileObject)
    assert (listed.data, listed.first_id, listed.last_id) == ([made], made.id, made.id)


def test_a_file_is_uploaded_for_any_of_openais_purposes(client: TestClient) -> None:
    for purpose in ("assistants", "batch", "fine-tune", "vision", "user_data", "evals"):
        assert read(upload(client, purpose=purpose), File).purpose == purpose


def test_a_file_with_a_bad_row_says_so_in_its_own_fields(client: TestClient) -> None:
    file = read(upload(client, b"no json\n"), File, openai.types.FileObject)
    assert file.status == "error"
    assert "line 1" in (file.status_details or "")
    waited = stock(client).files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=1)
    assert waited.status == "error"


def test_a_file_expires_by_fields_in_brackets(client: TestClient) -> None:
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592000"}
    file = read(upload(client, ROWS, **after), File, openai.types.FileObject)
    assert file.expires_at == file.created_at + 2_592_000
    sent = stock(client).files.create(
        file=("rows.jsonl", ROWS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert sent.expires_at == sent.created_at + 3600
    assert stock(client).files.wait_for_processing(sent.id, poll_interval=0.1, max_wait_seconds=1).id == sent.id


def test_a_files_content_is_its_bytes(client: TestClient) -> None:
    file = upload(client).json()["id"]
    answer = client.get(f"/v1/files/{file}/content", headers={"Accept": "application/binary"})
    assert (answer.status_code, answer.content) == (200, ROWS)
    content = stock(client).files.content(file)
    assert (content.text, content.read()) == (ROWS.decode(), ROWS)


def test_files_are_listed_newest_first_or_oldest_first_and_by_purpose(client: TestClient) -> None:
    made = [upload(client, purpose=purpose).json()["id"] for purpose in ("fine-tune", "batch", "fine-tune")]
    files = stock(client).files
    assert [file.id for file in files.list()] == [file.id for file in files.list(order="desc")] == made[::-1]
    assert [file.id for file in files.list(order="asc", limit=1)] == made
    assert [file.id for file in files.list(purpose="batch")] == made[1:2]
    assert refusal(client.get("/v1/files", params={"order": "newest"})).param == "order"


def test_a_deleted_file_is_answered_with_its_id(client: TestClient) -> None:
    file = upload(client).json()["id"]
    gone = read(client.delete(f"/v1/files/{file}"), FileDeleted, openai.types.FileDeleted)
    assert gone.id == file
    assert refusal(client.get(f"/v1/files/{file}"), 404).param == "file_id"


def test_an_upload_and_its_parts_have_every_field_until_it_is_a_file(client: TestClient) -> None:
    body = {"bytes": len(ROWS), "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    made = read(client.post("/v1/uploads", json=body), Upload, openai.types.Upload)
    assert (made.status, made.file, made.bytes, made.filename) == ("pending", None, len(ROWS), "rows.jsonl")
    assert made.expires_at > made.created_at
    parts = []
    for content in (ROWS[:300], ROWS[300:]):
        answer = client.post(f"/v1/uploads/{made.id}/parts", files={"data": ("upload", content)})
        parts.append(read(answer, Part, UploadPart))
    assert {part.upload_id for part in parts} == {made.id}
    whole = {"part_ids": [part.id for part in parts], "md5": hashlib.md5(ROWS, usedforsecurity=False).hexdigest()}
    done = read(client.post(f"/v1/uploads/{made.id}/complete", json=whole), Upload, openai.types.Upload)
    assert (done.id, done.status) == (made.id, "completed")
    assert done.file == read(client.get(f"/v1/files/{done.file.id if done.file else None}"), File)


def test_a_cancelled_upload_has_every_field(client: TestClient) -> None:
    body = {"bytes": 1, "filename": "x", "mime_type": "x", "purpose": "batch", "expires_after": None}
    made = client.post("/v1/uploads", json=body).json()["id"]
    cancelled = read(client.post(f"/v1/uploads/{made}/cancel"), Upload, openai.types.Upload)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)


def test_the_stock_client_uploads_in_chunks(client: TestClient) -> None:
    done = stock(client).uploads.upload_file_chunked(
        file=ROWS, filename="rows.jsonl", bytes=len(ROWS), mime_type="text/jsonl", purpose="fine-tune", part_size=100
    )
    assert done.file is not None
    assert stock(client).files.content(done.file.id).read() == ROWS
