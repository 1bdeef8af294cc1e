"""The document behind /docs: every call is described, and its example is what the server sends today."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from starlette.testclient import TestClient

from app import openapi
from app.main import create_app
from tests.record_examples import record
from tests.running import Service

DOCUMENT = create_app().openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
COMPONENTS = {"components": DOCUMENT["components"]}


def contents(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The media types of a request or an answer that an example can show: those that are not bytes."""
    for content in described.get("content", {}).values():
        if content["schema"].get("format") != "binary":
            yield content


def assert_valid(example: Any, schema: dict[str, Any]) -> None:
    jsonschema_rs.validator_for(schema | COMPONENTS).validate(example)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_shows_what_is_sent_and_answered(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["description"]
    assert {tag["name"] for tag in openapi.TAGS} >= set(operation["tags"])
    for content in contents(operation.get("requestBody", {})):
        assert_valid(content["example"], content["schema"])
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            for content in contents(answer):
                assert_valid(content["example"], content["schema"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_parameter_is_explained_and_shown_where_it_must_be_sent(name: str) -> None:
    for parameter in OPERATIONS[name].get("parameters", []):
        assert parameter["description"], parameter["name"]
        assert "example" in parameter or not parameter["required"], parameter["name"]
        if "example" in parameter:
            assert_valid(parameter["example"], parameter["schema"])


def test_the_refusals_are_shown_once_for_all() -> None:
    (content,) = DOCUMENT["components"]["responses"][openapi.REFUSED]["content"].values()
    assert {"invalid_api_key", "not_found", "unknown_parameter"} <= set(content["examples"])
    for example in content["examples"].values():
        assert_valid(example["value"], content["schema"])
    assert {operation["responses"]["4XX"]["$ref"] for operation in OPERATIONS.values()} == {
        f"#/components/responses/{openapi.REFUSED}"
    }


def test_nothing_is_recorded_of_an_operation_that_does_not_exist() -> None:
    recorded = openapi.recorded()
    assert set(recorded["operations"]) == set(OPERATIONS)
    for name, example in recorded["operations"].items():
        known = {parameter["name"] for parameter in OPERATIONS[name].get("parameters", [])}
        assert set(example.get("parameters", {})) <= known


def test_the_examples_are_what_the_server_sends_today(service: Service) -> None:
    """`make examples` mends it, where what is sent was meant to change."""
    changed = differences(openapi.recorded(), record(service))
    assert not changed, "\n".join(changed)


def differences(recorded: Any, now: Any, at: str = "") -> list[str]:
    """Where the keys or the kinds of two answers differ; a value, and how many entries a list has, may."""
    match recorded, now:
        case dict(), dict():
            missing = [f"{at}.{key} is recorded or sent, and not both" for key in recorded.keys() ^ now.keys()]
            shared = [key for key in recorded if key in now]
            return missing + [found for key in shared for found in differences(recorded[key], now[key], f"{at}.{key}")]
        case list(), list():
            pairs = zip(recorded, now, strict=False)
            return [found for index, pair in enumerate(pairs) for found in differences(*pair, f"{at}[{index}]")]
        case (None, _) | (_, None) | ((int() | float()), (int() | float())):
            return []
        case _:
            return [] if type(recorded) is type(now) else [f"{at} is recorded as {recorded!r} and sent as {now!r}"]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_of_the_description_need_no_other_host(client: TestClient, page: str) -> None:
    html = client.get(page).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(assets) >= 2
    for asset in assets:
        assert asset.startswith("/"), asset
        assert client.get(asset).is_success, asset
