"""A job that is paused, its checkpoints as models, and jobs that start from them: the whole service, a tiny base."""

import csv
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.running import Service, wait_for

STEPS, SAVED_EVERY = 20, 5


@pytest.fixture(scope="module")
def rows(service: Service) -> str:
    return service.upload(tiny.chat_rows(40))


@pytest.fixture(scope="module")
def trained(service: Service, rows: str) -> Any:
    """A job that was paused once it had a checkpoint, and resumed."""
    client = service.client()
    job_id = service.submit(
        rows,
        max_steps=STEPS,
        save_steps=SAVED_EVERY,
        batch_size=4,
        per_device_train_batch_size=1,
    )
    wait_for(lambda: client.fine_tuning.jobs.checkpoints.list(job_id).data, 60, every=0.1)
    assert client.fine_tuning.jobs.pause(job_id).status in ("running", "paused")
    paused = wait_for(lambda: _with_status(service, job_id, "paused"), 30, every=0.1)
    assert paused.model_extra["paused_by"] == "user"
    again: str = client.fine_tuning.jobs.pause(job_id).status
    assert again == "paused"
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"
    return service.finished(job_id)


def _with_status(service: Service, job_id: str, status: str) -> Any:
    job = service.client().fine_tuning.jobs.retrieve(job_id)
    return job if job.status == status else None


def _registry(service: Service, model: str) -> Any:
    return service.get(f"/v1/registry/models/{model}")


def _downloaded(service: Service, model: str, folder: Path) -> Path:
    headers = {"Authorization": f"Bearer {service.key}"}
    response = httpx.get(f"{service.url}/v1/registry/models/{model}/download", headers=headers, trust_env=False)
    with tarfile.open(fileobj=io.BytesIO(response.raise_for_status().content)) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def test_a_paused_job_goes_on_where_it_stopped(service: Service, trained: Any) -> None:
    assert trained.status == "succeeded", trained.error
    assert service.steps(trained.id) == list(range(1, STEPS + 1))
    first, second = service.attempts(trained.id)
    assert (first["outcome"], second["outcome"]) == ("paused", "succeeded")
    assert 0 < second["resumed_from_step"] < STEPS
    (result,) = service.results(trained.id)
    assert result["id"] == trained.fine_tuned_model


def test_checkpoints_are_listed_newest_first_in_pages(service: Service, trained: Any) -> None:
    client = service.client()
    found = list(client.fine_tuning.jobs.checkpoints.list(trained.id, limit=2))
    steps = [checkpoint.step_number for checkpoint in found]
    assert steps == sorted(steps, reverse=True)
    assert {5, 10, 15, 20} <= set(steps)
    told = [event.message for event in service.events(trained.id)]
    for checkpoint in found:
        name = f"{trained.fine_tuned_model}:ckpt-step-{checkpoint.step_number}"
        assert checkpoint.fine_tuned_model_checkpoint == name
        assert checkpoint.fine_tuning_job_id == trained.id
        assert checkpoint.metrics.step == checkpoint.step_number
        assert checkpoint.metrics.train_loss is not None
        assert f"Checkpoint created at step {checkpoint.step_number}" in told
        assert checkpoint.model_extra is not None
        assert checkpoint.model_extra["labels"] == (["last"] if checkpoint.step_number == STEPS else [])
        assert client.models.retrieve(name).id == name
    listed = {model.id for model in client.models.list()}
    assert {checkpoint.fine_tuned_model_checkpoint for checkpoint in found} <= listed


def test_a_checkpoint_is_a_model_that_plain_peft_loads(service: Service, trained: Any, tmp_path: Path) -> None:
    name = f"{trained.fine_tuned_model}:ckpt-step-10"
    entry = _registry(service, name)
    assert (entry["kind"], entry["step"], entry["metrics"]["steps"]) == ("adapter", 10, 10)
    assert entry["base"]["id"] == "tiny"
    names = {file["name"] for file in entry["files"]}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert not {name for name in names if "optimizer" in name or "trainer" in name or "rng" in name}
    folder = _downloaded(service, name, tmp_path)
    assert str(service.home) not in (folder / "adapter_config.json").read_text()
    base = AutoModelForCausalLM.from_pretrained(service.home / "models" / "tiny")
    assert PeftModel.from_pretrained(base, folder).peft_config["default"].base_model_name_or_path == "tiny"


def test_the_last_checkpoint_has_the_weights_of_the_result(service: Service, trained: Any) -> None:
    def weights(model: str) -> str:
        files = {file["name"]: file["sha256"] for file in _registry(service, model)["files"]}
        return str(files["adapter_model.safetensors"])

    assert weights(f"{trained.fine_tuned_model}:ckpt-step-{STEPS}") == weights(trained.fine_tuned_model)
    assert weights(f"{trained.fine_tuned_model}:ckpt-step-10") != weights(trained.fine_tuned_model)


def test_the_result_file_is_the_metrics_of_every_step(service: Service, trained: Any) -> None:
    client = service.client()
    (file_id,) = trained.result_files
    file = client.files.retrieve(file_id)
    assert (file.purpose, file.status) == ("fine-tune-results", "processed")
    table = list(csv.DictReader(io.StringIO(client.files.content(file_id).text)))
    assert [int(row["step"]) for row in table] == list(range(1, STEPS + 1))
    told = {event.data["step"]: event.data["train_loss"] for event in service.events(trained.id) if event.data}
    assert [float(row["train_loss"]) for row in table] == [told[step] for step in range(1, STEPS + 1)]


def _continue(service: Service, rows: str, model: str, **extra: Any) -> Any:
    numbers: Any = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-12}  # more than the stock client knows
    job = service.client().fine_tuning.jobs.create(
        model=model,
        training_file=rows,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
        extra_body=extra,
    )
    return service.finished(job.id)


@pytest.mark.parametrize("tuning", ["lora", pytest.param("qlora", marks=pytest.mark.long)])
def test_a_job_goes_on_from_a_checkpoint_on_its_own_base(
    service: Service, trained: Any, rows: str, tuning: str, tmp_path: Path
) -> None:
    """At a rate that moves nothing the result is the checkpoint: no bit of it is lost on the way."""
    start = f"{trained.fine_tuned_model}:ckpt-step-10"
    job = _continue(service, rows, start, tuning={"type": tuning})
    assert job.status == "succeeded", job.error
    entry = _registry(service, job.fine_tuned_model)
    assert job.fine_tuned_model.startswith("ft:tiny:default::")
    assert entry["parent"] == start
    assert entry["base"] == _registry(service, start)["base"]
    before = load_file(_downloaded(service, start, tmp_path / "before") / "adapter_model.safetensors")
    after = load_file(_downloaded(service, job.fine_tuned_model, tmp_path / "after") / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-9


@pytest.mark.long
def test_a_full_model_is_the_base_of_a_job_and_of_one_that_goes_on_with_its_adapter(
    service: Service, rows: str, tmp_path: Path
) -> None:
    parent = _continue(service, rows, "tiny", tuning={"type": "full"})
    assert parent.status == "succeeded", parent.error
    checkpoint = service.client().fine_tuning.jobs.checkpoints.list(parent.id).data[0]
    assert _registry(service, checkpoint.fine_tuned_model_checkpoint)["kind"] == "full"
    job = _continue(service, rows, parent.fine_tuned_model)
    assert job.status == "succeeded", job.error
    adapter = _registry(service, job.fine_tuned_model)
    assert (adapter["kind"], adapter["base"]["id"]) == ("adapter", parent.fine_tuned_model)

    service.client().models.delete(parent.fine_tuned_model)
    start = service.client().fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    further = _continue(service, rows, start)
    assert further.status == "succeeded", further.error
    assert further.fine_tuned_model.startswith("ft:tiny:default::")
    entry = _registry(service, further.fine_tuned_model)
    assert (entry["parent"], entry["base"]) == (start, adapter["base"])
    before = load_file(_downloaded(service, start, tmp_path / "before") / "adapter_model.safetensors")
    after = load_file(_downloaded(service, entry["id"], tmp_path / "after") / "adapter_model.safetensors")
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-9


@pytest.mark.long
def test_an_adapter_does_not_go_on_training_on_a_changed_base(service: Service, rows: str) -> None:
    models = service.home / "models"
    tiny.make_base(models / "fleeting")
    parent = _continue(service, rows, "fleeting")
    assert parent.status == "succeeded", parent.error
    shutil.rmtree(models / "fleeting")
    tiny.make_base(models / "fleeting", seed=1)
    job = _continue(service, rows, parent.fine_tuned_model)
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == ("base_model_changed", "model")
    assert "weights_sha256" in job.error.message
    assert job.error.suggestion.startswith("Put the base back that 'ft:")


def test_a_deleted_model_is_gone_and_its_job_stays(service: Service, trained: Any) -> None:
    client = service.client()
    name = f"{trained.fine_tuned_model}:ckpt-step-5"
    deleted = client.models.delete(name)
    assert (deleted.id, deleted.deleted) == (name, True)
    assert name not in {model.id for model in client.models.list()}
    steps = [checkpoint.step_number for checkpoint in client.fine_tuning.jobs.checkpoints.list(trained.id)]
    assert 5 not in steps
    assert client.fine_tuning.jobs.retrieve(trained.id).status == "succeeded"
