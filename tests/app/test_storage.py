"""Blobs and manifests, in a folder and in a bucket (moto's server speaks S3 here)."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer

from app.storage import Blob, Damaged, Storage, blob_key
from tests import running, tiny

ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """A bucket called `ours`; what a process must have in its environment to reach it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.put(f"http://127.0.0.1:{port}/ours", trust_env=False).raise_for_status()
    assert host
    yield {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "folder":
        return Storage(f"file://{tmp_path}/storage")
    for name, value in request.getfixturevalue("bucket").items():
        monkeypatch.setenv(name, value)
    return Storage(f"s3://ours/{tmp_path.name}")


def test_bytes_are_kept_under_their_digest_and_come_back(storage: Storage, tmp_path: Path) -> None:
    blob = storage.put_bytes(b"hello")

    assert blob == Blob(HELLO, 5)
    assert storage.has(HELLO, 5)
    assert not storage.has(HELLO, 4)
    assert b"".join(storage.read(HELLO)) == b"hello"
    storage.fetch(HELLO, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"hello"


def test_the_same_bytes_are_stored_once(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello")

    assert storage.put_file(tmp_path / "file") == storage.put_bytes(b"hello")

    assert (tmp_path / "file").read_bytes() == b"hello"
    storage.delete(HELLO)
    storage.delete(HELLO)  # fine if it is gone already
    assert not storage.has(HELLO, 5)


def test_damaged_and_missing_bytes_are_found_on_arrival(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes(b"hello")
    with storage._files.open(storage._path(blob_key(HELLO)), "wb") as file:
        file.write(b"jello")

    with pytest.raises(Damaged, match="other bytes"):
        storage.fetch(HELLO, tmp_path / "fetched")
    with pytest.raises(Damaged, match="gone"):
        storage.fetch("0" * 64, tmp_path / "fetched")
    with pytest.raises(Damaged, match="gone"):
        storage.read("0" * 64)


def test_what_is_not_committed_leaves_nothing(storage: Storage) -> None:
    with storage.incoming() as incoming:
        incoming.write(b"hello")
        left = incoming.path

    assert not left.exists()
    assert not storage.has(HELLO, 5)


def test_a_manifest_is_replaced_whole_and_listed_by_name(storage: Storage) -> None:
    assert storage.read_manifest("models/job/000001.json") is None
    assert storage.manifests("models/job") == []

    first = storage.write_manifest("models/job/000002.json", {"attempt": 2})
    storage.write_manifest("models/job/000001.json", {"attempt": 0})
    storage.write_manifest("models/job/000001.json", {"attempt": 1})

    assert storage.manifests("models/job") == ["models/job/000001.json", "models/job/000002.json"]
    assert storage.read_manifest("models/job/000001.json") == {"attempt": 1}
    assert storage.write_manifest("models/job/000002.json", {"attempt": 2}) == first


@pytest.mark.long
def test_a_job_runs_with_its_storage_in_a_bucket(bucket: dict[str, str], tmp_path_factory: Any) -> None:
    home = tmp_path_factory.mktemp("s3")
    tiny.make_base(home / "models" / "tiny")
    with running.up(home, FINETUNED_STORAGE_URL="s3://ours/jobs", **bucket) as service:
        client = service.client()
        job_id = client.fine_tuning.jobs.create(model="tiny", training_file=service.upload(tiny.chat_rows(8))).id
        job = service.finished(job_id)

        assert job.status == "succeeded", job.error
        entry = client.get(f"/registry/models/{job.fine_tuned_model}", cast_to=dict)
        adapter = next(file for file in entry["files"] if file["name"] == "adapter_model.safetensors")
        content = client.get(f"/registry/models/{entry['id']}/files/{adapter['name']}", cast_to=httpx.Response).content
        assert len(content) == adapter["bytes"]
    assert not (home / "storage").exists()


def test_what_a_killed_process_was_receiving_is_deleted_once_nothing_comes(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage")
    with storage.incoming() as arriving:
        left = arriving.path.with_name("left")
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
        storage.forget_abandoned(timedelta(hours=1))
        assert list(arriving.path.parent.iterdir()) == [arriving.path]
