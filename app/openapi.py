"""The examples at /docs: what a live server was sent and what it answered, recorded by `tests/record_examples.py`."""

import json
from importlib.resources import files
from typing import Any

DESCRIPTION = """
Send an API key as `Authorization: Bearer …`. A list is a page: send its `last_id` as `after` for the next one. Whatever
is refused is answered with OpenAI's error envelope, whose `code` and `param` say what to change.

The examples are recorded from a running server that trained a tiny model. Two things were changed in them: a list of
more than three entries is cut to two, and what belongs to the machine has other names: `worker-1`,
`/var/lib/finetuned`, `/opt/finetuned`, the webhook's address.
"""

TAGS = [
    {"name": "files", "description": "What jobs train on, uploaded whole or in parts, and the metrics they leave."},
    {"name": "planning", "description": "What to train with, before anything is trained."},
    {"name": "fine-tuning jobs", "description": "From a spec to a model: create, follow, pause, resume, cancel."},
    {"name": "models", "description": "Base models and results: list, inspect, download, share, delete."},
    {"name": "graders", "description": "Judge a model's answer by rules."},
    {"name": "webhooks", "description": "Be told how jobs end."},
    {"name": "operation", "description": "Whether the service is well, and who works for it."},
]

REFUSED = "Refused"


def recorded() -> dict[str, Any]:
    """Under `operations` by method and path: `parameters`, `body`, `response`; under `refusals` by their code."""
    found: dict[str, Any] = json.loads((files("app") / "openapi_examples.json").read_text())
    return found


def add_examples(document: dict[str, Any]) -> None:
    """Put what was recorded into an OpenAPI document."""
    examples = recorded()
    document["components"]["responses"] = {REFUSED: _refused(examples["refusals"])}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _add(operation, examples["operations"].get(f"{method.upper()} {path}", {}))


def _add(operation: dict[str, Any], example: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["name"] in example.get("parameters", {}):
            parameter["example"] = example["parameters"][parameter["name"]]
    if "body" in example:
        _show(operation["requestBody"], example["body"])
    if "response" in example:
        _show(operation["responses"]["200"], example["response"])
    operation["responses"]["4XX"] = {"$ref": f"#/components/responses/{REFUSED}"}


def _show(described: dict[str, Any], example: Any) -> None:
    for content in described["content"].values():
        content.setdefault("example", example)  # what another kind of body looks like stands beside its schema


def _refused(refusals: dict[str, Any]) -> dict[str, Any]:
    """One answer for all operations, since each can be refused for several reasons."""
    examples = {
        code: {"summary": f"{refusal['status']} at {refusal['operation']}", "value": refusal["response"]}
        for code, refusal in refusals.items()
    }
    content = {"schema": {"$ref": "#/components/schemas/ErrorRead"}, "examples": examples}
    return {"description": "Refused: the caller must change something.", "content": {"application/json": content}}
