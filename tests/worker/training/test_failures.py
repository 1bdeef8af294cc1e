"""From exceptions to what the job's owner is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.failures import SUGGESTIONS
from tests import tiny
from worker.training import failures
from worker.training.base import BaseChanged


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", False),
        (MemoryError(), "out_of_host_memory", True),
        (BaseChanged("the base differs"), "base_model_changed", False),
        (failures.TargetModulesUnusable("no such layer"), "invalid_target_modules", False),
        (ConnectionError("the hub is away"), "hub_unavailable", True),
        (KeyError("surprise"), "internal_error", False),
    ],
)
def test_an_error_has_its_code(error: Exception, code: str, retryable: bool) -> None:
    failed = failures.classify(error, "supervised")
    assert (failed.code, failed.retryable) == (code, retryable)


def test_a_machine_that_has_no_memory_left_is_not_the_users_mistake() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert failures.classify(caught.value, "supervised") == failures.classify(MemoryError(), "supervised")


def test_out_of_memory_says_what_to_try() -> None:
    failed = failures.classify(torch.OutOfMemoryError("CUDA out of memory"), "supervised")
    told = SUGGESTIONS[failed.code] or ""
    for remedy in ("per_device_train_batch_size", "gradient_checkpointing", "qlora", "max_length"):
        assert remedy in told


def test_a_loss_that_is_not_finite_ends_the_job_at_that_step(
    make_job: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.make_base(tmp_path / "models" / "spoilt")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("FINETUNED_MODELS_DIR", str(folder.parent))
    work_dir = make_job("lora", model="spoilt", save_steps=1)

    with pytest.raises(failures.LossNotFinite, match="loss of step 1 is nan"):
        run(work_dir)

    assert not list((work_dir / "checkpoints").glob("checkpoint-*"))
