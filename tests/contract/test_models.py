"""OpenAI's contract, models and who may use them."""

import openai.types
import pytest
from openai.types.fine_tuning.checkpoints import (
    PermissionCreateResponse,
    PermissionDeleteResponse,
    PermissionListResponse,
    PermissionRetrieveResponse,
)
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, authenticate, create_key
from app.registry import service as registry
from tests.contract.shapes import Model, ModelDeleted, Page, Permission, PermissionDeleted, WholeList, read
from tests.factories import make_manifest, make_queued_job, take

RESULT = "ft:tiny:default::1"


@pytest.fixture
def result(session: Session, project: Project) -> str:
    with session.begin():
        make_queued_job(session, project)
        return registry.register(session, make_manifest(session, take(session), RESULT), manifest_sha256="6" * 64).id


def test_a_model_has_every_field_where_it_is_listed_retrieved_and_deleted(client: TestClient, result: str) -> None:
    listed = read(client.get("/v1/models"), WholeList[Model], openai.types.Model)
    assert {"tiny", result} <= {model.id for model in listed.data}
    for model in listed.data:
        assert read(client.get(f"/v1/models/{model.id}"), Model, openai.types.Model) == model
    gone = read(client.delete(f"/v1/models/{result}"), ModelDeleted, openai.types.ModelDeleted)
    assert gone.id == result


def test_a_permission_has_every_field_where_it_is_granted_listed_and_revoked(
    client: TestClient, session: Session, result: str
) -> None:
    with session.begin():
        others = [authenticate(session, create_key(session, name, "tests")).id for name in ("one", "two")]
    path = f"/v1/fine_tuning/checkpoints/{result}/permissions"
    granted = read(client.post(path, json={"project_ids": others}), Page[Permission], PermissionCreateResponse)
    assert [permission.project_id for permission in granted.data] == others
    listed = read(client.get(path), Page[Permission], PermissionListResponse)
    PermissionRetrieveResponse.model_validate(client.get(path).json(), strict=True)  # the same call of 1.x
    assert sorted(one.id for one in listed.data) == sorted(one.id for one in granted.data)
    gone = read(client.delete(f"{path}/{granted.last_id}"), PermissionDeleted, PermissionDeleteResponse)
    assert gone.id == granted.last_id
