"""The whole story: a file is uploaded, a job is posted, a worker trains it, the result is loaded by plain libraries."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.running import Service


@pytest.mark.parametrize(
    "tuning", ["lora", *(pytest.param(name, marks=pytest.mark.long) for name in ("full", "qlora"))]
)
def test_a_posted_spec_becomes_a_result_in_the_registry(service: Service, tuning: str, tmp_path: Path) -> None:
    client = service.client()
    file_id = service.upload(tiny.chat_rows(40))

    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file_id,
        suffix="Box colours!",
        seed=7,
        metadata={"team": "support"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
        extra_body={"tuning": {"type": tuning}},
    )
    assert job.status in ("validating_files", "queued")
    job = service.finished(job.id)

    assert job.status == "succeeded", (job.error, [event.message for event in service.events(job.id)])
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:tiny:default:box-colours:")
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.models.retrieve(job.fine_tuned_model).object == "model"
    told = [event.message for event in service.events(job.id)]
    assert told[0] == f"Created fine-tuning job: {job.id}"
    assert told[-1] == "The job has successfully completed"
    losses = [event.data["train_loss"] for event in service.events(job.id) if event.type == "metrics"]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    _assert_entry_is_true(service, job.fine_tuned_model, tuning, file_id, tmp_path)


def _assert_entry_is_true(service: Service, model_id: str, tuning: str, file_id: str, tmp_path: Path) -> None:
    http = httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, trust_env=False)
    with http:
        entry = http.get(f"/v1/registry/models/{model_id}").json()
        assert entry["kind"] == ("full" if tuning == "full" else "adapter")
        assert entry["training_file"]["id"] == file_id
        assert entry["base"]["id"] == "tiny"
        assert entry["seed"] == 7
        assert {"torch", "transformers", "trl", "peft", "bitsandbytes"} <= set(entry["versions"])
        content = http.get(f"/v1/registry/models/{model_id}/download").content
        spec = http.get(f"/v1/registry/models/{model_id}/files/job.json").json()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(file["name"] for file in entry["files"])
    assert spec["tuning"]["type"] == tuning
    assert "auto" not in json.dumps(spec["tuning"])
    _assert_it_loads(service.home / "models" / "tiny", folder, entry)


def _assert_it_loads(base: Path, folder: Path, entry: dict[str, Any]) -> None:
    """With plain PEFT or transformers, from the published folder alone."""
    if entry["kind"] == "full":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny"
        assert config["revision"] == entry["base"]["revision"]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
            count = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118  not a dict
        assert count == entry["trained_parameters"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What colour is box 1?", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
