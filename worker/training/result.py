"""The folder to publish: what PEFT and transformers load by themselves, the spec, and what the run measured."""

import json
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from worker.training import model as models
from worker.training.callbacks import Progress
from worker.training.device import Device, peak_memory_bytes

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def write(
    folder: Path,
    *,
    trainer: SFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    spec: JobSpec,
    prepared: Prepared,
    machine: Device,
    base: Path,
    progress: Progress,
    phases: dict[str, float],
) -> None:
    """Write the folder whole and synced; one from before is removed first. `phases`: seconds so far, by phase."""
    began = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    peak = peak_memory_bytes(machine)  # before saving, which is not what a next job must fit into
    trained, total = models.count_parameters(trainer.model)
    moved = _save_weights(folder, trainer.model, prepared, base)
    tokenizer.save_pretrained(folder)
    (folder / "job.json").write_text(spec.model_dump_json(indent=2))
    metrics = {
        "steps": trainer.state.global_step,
        "loss_first": _logged(trainer, "loss")[0],
        "loss_last": _logged(trainer, "loss")[-1],
        "eval_loss": next(reversed(_logged(trainer, "eval_loss")), None),
        "tokens": progress.tokens,
        "trained_tokens": round(prepared.train.trained_tokens * float(trainer.state.epoch or 0)),
        "train_seconds": progress.seconds,
        "peak_memory_bytes": peak,
        "trained_parameters": trained,
        "all_parameters": total,
        "device": machine.name,
        "precision": machine.precision,
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "phases": phases | {"save": time.perf_counter() - began},
        **moved,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    _sync(folder)


def _logged(trainer: SFTTrainer, name: str) -> list[float]:
    """Since the job's first step, the steps of earlier attempts included."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def _save_weights(folder: Path, trained: Any, prepared: Prepared, base: Path) -> dict[str, float]:
    if isinstance(trained, PeftModel):
        _save_adapter(folder, trained, prepared)
        return {}
    return _save_full(folder, trained, base)


def _save_adapter(folder: Path, trained: PeftModel, prepared: Prepared) -> None:
    """In fp32, as it was trained: it is small, and who merges it shall not merge what was rounded."""
    config = trained.peft_config["default"]
    config.base_model_name_or_path = prepared.base.id  # an id, never a path of this machine
    config.revision = prepared.base.revision
    # PEFT would look the base up at the hub to see whether its vocabulary grew; this service adds no tokens.
    trained.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # the registry writes the card, from what it knows


def _save_full(folder: Path, trained: PreTrainedModel, base: Path) -> dict[str, float]:
    """In the base's own dtype, which is what it is served in; the fp32 weights are twice the size.

    Returns the share of weights that training moved, and the share that still differ after rounding.
    """
    dtype = _dtype_of(base)
    moved = _share_moved(trained, base, None)
    published = _share_moved(trained, base, dtype)
    trained.to(dtype)
    trained.save_pretrained(folder)
    return {"weights_moved": moved, "weights_moved_published": published}


def _dtype_of(base: Path) -> torch.dtype:
    """What most of the base's weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for file in base.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                tensor = tensors.get_tensor(name)
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def _share_moved(trained: PreTrainedModel, base: Path, rounded_to: torch.dtype | None) -> float:
    weights = dict(trained.named_parameters())
    moved = total = 0
    for file in base.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                if name not in weights:
                    continue
                after = weights[name].detach().cpu()
                before = tensors.get_tensor(name)
                after = after.to(rounded_to) if rounded_to else after
                moved += int((after != before.to(after.dtype)).sum())
                total += before.numel()
    return moved / total if total else 0.0


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
