"""OpenAI's contract, graders."""

from typing import Any

import pytest
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse
from starlette.testclient import TestClient

from tests.contract.shapes import GraderRun, read

URL = "/v1/fine_tuning/alpha/graders"
CHECK = {
    "type": "string_check",
    "name": "same",
    "operation": "ilike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
LIKENESS = {
    "type": "text_similarity",
    "name": "alike",
    "evaluation_metric": "rouge_l",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def flags(run: GraderRun) -> set[str]:
    return {name for name, value in run.metadata.errors if value}


@pytest.mark.parametrize("grader", [CHECK, LIKENESS], ids=lambda grader: str(grader["type"]))
def test_a_grader_has_every_field_where_it_is_validated_and_run(client: TestClient, grader: dict[str, Any]) -> None:
    validated = client.post(f"{URL}/validate", json={"grader": grader})
    assert (validated.status_code, validated.json()) == (200, {"grader": grader})
    GraderValidateResponse.model_validate(validated.json(), strict=True)
    body = {"grader": grader, "model_sample": "Yes", "item": {"answer": "yes"}}
    run = read(client.post(f"{URL}/run", json=body), GraderRun, GraderRunResponse)
    assert (run.reward, run.sub_rewards, flags(run)) == (1.0, {}, set())
    assert (run.metadata.name, run.metadata.type) == (grader["name"], grader["type"])
    assert (run.metadata.token_usage, run.metadata.sampled_model_name) == (None, None)
    assert run.model_grader_token_usage_per_model == {}


def test_a_multi_grader_says_what_its_parts_made(client: TestClient) -> None:
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"a": CHECK, "b": LIKENESS},
        "calculate_output": "(a + b) / 2",
    }
    body = {"grader": grader, "model_sample": "no", "item": {"answer": "yes"}}
    run = read(client.post(f"{URL}/run", json=body), GraderRun, GraderRunResponse)
    assert (run.reward, run.sub_rewards, run.metadata.scores) == (0.0, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0})


def test_a_sample_that_cannot_be_graded_raises_flags_among_all_the_others(client: TestClient) -> None:
    body = {"grader": CHECK, "model_sample": "yes", "item": {}}
    run = read(client.post(f"{URL}/run", json=body), GraderRun, GraderRunResponse)
    assert (run.reward, flags(run)) == (0.0, {"invalid_variable_error"})
