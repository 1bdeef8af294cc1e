"""Results and checkpoints that are shared: seen and used by the projects that may, owned by one."""

from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, authenticate, create_key
from app.jobs import lifecycle
from app.registry import service
from app.registry.models import RegisteredModel
from tests.factories import make_manifest, make_queued_job, prepare, take, upload_body
from tests.stock import stock
from worker.given import given

RESULT = "ft:tiny:default::1"
CHECKPOINT = f"{RESULT}:ckpt-step-1"


class Other(NamedTuple):
    """Another project, and how it calls."""

    id: str
    headers: dict[str, str]


@pytest.fixture
def models(session: Session, project: Project) -> None:
    """A result, and a checkpoint of the same job."""
    with session.begin():
        make_queued_job(session, project)
        claim = take(session)
        manifest = make_manifest(session, claim, RESULT)
        checkpoint = manifest.model_copy(update={"id": CHECKPOINT, "step": 1})
        service.register(session, checkpoint, manifest_sha256="7" * 64)
        result = service.register(session, manifest, manifest_sha256="6" * 64)
        lifecycle.succeed(session, claim, result, trained_tokens=4, result_files=[])


def make_other(session: Session, name: str = "other") -> Other:
    with session.begin():
        key = create_key(session, name, "tests")
        return Other(authenticate(session, key).id, {"Authorization": f"Bearer {key}"})


@pytest.fixture
def other(session: Session) -> Other:
    return make_other(session)


def url(model: str = RESULT) -> str:
    return f"/v1/fine_tuning/checkpoints/{model}/permissions"


def grant(client: TestClient, *projects: str, model: str = RESULT, **how: Any) -> Any:
    return client.post(url(model), json={"project_ids": list(projects)}, **how)


def seen(client: TestClient, headers: dict[str, str]) -> set[str]:
    """What of the two a project finds in the list, by its id, in the registry."""
    listed = {model["id"] for model in client.get("/v1/models", headers=headers).json()["data"]}
    every = client.get("/v1/registry/models?checkpoints=true", headers=headers).json()["data"]
    found = {
        model
        for model in (RESULT, CHECKPOINT)
        if client.get(f"/v1/models/{model}", headers=headers).status_code == 200
        and client.get(f"/v1/registry/models/{model}", headers=headers).status_code == 200
    }
    assert listed & {RESULT, CHECKPOINT} == {row["id"] for row in every} == found
    return found


def start(client: TestClient, headers: dict[str, str], model: str = RESULT) -> Any:
    file = client.post("/v1/files", headers=headers, **upload_body(b'{"prompt": "a", "completion": "b"}\n')).json()
    return client.post("/v1/fine_tuning/jobs", headers=headers, json={"model": model, "training_file": file["id"]})


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.usefixtures("models")
def test_a_permission_shows_what_was_granted_and_its_revocation_hides_it(client: TestClient, other: Other) -> None:
    assert seen(client, other.headers) == set()
    granted = grant(client, other.id, model=CHECKPOINT).json()
    (permission,) = granted["data"]
    assert granted == {
        "object": "list",
        "data": [permission],
        "has_more": False,
        "first_id": permission["id"],
        "last_id": permission["id"],
    }
    assert permission["id"].startswith("cp_")
    assert (permission["object"], permission["project_id"]) == ("checkpoint.permission", other.id)
    assert isinstance(permission["created_at"], int)
    assert seen(client, other.headers) == {CHECKPOINT}
    grant(client, other.id)
    assert seen(client, other.headers) == {RESULT, CHECKPOINT}

    gone = client.delete(f"{url(CHECKPOINT)}/{permission['id']}")

    assert gone.json() == {"id": permission["id"], "object": "checkpoint.permission", "deleted": True}
    assert seen(client, other.headers) == {RESULT}
    assert error_of(client.delete(f"{url(CHECKPOINT)}/{permission['id']}"), 404)["param"] == "permission_id"


@pytest.mark.usefixtures("models")
def test_granting_twice_is_granting_once(client: TestClient, session: Session, other: Other) -> None:
    third = make_other(session, "third")
    first = grant(client, other.id).json()["data"]
    again = grant(client, third.id, other.id, third.id).json()["data"]
    assert [row["project_id"] for row in again] == [third.id, other.id]
    assert again[1] == first[0]
    assert len(client.get(url()).json()["data"]) == 2
    assert client.get("/v1/registry/models", headers=other.headers).json()["data"][0]["id"] == RESULT


@pytest.mark.usefixtures("models")
def test_permissions_are_listed_in_pages_in_either_order_and_by_project(client: TestClient, session: Session) -> None:
    projects = [make_other(session, f"project {number}").id for number in range(3)]
    for project in projects:
        grant(client, project)

    def ids(**query: Any) -> tuple[list[str], bool]:
        page = client.get(url(), params=query).json()
        return [row["project_id"] for row in page["data"]], page["has_more"]

    assert ids() == ids(order="descending") == (projects[::-1], False)
    assert ids(order="ascending", limit=2) == (projects[:2], True)
    last = client.get(url(), params={"order": "ascending", "limit": 2}).json()["last_id"]
    assert ids(order="ascending", after=last) == (projects[2:], False)
    assert ids(project_id=projects[1]) == (projects[1:2], False)
    assert ids(project_id="proj_none") == ([], False)
    assert error_of(client.get(url(), params={"after": "cp_none"}))["param"] == "after"
    assert error_of(client.get(url(), params={"order": "asc"}))["param"] == "order"


@pytest.mark.usefixtures("models")
def test_an_id_comes_raw_or_encoded(client: TestClient, other: Other) -> None:
    encoded = quote(CHECKPOINT, safe="")
    granted = grant(client, other.id, model=encoded).json()
    assert client.get(url()).json()["data"] == []
    assert client.get(url(CHECKPOINT)).json() == client.get(url(encoded)).json() == granted
    assert client.delete(f"{url(encoded)}/{granted['last_id']}").json()["deleted"]


@pytest.mark.usefixtures("models")
def test_only_the_owner_shares_lists_revokes_and_deletes(client: TestClient, session: Session, other: Other) -> None:
    third = make_other(session, "third")
    permission = grant(client, other.id).json()["data"][0]["id"]
    for headers, status in ((other.headers, 400), (third.headers, 404)):
        for response in (
            grant(client, third.id, headers=headers),
            client.get(url(), headers=headers),
            client.delete(f"{url()}/{permission}", headers=headers),
            client.delete(f"/v1/models/{RESULT}", headers=headers),
        ):
            error = error_of(response, status)
            assert error["param"] == "model"
            assert ("only the project that it belongs to" in error["message"]) == (status == 400)
    assert seen(client, other.headers) == {RESULT}
    assert seen(client, third.headers) == set()
    assert error_of(client.delete(f"{url(CHECKPOINT)}/{permission}"), 404)["param"] == "permission_id"


@pytest.mark.usefixtures("models")
def test_a_deleted_model_is_shown_to_nobody(client: TestClient, session: Session, other: Other) -> None:
    grant(client, other.id)
    assert client.delete(f"/v1/models/{RESULT}").status_code == 200
    assert seen(client, other.headers) == set()
    assert error_of(client.get(url()), 404)["param"] == "model"
    with session.begin():  # and the sweeper takes the permissions with the row
        session.delete(session.get_one(RegisteredModel, RESULT))


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("projects", "says"),
    [
        (["proj_none"], "There is no project 'proj_none'"),
        ([], "at least 1"),
        (None, "list"),
        (["a\0"], "match"),
    ],
)
def test_projects_are_checked(client: TestClient, projects: Any, says: str) -> None:
    error = error_of(client.post(url(), json={"project_ids": projects}))
    assert error["param"].startswith("project_ids")
    assert says in error["message"]


@pytest.mark.usefixtures("models")
def test_the_owner_needs_no_permission(client: TestClient, project: Project) -> None:
    error = error_of(grant(client, project.id))
    assert error["param"] == "project_ids"
    assert "needs no permission" in error["message"]


@pytest.mark.usefixtures("models")
def test_one_unknown_project_keeps_all_of_them_out(client: TestClient, other: Other) -> None:
    assert "proj_none" in error_of(grant(client, other.id, "proj_none"))["message"]
    assert seen(client, other.headers) == set()


def test_what_is_no_model_of_the_registry_has_no_permissions(client: TestClient, other: Other) -> None:
    for model in ("ft:none", "tiny", "org/name"):
        assert error_of(grant(client, other.id, model=model), 404)["param"] == "model"
    assert error_of(client.post(url(), json={"project_id": [other.id]}))["param"] == "project_id"


@pytest.mark.usefixtures("models")
def test_a_job_starts_from_a_shared_model_and_keeps_it_when_the_permission_is_revoked(
    client: TestClient, session: Session, other: Other
) -> None:
    assert error_of(start(client, other.headers))["code"] == "model_not_found"
    permission = grant(client, other.id).json()["data"][0]["id"]
    job = start(client, other.headers)
    assert (job.status_code, job.json()["model"]) == (200, RESULT)

    client.delete(f"{url()}/{permission}")

    assert error_of(start(client, other.headers))["code"] == "model_not_found"
    with session.begin():
        prepare(session, take(session, "prepare"))
        claim = take(session)
    begun = given(claim)
    assert (begun.job.id, begun.job.project_id) == (job.json()["id"], other.id)
    assert list(begun.files) == ["training_file"]
    assert begun.parent is not None
    assert begun.parent.id == RESULT
    with session.begin():
        session.get_one(RegisteredModel, RESULT).deleted_at = func.now()
    assert given(claim).parent is not None


@pytest.mark.usefixtures("models")
def test_the_stock_client_grants_lists_and_revokes(client: TestClient, session: Session) -> None:
    permissions = stock(client).fine_tuning.checkpoints.permissions
    projects = {make_other(session, f"project {number}").id for number in range(3)}
    granted = permissions.create(CHECKPOINT, project_ids=list(projects))
    assert {permission.project_id for permission in granted} == projects
    assert {permission.project_id for permission in permissions.list(CHECKPOINT, limit=1)} == projects  # page by page
    for permission in granted.data:
        assert permissions.delete(permission.id, fine_tuned_model_checkpoint=CHECKPOINT).deleted
    assert permissions.list(CHECKPOINT, order="ascending").data == []
