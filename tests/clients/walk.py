"""What a script does with the stock client, unchanged from one major version to the next. Prints what it saw as JSON.

`OPENAI_BASE_URL=… OPENAI_API_KEY=… python walk.py rows.jsonl MODEL`
"""

import json
import sys
import time
from typing import Any

import openai

rows, model = sys.argv[1:]
client = openai.OpenAI()
metadata = {"walk": f"python {openai.__version__}", "empty": ""}


def until(job_id: str, *statuses: str) -> Any:
    for _ in range(1200):
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in statuses:
            return job
        time.sleep(0.1)
    raise SystemExit(f"{job_id} is {job.status} after two minutes, not {statuses}")


file = client.files.create(file=open(rows, "rb"), purpose="fine-tune")
file = client.files.wait_for_processing(file.id)
job = client.fine_tuning.jobs.create(
    model=model,
    training_file=file.id,
    validation_file=None,
    suffix="Walk Through",
    seed=7,
    metadata=metadata,
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    extra_body={"tuning": {"type": "lora", "r": 4}},
)
assert str(client.fine_tuning.jobs.retrieve(job.id)._request_id).startswith("req_")
job = until(job.id, "succeeded", "failed", "cancelled")
events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
table = client.files.content(job.result_files[0]).text
models = {found.id for found in client.models.list()}

second = client.fine_tuning.jobs.create(
    model=checkpoints[-1].fine_tuned_model_checkpoint,
    training_file=file.id,
    hyperparameters={"n_epochs": 1, "batch_size": "auto"},  # as scripts of 2023 have it
)
client.fine_tuning.jobs.pause(second.id)
paused = until(second.id, "paused")
resumed = client.fine_tuning.jobs.resume(second.id)
client.fine_tuning.jobs.cancel(second.id)
cancelled = until(second.id, "cancelled", "succeeded", "failed")

listed = [found.id for found in client.fine_tuning.jobs.list(metadata=metadata)]
everything = [found.id for found in client.fine_tuning.jobs.list(limit=1)]
deleted = client.models.delete(job.fine_tuned_model)
try:
    client.models.retrieve(job.fine_tuned_model)
except openai.NotFoundError as error:
    missing = {"code": error.code, "type": error.type, "request_id": bool(error.request_id)}
try:
    client.fine_tuning.jobs.create(model=model, training_file="file-none", extra_body={"tunning": {}})
except openai.BadRequestError as error:
    refused = {"param": error.param, "code": error.code, "helps": "tuning" in str(error)}

print(
    json.dumps(
        {
            "file": file.status,
            "status": job.status,
            "error": job.error and job.error.message,
            "own": job.model_extra["tuning"]["r"],
            "epochs": job.hyperparameters.n_epochs,
            "first": events[-1].message,
            "last": events[0].message,
            "metrics": sum(event.type == "metrics" for event in events),
            "steps": [checkpoint.step_number for checkpoint in checkpoints],
            "rows": table.splitlines()[0],
            "lines": len(table.splitlines()),
            "known": {job.fine_tuned_model, model} <= models,
            "paused": paused.status,
            "resumed": resumed.status,
            "cancelled": cancelled.status,
            "found": listed == [job.id],
            "paged": everything[:2] == [second.id, job.id],
            "deleted": deleted.deleted,
            "missing": missing,
            "refused": refused,
        }
    )
)
