"""Dashboards in a browser: let in by name, and not otherwise."""

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from tests.conftest import SetSettings

ASKED = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
}


@pytest.mark.parametrize(
    ("origin", "allowed"), [("https://dash.example.com", True), ("https://evil.example.com", False)]
)
def test_a_browser_is_let_in_from_the_origins_that_are_named(
    key: str, set_settings: SetSettings, origin: str, allowed: bool
) -> None:
    set_settings(cors_origins="https://dash.example.com, http://localhost:3000")
    with TestClient(create_app(), headers={"Origin": origin}) as client:
        preflight = client.options("/v1/fine_tuning/jobs", headers=ASKED)
        answer = client.get("/v1/fine_tuning/jobs", headers={"Authorization": f"Bearer {key}"})
    assert (preflight.status_code == 200) is allowed
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    if allowed:
        assert "etag" in answer.headers["access-control-expose-headers"]


def test_the_stock_client_of_javascript_is_let_in_with_all_that_it_sends(set_settings: SetSettings) -> None:
    """A browser asks for each header that is not of the plain ones, in small letters and sorted."""
    asked = (
        "authorization,content-type,idempotency-key,openai-beta,openai-organization,openai-project,x-stainless-arch,"
        "x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
        "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
    )
    set_settings(cors_origins="https://dash.example.com")
    with TestClient(create_app(), headers={"Origin": "https://dash.example.com"}) as client:
        preflight = client.options("/v1/files", headers=ASKED | {"Access-Control-Request-Headers": asked})
    assert preflight.status_code == 200, preflight.text
    assert preflight.headers["access-control-allow-origin"] == "https://dash.example.com"
    assert set(asked.split(",")) <= set(preflight.headers["access-control-allow-headers"].replace(" ", "").split(","))
    assert "access-control-allow-credentials" not in preflight.headers


def test_no_browser_is_let_in_by_default(client: TestClient) -> None:
    answer = client.get("/v1/fine_tuning/jobs", headers={"Origin": "https://dash.example.com"})
    assert "access-control-allow-origin" not in answer.headers
