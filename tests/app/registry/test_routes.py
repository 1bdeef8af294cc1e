"""Results over HTTP: found, read and downloaded as they were published, by their project alone."""

import io
import json
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, create_key
from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.registry import service, tar
from app.registry.manifest import PublishedFile
from app.registry.models import RegisteredModel
from app.settings import get_settings
from app.storage import blob_key, get_storage
from tests import factories
from worker.publication import Origin, publish
from worker.sweeper import FILES_KEPT

FILES = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": bytes(range(256)) * 5000,  # of more than one chunk, and no whole tar blocks
    "empty.txt": b"",
    "job.json": b"",  # written below, as
    "metrics.json": b"",
    "tokenizer/special/" + "very-long-" * 12 + "name.json": b"{}",
}


class Result(NamedTuple):
    """A published result, and what lies in it."""

    id: str
    files: dict[str, bytes]


def make_result(session: Session, project: Project, folder: Path, **fields: Any) -> Result:
    """A job, its folder of weights published and registered; the trainer's part is made up."""
    with session.begin():
        file = factories.make_file(session, project)
        job = factories.make_queued_job(session, project, training_file=file.id, **fields)
        claim = factories.take(session)
        report = factories.make_manifest(session, claim).report
        files = FILES | {
            "job.json": job.current_spec.model_dump_json().encode(),
            "metrics.json": report.model_dump_json().encode(),
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        job = session.get_one(Job, job.id, populate_existing=True)
        origin = Origin(claim, job, Prepared.model_validate(job.prepared), file, project.name)
        manifest, sha256 = publish(folder, get_storage(), origin)
        service.register(session, manifest, manifest_sha256=sha256)
    return Result(manifest.id, files)


@pytest.fixture
def result(session: Session, project: Project, tmp_path: Path) -> Result:
    return make_result(session, project, tmp_path / "result")


@pytest.fixture
def other(session: Session) -> dict[str, str]:
    """Headers of somebody else."""
    with session.begin():
        return {"Authorization": f"Bearer {create_key(session, 'other', 'tests')}"}


def error_of(response: Any, status: int = 404) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_result_shows_what_it_was_made_of(client: TestClient, result: Result, session: Session) -> None:
    shown = client.get(f"/v1/registry/models/{result.id}").json()

    assert shown["id"] == result.id
    assert shown["object"] == "registry.model"
    assert result.id.startswith("ft:tiny:default::")
    assert shown["base"] == factories.make_identity().model_dump()
    assert (shown["kind"], shown["method"], shown["tuning"]["type"], shown["seed"]) == (
        "adapter",
        "supervised",
        "lora",
        1,
    )
    assert (shown["trained_parameters"], shown["all_parameters"], shown["trained_share"]) == (1, 2, 0.5)
    assert {file["name"] for file in shown["files"]} == {*result.files, "README.md"}
    assert shown["bytes"] == sum(file["bytes"] for file in shown["files"])
    assert shown["metrics"]["loss_last"] == 1.0
    assert shown["versions"] == {"torch": "2"}
    with session.begin():
        job = session.get_one(Job, shown["job_id"])
        assert shown["training_file"]["id"] == job.spec["training_file"]
    manifest = get_storage().read_manifest(f"models/{shown['job_id']}/000001.json")
    assert manifest is not None
    assert manifest["id"] == result.id


def test_every_file_comes_as_it_was_published(client: TestClient, result: Result) -> None:
    listed = {file["name"]: file for file in client.get(f"/v1/registry/models/{result.id}").json()["files"]}
    for name, content in result.files.items():
        response = client.get(f"/v1/registry/models/{result.id}/files/{name}")
        assert response.status_code == 200
        assert response.content == content
        assert response.headers["content-length"] == str(len(content)) == str(listed[name]["bytes"])
        assert response.headers["etag"] == f'"{listed[name]["sha256"]}"'
    card = client.get(f"/v1/registry/models/{result.id}/files/README.md").text
    assert f"# {result.id}" in card


def test_a_download_unpacks_to_the_files(client: TestClient, result: Result, tmp_path: Path) -> None:
    response = client.get(f"/v1/registry/models/{result.id}/download")

    assert response.headers["content-type"] == "application/x-tar"
    folder = result.id.replace("::", "-").replace(":", "-")
    assert response.headers["content-disposition"] == f'attachment; filename="{folder}.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert [path.name for path in (tmp_path / "unpacked").iterdir()] == [folder]
    root = tmp_path / "unpacked" / folder
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    card = found.pop("README.md")
    assert found == result.files
    assert card.startswith(b"---\nbase_model: tiny\n")
    assert client.get(f"/v1/registry/models/{result.id}/download").content == response.content


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("path", ["download", "files/adapter_model.safetensors"])
def test_what_the_storage_has_lost_is_told_before_a_download_begins(
    client: TestClient, session: Session, project: Project, tmp_path: Path, path: str, *, whole: bool
) -> None:
    result = make_result(session, project, tmp_path / "result")
    with session.begin():
        row = service.get(session, project, result.id)
        (lost,) = (file["sha256"] for file in row.files if file["name"] == "adapter_model.safetensors")
    storage = get_storage()
    weights = b"".join(storage.read(lost))
    storage.delete(lost)
    if not whole:
        with storage._files.open(storage._path(blob_key(lost)), "wb") as file:
            file.write(weights[:-1])

    response = client.get(f"/v1/registry/models/{result.id}/{path}")

    storage.put_bytes(weights)  # other results are of the same bytes
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "storage_damaged"
    assert lost in error["message"]


@pytest.mark.fault(25)
@pytest.mark.parametrize("path", ["download", "files/adapter_model.safetensors"])
def test_a_flipped_byte_is_found_and_never_served(
    client: TestClient, session: Session, project: Project, tmp_path: Path, path: str
) -> None:
    result = make_result(session, project, tmp_path / "result")
    url = f"/v1/registry/models/{result.id}"
    fine = client.get(f"{url}/verify").json()
    assert (fine["ok"], {file["problem"] for file in fine["files"]}) == (True, {None})
    with session.begin():
        row = service.get(session, project, result.id)
        (flipped,) = (file["sha256"] for file in row.files if file["name"] == "adapter_model.safetensors")
    storage = get_storage()
    weights = bytearray(b"".join(storage.read(flipped)))
    weights[len(weights) // 2] ^= 1
    place = storage._path(blob_key(flipped))
    with storage._files.open(place, "wb") as file:
        file.write(weights)
    try:
        found = client.get(f"{url}/verify").json()
        served = client.get(f"{url}/{path}").content  # over a network it breaks off
    finally:
        weights[len(weights) // 2] ^= 1  # other results are of the same bytes
        with storage._files.open(place, "wb") as file:
            file.write(weights)

    problems = {file["name"]: file["problem"] for file in found["files"] if file["problem"]}
    assert len(served) < len(weights)
    assert not found["ok"]
    assert list(problems) == ["adapter_model.safetensors"]
    assert flipped in problems["adapter_model.safetensors"]


@pytest.mark.fault(36)
def test_a_download_that_has_begun_ends_whole_although_the_model_is_deleted_and_swept(
    client: TestClient, session: Session, result: Result
) -> None:
    """Case 36: files that are yet to be opened stay for a while, and one that is open stays as long as it is read."""
    storage = get_storage()
    with session.begin():
        row = session.get_one(RegisteredModel, result.id)
        files = [PublishedFile.model_validate(file) for file in row.files]
    weights = next(file for file in files if file.name == "adapter_model.safetensors")
    download = tar.stream(storage, "folder", files, mtime=0)
    begun = [next(download)]
    reading = storage.read(weights.sha256, size=weights.bytes)
    read = [next(reading)]

    assert client.delete(f"/v1/models/{result.id}").status_code == 200
    factories.sweep_blobs(session, age=FILES_KEPT)
    begun += download
    with tarfile.open(fileobj=io.BytesIO(b"".join(begun))) as whole:
        for name, content in result.files.items():
            file = whole.extractfile(f"folder/{name}")
            assert file is not None
            assert file.read() == content

    factories.sweep_blobs(session, age=timedelta(0))
    assert not storage.has(weights.sha256, weights.bytes)
    read += reading
    assert b"".join(read) == result.files[weights.name]


@pytest.mark.parametrize("base", ["Qwen2.5-7B_it", "模型", 'a"b c'])
def test_a_download_can_be_named_after_any_base(
    client: TestClient, session: Session, project: Project, tmp_path: Path, base: str
) -> None:
    result = make_result(session, project, tmp_path / "result", model=base, suffix="my Suffix")

    response = client.get(f"/v1/registry/models/{quote(result.id)}/download")

    assert response.status_code == 200
    name = response.headers["content-disposition"].removeprefix('attachment; filename="').removesuffix('.tar"')
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert name.endswith(f"default-my-suffix-{result.id.rsplit(':', 1)[-1]}")


@pytest.mark.parametrize(
    "path", ["/v1/models/{}", "/v1/registry/models/{}", "/v1/registry/models/{}/files/metrics.json"]
)
def test_colons_of_an_id_come_raw_or_encoded(client: TestClient, result: Result, path: str) -> None:
    encoded = quote(result.id, safe="")
    assert ":" not in encoded

    raw = client.get(path.format(result.id))

    assert raw.status_code == 200
    assert raw.content == client.get(path.format(encoded)).content == client.get(path.format(encoded.lower())).content


@pytest.mark.parametrize("name", ["adapter.safetensors", "Metrics.json", "tokenizer", ".", "metrics.json/"])
def test_an_unknown_file_is_answered_with_those_there_are(client: TestClient, result: Result, name: str) -> None:
    error = error_of(client.get(f"/v1/registry/models/{result.id}/files/{quote(name).replace('.', '%2E')}"))

    assert error["param"] == "name"
    assert error["message"].startswith(f"'{result.id}' has no file '{name}'. It has: README.md, adapter_config.json, ")
    assert all(name in error["message"] for name in result.files)


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "%2E%2E/%2E%2E/metrics.json",
        "%2Fetc%2Fpasswd",
        "tokenizer/%2E%2E/metrics.json",
        "..%5Cmetrics.json",
    ],
)
def test_a_files_name_is_no_path(client: TestClient, result: Result, name: str) -> None:
    assert error_of(client.get(f"/v1/registry/models/{result.id}/files/{name}"))["param"] == "name"


PATHS = [
    "/v1/models/{}",
    "/v1/registry/models/{}",
    *(f"/v1/registry/models/{{}}/{what}" for what in ("download", "files/metrics.json")),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_result_is_another_projects_unknown_model(
    client: TestClient, result: Result, other: dict[str, str], path: str
) -> None:
    assert client.get(path.format(result.id)).status_code == 200

    theirs = error_of(client.get(path.format(result.id), headers=other))
    nobodys = error_of(client.get(path.format("ft:none"), headers=other))
    error_of(client.get(path.format(result.id), headers={"Authorization": ""}), 401)

    assert theirs["param"] == nobodys["param"] == "model"
    assert theirs["message"].replace(result.id, "ft:none") == nobodys["message"]


def test_another_project_lists_none_of_them(client: TestClient, result: Result, other: dict[str, str]) -> None:
    assert client.get("/v1/registry/models", headers=other).json()["data"] == []
    assert result.id in _ids(client.get("/v1/models"))
    assert result.id not in _ids(client.get("/v1/models", headers=other))


def test_results_are_listed_newest_first_and_in_pages(
    client: TestClient, session: Session, project: Project, tmp_path: Path
) -> None:
    made = [make_result(session, project, tmp_path / f"result-{number}").id for number in range(3)]

    first = client.get("/v1/registry/models", params={"limit": 2}).json()
    rest = client.get("/v1/registry/models", params={"limit": 2, "after": first["last_id"]}).json()

    assert ([row["id"] for row in first["data"]], first["has_more"]) == (made[:0:-1], True)
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (made[:1], False)
    assert first["data"][0] == client.get(f"/v1/registry/models/{made[2]}").json()


def test_bases_and_results_are_models(client: TestClient, result: Result, project: Project) -> None:
    listed = client.get("/v1/models").json()

    assert listed["object"] == "list"
    shown = {model["id"]: model for model in listed["data"]}
    assert list(shown)[-1] == result.id  # bases first
    assert (shown["tiny"]["owned_by"], shown[result.id]["owned_by"]) == ("local", project.id)
    for model in shown.values():
        assert set(model) == {"id", "object", "created", "owned_by", "shutdown_date"}
        assert model["object"] == "model"
        assert client.get(f"/v1/models/{model['id']}").json() == model


def test_every_model_is_listed_however_many_there_are(
    client: TestClient, session: Session, result: Result, project: Project
) -> None:
    count = 12_000
    columns = [column.key for column in RegisteredModel.__table__.columns if column.key not in ("id", "seq", "step")]
    numbered = func.generate_series(1, count).table_valued("number", joins_implicitly=True).render_derived()
    copies = select(
        func.concat(RegisteredModel.id, ":ckpt-step-", numbered.c.number),
        numbered.c.number,
        *(getattr(RegisteredModel, column) for column in columns),
    ).where(RegisteredModel.id == result.id)
    with session.begin():
        session.execute(insert(RegisteredModel).from_select(["id", "step", *columns], copies))

    listed = _ids(client.get("/v1/models"))

    assert [model for model in listed if model.startswith("ft:")] == [
        *(f"{result.id}:ckpt-step-{number}" for number in range(count, 0, -1)),
        result.id,
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FINETUNED_HUB_MODELS", "org/one, org/many-*, org/two")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def test_hub_models_that_are_named_in_full_are_listed(servers: None, hub: None, client: TestClient) -> None:
    assert {"org/one", "org/two"} == {model for model in _ids(client.get("/v1/models")) if "/" in model}
    for path in ("/v1/models/org/one", "/v1/models/org%2Fone"):
        shown = {"id": "org/one", "object": "model", "created": 0, "owned_by": "org", "shutdown_date": None}
        assert client.get(path).json() == shown
    assert error_of(client.get("/v1/models/org/many-1"))["param"] == "model"


def _ids(response: Any) -> list[str]:
    return [model["id"] for model in json.loads(response.content)["data"]]


@pytest.mark.parametrize("model", ["nobody", "..", "ft:tiny:default::none", "tiny%20"])
def test_an_unknown_model_is_not_found(client: TestClient, model: str) -> None:
    quoted = model.replace(".", "%2E")
    assert error_of(client.get(f"/v1/models/{quoted}"))["param"] == "model"
    assert error_of(client.get(f"/v1/registry/models/{quoted}"))["param"] == "model"
    assert error_of(client.get(f"/v1/models/{quoted}%2Ftiny"))["param"] == "model"
