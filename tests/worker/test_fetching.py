"""Files that the server fetches: announced over HTTP, copied by a worker out of a bucket (moto's server speaks S3)."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.files.models import File
from app.storage import get_storage
from tests import tiny
from tests.conftest import SetSettings
from tests.factories import take
from worker import fetching
from worker.lease import Lease
from worker.outcomes import Cancelled, Failed, Outcome
from worker.settlement import settle

ROWS = tiny.jsonl(tiny.chat_rows(4))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a server of buckets with one called `team`."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    httpx.put(f"{url}/team", trust_env=False).raise_for_status()
    for name, content in {
        "data/rows.jsonl": ROWS,
        "data/rows.csv.gz": gzip.compress(b"question,answer\nHow many?,Two.\n"),
        "data/bad.jsonl": ROWS + b"nonsense\n",
        "data/empty.jsonl": b"",
        "one/train.jsonl": ROWS,
        "secret/rows.jsonl": ROWS,
    }.items():
        httpx.put(f"{url}/team/{name}", content=content, trust_env=False).raise_for_status()
    yield url
    server.stop()


@pytest.fixture
def allowed(bucket: str, set_settings: SetSettings, tmp_path: Path) -> Iterator[None]:
    options = {"s3": {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": bucket}}}
    set_settings(
        file_sources="s3://team/data, s3://team/one/",
        source_options=json.dumps(options),
        storage_url=f"file://{tmp_path}",
    )
    get_storage.cache_clear()
    yield
    get_storage.cache_clear()


def announce(client: TestClient, source: str, **fields: Any) -> httpx2.Response:
    return client.post("/v1/files", json={"source": source, "purpose": "fine-tune", **fields})


def fetch(session: Session) -> Outcome:
    """A worker's turn at what is announced."""
    with session.begin():
        claim = take(session, "prepare")
    with Lease(claim) as lease:
        outcome = fetching.fetch(claim, lease)
        settle(claim, outcome)
    return outcome


def test_a_file_is_uploaded_until_it_has_arrived_and_then_what_an_upload_of_it_is(
    client: TestClient, session: Session, allowed: None
) -> None:
    before = announce(client, "s3://team/data/rows.jsonl").json()
    content = client.get(f"/v1/files/{before['id']}/content")
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": before["id"]})

    fetch(session)

    after = client.get(f"/v1/files/{before['id']}").json()
    assert (before["status"], before["bytes"], before["sha256"]) == ("uploaded", 0, "")
    assert (content.status_code, content.json()["error"]["code"]) == (400, "file_not_ready")
    assert (job.status_code, job.json()["error"]["param"]) == (400, "training_file")
    assert (after["status"], after["bytes"], after["rows"]) == ("processed", len(ROWS), 4)
    assert (after["filename"], after["source"]) == ("rows.jsonl", "s3://team/data/rows.jsonl")
    assert client.get(f"/v1/files/{before['id']}/content").content == ROWS
    uploaded = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", ROWS)}).json()
    assert uploaded["sha256"] == after["sha256"]


@pytest.mark.parametrize(
    ("source", "status", "says"),
    [
        ("s3://team/data/rows.csv.gz", "processed", None),
        ("s3://team/one", "processed", None),  # a folder with one file of rows
        ("s3://team/data/bad.jsonl", "error", "line 5: it is not JSON"),
        ("s3://team/data/empty.jsonl", "error", "is empty"),
        ("s3://team/data/absent.jsonl", "error", "There is no file at 's3://team/data/absent.jsonl'"),
        ("s3://team/data/", "error", "Name one of them: s3://team/data/"),
    ],
)
def test_what_is_at_a_source_is_said(
    client: TestClient, session: Session, allowed: None, source: str, status: str, says: str | None
) -> None:
    file_id = announce(client, source).json()["id"]
    fetch(session)
    file = client.get(f"/v1/files/{file_id}").json()
    assert file["status"] == status
    assert says is None or says in file["status_details"]


def test_a_file_beyond_the_limit_is_not_copied(
    client: TestClient, session: Session, allowed: None, set_settings: SetSettings
) -> None:
    file_id = announce(client, "s3://team/data/rows.jsonl").json()["id"]
    set_settings(max_file_bytes=100)
    fetch(session)
    assert "larger than 100 bytes" in client.get(f"/v1/files/{file_id}").json()["status_details"]


def test_a_bucket_that_does_not_answer_is_tried_again(
    client: TestClient, session: Session, allowed: None, set_settings: SetSettings
) -> None:
    options = {"s3": {"key": "x", "secret": "x", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}}
    options["s3"]["config_kwargs"] = {"retries": {"max_attempts": 1}}
    set_settings(source_options=json.dumps(options))
    file_id = announce(client, "s3://team/data/rows.jsonl").json()["id"]

    outcome = fetch(session)

    assert isinstance(outcome, Failed)
    assert outcome.retryable
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "uploaded"


def test_a_file_that_was_deleted_on_its_way_is_not_brought_back(
    client: TestClient, session: Session, allowed: None
) -> None:
    file_id = announce(client, "s3://team/data/rows.jsonl").json()["id"]
    with session.begin():
        session.delete(session.get_one(File, file_id))
    fetch(session)
    assert client.get(f"/v1/files/{file_id}").status_code == 404


def test_a_file_that_was_deleted_before_is_not_fetched(client: TestClient, session: Session, allowed: None) -> None:
    file_id = announce(client, "s3://team/data/rows.jsonl").json()["id"]
    client.delete(f"/v1/files/{file_id}").raise_for_status()
    assert isinstance(fetch(session), Cancelled)


@pytest.mark.parametrize(
    "source",
    [
        "s3://team/secret/rows.jsonl",
        "s3://team/database/rows.jsonl",  # begins with an allowed name, and is another folder
        "s3://team/data/../secret/rows.jsonl",
        "s3://team/data/%2e%2e/secret/rows.jsonl",
        "hf://datasets/org/name/rows.jsonl",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://team/data/rows.jsonl?versionId=1",
        "rows.jsonl",
        "",
    ],
)
def test_only_what_the_operator_allows_is_fetched(client: TestClient, allowed: None, source: str) -> None:
    response = announce(client, source)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "source")


def test_without_the_operators_word_nothing_is_fetched(client: TestClient) -> None:
    error = announce(client, "s3://team/data/rows.jsonl").json()["error"]
    assert error["code"] == "source_not_allowed"
    assert "FINETUNED_FILE_SOURCES" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b'{"purpose": "fine-tune"}', "file"),
        (b'{"source": "s3://team/data/rows.jsonl", "purpose": "fine-tune", "key": "x"}', "key"),
        (b'{"source": "s3://team/data/rows.jsonl", "purpose": "nothing"}', "purpose"),
    ],
)
def test_a_wrong_announcement_is_refused_by_its_field(
    client: TestClient, allowed: None, body: bytes, param: str | None
) -> None:
    response = client.post("/v1/files", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert client.post("/v1/files", json={"source": "x" * 20_000, "purpose": "fine-tune"}).status_code == 413
