"""Folders to publish: what PEFT and transformers load by themselves, the spec, and what the run measured.

One at the end, and one for each checkpoint on the way.
"""

import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec, LoraTuning
from app.planning.setups import generated_at_once
from worker import checkpoints
from worker.checkpoints import Checkpoint
from worker.training import initial
from worker.training import model as models
from worker.training.callbacks import Progress
from worker.training.choice import Choice
from worker.training.device import Device, peak_memory_bytes

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
OF_A_MODEL = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""What a model is made of. The rest of a checkpoint is for going on from it: optimizer, schedule, random state."""
ADAPTER_CONFIG = "adapter_config.json"
REWARDS = {"reward": "train_mean_reward", "eval_reward": "valid_mean_reward"}
"""What TRL's GRPO calls them, and we of a checkpoint."""
OF_THE_TRAINER = {"trainer_state.json", checkpoints.MANIFEST, initial.FILE}


@dataclass(frozen=True, slots=True)
class Result:
    """What a run makes of its base, as it is now."""

    trainer: Trainer
    tokenizer: PreTrainedTokenizerBase
    spec: JobSpec
    prepared: Prepared
    machine: Device
    base: Path
    progress: Progress

    def write(self, folder: Path, choice: Choice, *, phases: dict[str, float]) -> None:
        """Write the folder whole and synced; one from before is removed first. `phases`: seconds so far, by phase.

        The weights are the model's, where `choice` has put them; what was measured is of the whole run.
        """
        began = time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        measured = self._measured()  # before saving, which is not what a next job must fit into
        moved = self._save_weights(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "job.json").write_text(self.spec.model_dump_json(indent=2))
        metrics = measured | choice.as_metrics() | moved | {"phases": phases | {"save": time.perf_counter() - began}}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
        _sync(folder)

    def offer(self, checkpoint: Checkpoint, folder: Path) -> None:
        """A committed checkpoint as a model, for the worker to publish: linked, because older checkpoints go.

        A full model's weights are in fp32 there, as they are trained.
        """
        arriving = folder.with_name(f"{folder.name}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        for path in checkpoint.path.iterdir():
            if path.name == ADAPTER_CONFIG:
                named = json.loads(path.read_text()) | self._base_by_name()
                (arriving / path.name).write_text(json.dumps(named, indent=2))
            elif path.suffix in OF_A_MODEL and path.name not in OF_THE_TRAINER:
                os.link(path, arriving / path.name)
        self._give_back(arriving)
        (arriving / "job.json").write_text(self.spec.model_dump_json(indent=2))
        metrics = self._measured() | {"checkpoint": self._at_this_step()}
        (arriving / "metrics.json").write_text(json.dumps(metrics, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        arriving.rename(folder)

    def _measured(self) -> dict[str, Any]:
        trained, total = models.count_parameters(self.trainer.model)
        return {
            "steps": self.trainer.state.global_step,
            "loss_first": self._logged("loss")[0],
            "loss_last": self._logged("loss")[-1],
            "eval_loss": next(reversed(self._logged("eval_loss")), None),
            "tokens": self.progress.tokens,
            "trained_tokens": round(self.prepared.train.trained_tokens * float(self.trainer.state.epoch or 0)),
            **(self._of_answers() if self.spec.method.type == "reinforcement" else {}),
            "train_seconds": self.progress.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.machine),
            "trained_parameters": trained,
            "all_parameters": total,
            "device": self.machine.name,
            "precision": self.machine.precision,
            "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        }

    def _of_answers(self) -> dict[str, Any]:
        """Of what was generated, and trained on. `generated_positions`: tokens one after the other, of all steps."""
        rewards, said = self._logged("reward"), generated_at_once(self.spec)
        return {
            "trained_tokens": round(sum(self._logged("completions/mean_length")) * said),
            "generated_positions": round(sum(self._logged("completions/max_length"))),
            "reward_first": rewards[0],
            "reward_last": rewards[-1],
            "eval_reward": next(reversed(self._logged("eval_reward")), None),
        }

    def _logged(self, name: str) -> list[float]:
        """Since the job's first step, the steps of earlier attempts included."""
        return [entry[name] for entry in self.trainer.state.log_history if name in entry]

    def _at_this_step(self) -> dict[str, Any]:
        """In OpenAI's names. An evaluation here is over the whole validation file, which is what `full` means there."""
        step = self.trainer.state.global_step
        logged: dict[str, Any] = {}
        for entry in self.trainer.state.log_history:
            if entry["step"] == step:
                logged |= entry
        loss, accuracy = logged.get("eval_loss"), logged.get("eval_mean_token_accuracy")
        return {
            "step": step,
            "train_loss": logged.get("loss"),
            "train_mean_token_accuracy": logged.get("mean_token_accuracy"),
            "valid_loss": loss,
            "valid_mean_token_accuracy": accuracy,
            "full_valid_loss": loss,
            "full_valid_mean_token_accuracy": accuracy,
            **{ours: logged[name] for name, ours in REWARDS.items() if name in logged},
        }

    def _base_by_name(self) -> dict[str, str]:
        """What an adapter says it belongs to: an id, never a path of this machine."""
        return {"base_model_name_or_path": self.prepared.base.id, "revision": self.prepared.base.revision}

    def _save_weights(self, folder: Path) -> dict[str, float]:
        trained = self.trainer.model
        if not isinstance(trained, PeftModel):
            return _save_full(folder, trained, self.base)
        # In fp32, as it was trained: it is small, and who merges it shall not merge what was rounded. PEFT would look
        # the base up at the hub to see whether its vocabulary grew; this service adds no tokens.
        for name, value in self._base_by_name().items():
            setattr(trained.peft_config["default"], name, value)
        trained.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])  # and no reference
        (folder / "README.md").unlink(missing_ok=True)  # the registry writes the card, from what it knows
        self._give_back(folder)
        return {}

    def _give_back(self, folder: Path) -> None:
        """What a saved adapter has of the base's weights, so that it is one for the base as it is published."""
        if isinstance(self.spec.tuning, LoraTuning) and self.spec.tuning.takes_from_base:
            initial.convert(folder, Path(self.trainer.args.output_dir) / initial.FILE, self.spec.tuning)


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
