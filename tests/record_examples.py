"""Records the examples at /docs: one walk through every operation of a server started for it. `make examples`"""

import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests import running, tiny
from tests.receiver import receiving
from tests.running import Service, wait_for

FILE = Path(__file__).parent.parent / "app" / "openapi_examples.json"
HOOK = "https://tickets.example/hook"
"""Shown in place of the address of this machine's receiver. Names below `.example` belong to nobody."""

FILES, UPLOADS, JOBS = "/v1/files", "/v1/uploads", "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions"
RECOMMENDATIONS = "/v1/fine_tuning/recommendations"
PLANS = "/v1/fine_tuning/plans"
GRADERS = "/v1/fine_tuning/alpha/graders"
WEBHOOKS = "/v1/webhook_endpoints"
ENDPOINT = f"{WEBHOOKS}/{{webhook_endpoint_id}}"


class Recorder:
    """Calls the API, and keeps what was sent and answered."""

    def __init__(self, service: Service) -> None:
        self.operations: dict[str, Any] = {}
        self.refusals: dict[str, Any] = {}
        headers = {"Authorization": f"Bearer {service.key}"}
        self.client = httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False)

    def call(self, operation: str, *, body: Any = None, form: dict[str, Any] | None = None, **parameters: Any) -> Any:
        """Send what need not be shown. A form has its files as (name, content); returns JSON, or text."""
        response = self._send(operation, body, form, parameters).raise_for_status()
        kind = response.headers["content-type"].partition(";")[0]
        return response.json() if kind == "application/json" else response.text if kind.startswith("text/") else None

    def show(self, operation: str, *, body: Any = None, form: dict[str, Any] | None = None, **parameters: Any) -> Any:
        """The same as an example; bytes are not shown."""
        answer = self.call(operation, body=body, form=form, **parameters)
        read = {name: field[1].decode() if isinstance(field, tuple) else field for name, field in (form or {}).items()}
        example = {"parameters": parameters, "body": body or read, "response": _cut(answer)}
        self.operations[operation] = {name: value for name, value in example.items() if value}
        return answer

    def await_made(self, operation: str, *, body: Any = None, **parameters: Any) -> None:
        """Ask until the answer is no 202."""
        wait_for(lambda: self._send(operation, body, None, parameters).status_code == 200, 120, every=0.2)

    def refuse(self, operation: str, *, body: Any = None, key: str | None = None, **parameters: Any) -> None:
        """A request that is refused, kept by the refusal's code."""
        response = self._send(operation, body, None, parameters, **({"Authorization": f"Bearer {key}"} if key else {}))
        assert response.is_client_error, response.text
        kept = {"operation": operation, "status": response.status_code, "response": response.json()}
        self.refusals[response.json()["error"]["code"]] = kept

    def _send(
        self, operation: str, body: Any, form: dict[str, Any] | None, parameters: dict[str, Any], **headers: str
    ) -> httpx.Response:
        method, template = operation.split()
        in_path = set(re.findall(r"{(\w+)}", template))
        path = template.format_map({name: quote(str(parameters[name]), safe="") for name in in_path})
        return self.client.request(
            method,
            path,
            params=_query({name: value for name, value in parameters.items() if name not in in_path}),
            json=body,
            data={name: field for name, field in (form or {}).items() if not isinstance(field, tuple)},
            files={name: field for name, field in (form or {}).items() if isinstance(field, tuple)} or None,
            headers=headers,
        )


def _query(parameters: dict[str, Any]) -> dict[str, Any]:
    """With `name[key]=value` for a parameter that is an object, as OpenAPI's style `deepObject` has it."""
    query: dict[str, Any] = {}
    for name, value in parameters.items():
        query |= {f"{name}[{key}]": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return query


def _cut(answer: Any) -> Any:
    """Long lists to two entries."""
    if isinstance(answer, dict):
        return {name: _cut(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [_cut(entry) for entry in answer[: 2 if len(answer) > 3 else None]]
    return answer


def record(service: Service) -> dict[str, Any]:
    """Walk, and return what `app.openapi.recorded` reads. The service must allow webhooks to this machine."""
    recorder = Recorder(service)
    with recorder.client, receiving() as receiver:
        _walk(recorder, service, receiver.url)
    found = json.dumps({"operations": recorder.operations, "refusals": recorder.refusals})
    host = socket.gethostname()
    renamed = {
        receiver.url: HOOK,
        str(service.home): "/var/lib/finetuned",
        sys.prefix: "/opt/finetuned",
        f'"{host}"': '"worker-1"',
        f'"{host}:': '"worker-1:',  # at the beginning of a worker's id
    }
    for here, elsewhere in renamed.items():
        found = found.replace(here, elsewhere)
    for private in (host, str(Path.home()), str(FILE.parents[1]), tempfile.gettempdir()):
        assert f"{private}/" not in found, private
    examples: dict[str, Any] = json.loads(found)
    return examples


def _walk(api: Recorder, service: Service, hook: str) -> None:
    """In an order in which each operation has something to show."""
    _operation(api)
    _graders(api)
    endpoint = _endpoints(api, hook)
    training_file, validation_file = _files(api)
    _planning(api, training_file)
    job_id, model = _jobs(api, training_file, validation_file)
    _following(api, job_id)
    _deliveries(api, endpoint)
    _models(api, model)
    _permissions(api, model, _another_project(service))
    _deletions(api, endpoint, validation_file, job_id)
    _refusals(api, job_id, training_file)


def _operation(api: Recorder) -> None:
    api.show("GET /healthz")
    api.show("GET /readyz")
    api.show("GET /v1/workers")


def _graders(api: Recorder) -> None:
    exact = {
        "type": "string_check",
        "name": "exact",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "operation": "eq",
    }
    near = {
        "type": "text_similarity",
        "name": "near",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "evaluation_metric": "fuzzy_match",
    }
    both = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": exact, "near": near},
        "calculate_output": "0.5 * exact + 0.5 * near",
    }
    api.show(f"POST {GRADERS}/validate", body={"grader": exact})
    sample = {"model_sample": "Box 3 is white", "item": {"answer": "Box 3 is white."}}
    api.show(f"POST {GRADERS}/run", body={"grader": both, **sample})


def _endpoints(api: Recorder, hook: str) -> str:
    types = api.show("GET /v1/webhook_event_types")["data"]
    endpoint: str = api.show(f"POST {WEBHOOKS}", body={"name": "tickets", "url": hook, "event_types": types})["id"]
    api.show(f"GET {WEBHOOKS}", limit=2)
    api.show(f"GET {ENDPOINT}", webhook_endpoint_id=endpoint)
    api.show(f"POST {ENDPOINT}", webhook_endpoint_id=endpoint, body={"name": "tickets of the support team"})
    rotation = {"keep_old_secret_active_for_24_hours": True}
    api.show(f"POST {ENDPOINT}/rotate_secret", webhook_endpoint_id=endpoint, body=rotation)
    api.show(f"POST {ENDPOINT}/test", webhook_endpoint_id=endpoint, body={"event_type": types[0]})
    return endpoint


def _files(api: Recorder) -> tuple[str, str]:
    """A file to train on, sent whole, and one to validate with, sent in two parts."""
    rows = tiny.jsonl(tiny.chat_rows(8))
    training_file = api.show(f"POST {FILES}", form={"purpose": "fine-tune", "file": ("boxes.jsonl", rows)})["id"]
    api.show(f"GET {FILES}/{{file_id}}", file_id=training_file)
    api.show(f"GET {FILES}/{{file_id}}/content", file_id=training_file)

    parts = [tiny.jsonl(tiny.chat_rows(4)[:2]), tiny.jsonl(tiny.chat_rows(4)[2:])]
    announced = {
        "filename": "more-boxes.jsonl",
        "purpose": "fine-tune",
        "bytes": sum(map(len, parts)),
        "mime_type": "application/jsonl",
    }
    upload_id = api.show(f"POST {UPLOADS}", body=announced)["id"]
    sent = [
        api.show(f"POST {UPLOADS}/{{upload_id}}/parts", upload_id=upload_id, form={"data": ("part", part)})["id"]
        for part in parts
    ]
    done = api.show(f"POST {UPLOADS}/{{upload_id}}/complete", upload_id=upload_id, body={"part_ids": sent})
    abandoned = api.call(f"POST {UPLOADS}", body=announced)["id"]
    api.show(f"POST {UPLOADS}/{{upload_id}}/cancel", upload_id=abandoned)

    api.show(f"GET {FILES}", purpose="fine-tune", limit=2)

    report = f"GET {FILES}/{{file_id}}/report"
    api.await_made(report, file_id=training_file, model="tiny")
    api.show(report, file_id=training_file, model="tiny")
    api.show(f"{report}/findings", file_id=training_file, model="tiny")
    preview, asked = f"POST {FILES}/{{file_id}}/preview", {"model": "tiny", "rows": [2]}
    api.await_made(preview, body=asked, file_id=training_file)
    api.show(preview, body=asked, file_id=training_file)
    return training_file, done["file"]["id"]


def _planning(api: Recorder, training_file: str) -> None:
    question = {"goal": "style", "model": "tiny", "training_file": training_file, "gpu_memory_gb": [24]}
    api.show(f"POST {RECOMMENDATIONS}", body=question)
    assumed = {"rows": 1000, "tokens": 300_000, "longest": 200}
    plan = api.show(
        f"POST {PLANS}", body={"model": "tiny", "training_file": None, "assume": assumed, "tuning": {"type": "lora"}}
    )
    its = f"GET {PLANS}/{{plan_id}}"
    wait_for(lambda: api.call(its, plan_id=plan["id"])["dry_run"]["status"] != "in_progress", 200, every=0.5)
    api.show(its, plan_id=plan["id"])


def _jobs(api: Recorder, training_file: str, validation_file: str) -> tuple[str, str]:
    """A job that succeeds, and one that is paused, resumed and cancelled. Returns the first and its model."""
    hyperparameters = {"n_epochs": 5, "batch_size": 4, "learning_rate": 0.001, "save_steps": 5, "eval_steps": 5}
    spec = {
        "model": "tiny",
        "training_file": training_file,
        "validation_file": validation_file,
        "suffix": "boxes",
        "seed": 7,
        "metadata": {"team": "support"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "tuning": {"type": "lora", "r": 8},
    }
    job_id = api.show(f"POST {JOBS}", body=spec)["id"]
    other = api.call(f"POST {JOBS}", body=spec | {"seed": 8})["id"]
    _waited_for(api, other, "queued", "running")
    api.show(f"POST {JOBS}/{{job_id}}/pause", job_id=other)
    _waited_for(api, other, "paused")
    api.show(f"POST {JOBS}/{{job_id}}/resume", job_id=other)
    api.show(f"POST {JOBS}/{{job_id}}/cancel", job_id=other)
    _waited_for(api, other, "cancelled")

    model = _waited_for(api, job_id, "succeeded")["fine_tuned_model"]
    api.show(f"GET {JOBS}/{{job_id}}", job_id=job_id)
    api.show(f"GET {JOBS}", limit=2, status=["succeeded", "running"], metadata={"team": "support"})
    return job_id, model


def _waited_for(api: Recorder, job_id: str, *statuses: str) -> Any:
    """A job once it has one of these statuses."""

    def there() -> Any:
        job = api.call(f"GET {JOBS}/{{job_id}}", job_id=job_id)
        assert job["status"] != "failed", job["error"]
        return job if job["status"] in statuses else None

    return wait_for(there, 120, every=0.1)


def _following(api: Recorder, job_id: str) -> None:
    """The end of each series, which is short."""
    newest = api.call(f"GET {JOBS}/{{job_id}}/events", job_id=job_id)["data"]
    measured = next(index for index, event in enumerate(newest) if event["type"] == "metrics")
    api.show(f"GET {JOBS}/{{job_id}}/events", job_id=job_id, limit=2, after=newest[measured - 1]["id"])
    api.show(f"GET {JOBS}/{{job_id}}/events/stream", job_id=job_id, after=newest[2]["id"])
    api.show(f"POST {JOBS}/{{job_id}}/events/token", job_id=job_id)
    api.show(f"GET {JOBS}/{{job_id}}/logs", job_id=job_id, tail=5)
    api.show(f"GET {JOBS}/{{job_id}}/metrics", job_id=job_id, points=100, after_step=8)
    api.show(f"GET {JOBS}/{{job_id}}/checkpoints", job_id=job_id, limit=2)
    api.show(f"GET {JOBS}/{{job_id}}/attempts", job_id=job_id)


def _deliveries(api: Recorder, endpoint: str) -> None:
    def delivered() -> Any:
        found = api.show(f"GET {ENDPOINT}/deliveries", webhook_endpoint_id=endpoint, limit=2)["data"]
        return found if found and all(delivery["status"] == "delivered" for delivery in found) else None

    (*_, first) = wait_for(delivered, every=0.2)
    again = f"POST {ENDPOINT}/deliveries/{{delivery_id}}/retry"
    api.show(again, webhook_endpoint_id=endpoint, delivery_id=first["id"])


def _models(api: Recorder, model: str) -> None:
    api.show("GET /v1/models")
    api.show("GET /v1/models/{model}", model=model)
    api.show("GET /v1/registry/models", limit=2, checkpoints=True)
    api.show("GET /v1/registry/models/{model}", model=model)
    api.show("GET /v1/registry/models/{model}/verify", model=model)
    api.show("GET /v1/registry/models/{model}/files/{name}", model=model, name="adapter_config.json")
    api.show("GET /v1/registry/models/{model}/download", model=model)


def _another_project(service: Service) -> str:
    """The id of a project to share with, made as an operator makes it."""
    api = wait_for(lambda: service.part("app.cli.api"))
    create = [sys.executable, "-m", "app.cli", "keys", "create", "laptop", "--project", "research"]
    subprocess.run(create, env=api.environ(), check=True, capture_output=True)
    with service.database() as database:
        project = database.execute("SELECT id FROM projects WHERE name = 'research'").fetchone()
    assert project is not None
    return str(project[0])


def _permissions(api: Recorder, model: str, project_id: str) -> None:
    shared: dict[str, Any] = {"fine_tuned_model_checkpoint": model}
    granted = api.show(f"POST {PERMISSIONS}", **shared, body={"project_ids": [project_id]})
    api.show(f"GET {PERMISSIONS}", **shared, limit=2)
    api.show(f"DELETE {PERMISSIONS}/{{permission_id}}", **shared, permission_id=granted["data"][0]["id"])


def _deletions(api: Recorder, endpoint: str, file_id: str, job_id: str) -> None:
    api.show(f"DELETE {ENDPOINT}", webhook_endpoint_id=endpoint)
    api.show(f"DELETE {FILES}/{{file_id}}", file_id=file_id)
    (*_, checkpoint) = api.call(f"GET {JOBS}/{{job_id}}/checkpoints", job_id=job_id)["data"]
    api.show("DELETE /v1/models/{model}", model=checkpoint["fine_tuned_model_checkpoint"])


def _refusals(api: Recorder, job_id: str, training_file: str) -> None:
    api.refuse("GET /v1/models", key="ft-not-a-key")
    api.refuse(f"GET {JOBS}/{{job_id}}", job_id="ftjob-unknown")
    misspelt = {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 3}}}}
    api.refuse(f"POST {JOBS}", body={"model": "tiny", "training_file": training_file, **misspelt})
    api.refuse(f"POST {JOBS}/{{job_id}}/resume", job_id=job_id)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        with running.up(Path(folder), FINETUNED_WEBHOOK_ALLOW="127.0.0.0/8", FINETUNED_DRY_RUNS="true") as service:
            FILE.write_text(json.dumps(record(service), indent=1, ensure_ascii=False) + "\n")
