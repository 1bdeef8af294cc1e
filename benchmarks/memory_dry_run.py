"""A published row's step on fake tensors, beside the formula in `benchmarks.memory`.

Only for rows that were trained with transformers and PEFT, whatever script held them together: their code is what a
dry run runs. Not their versions of it, nor a model's own code beside its weights: the nearest family that transformers
has now stands for those.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.memory import MemoryEstimate
from app.planning.recipes import Facts
from app.planning.setups import Device
from app.planning.step import FULL_LOSS, ModelShape, Role, TrainingSetup
from tests import tiny
from worker.training.fake_model import Habits
from worker.training.fake_step import Rows, dry_run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FAMILIES = {"gemma-2": "gemma2", "gemma": "gemma", "qwen": "qwen2", "mistral": "mistral", "phi-3": "phi3"}
"""By how a model's name begins; others with a gated MLP are built as Llama is."""
NAMES: dict[Role, str] = {
    **{role: f"{role}_proj" for role in ("q", "k", "v", "o", "gate", "up", "down")},
    "head": "lm_head",
}
FUSED = {"q": "qkv_proj", "k": "qkv_proj", "v": "qkv_proj", "gate": "gate_up_proj", "up": "gate_up_proj"}
"""In Phi-3."""


def is_covered(row: Mapping[str, str], setup: TrainingSetup) -> bool:
    """Whether a row's step is one that can be taken here."""
    libraries = re.search("peft|trl|transformers|hf |swift", row["framework"].lower()) is not None
    known = row["mlp"] != "plain" and setup.weights != "int8"
    return libraries and known and setup.shards == 1 and not setup.buckets and not setup.compiled


def of_row(row: Mapping[str, str], shape: ModelShape, setup: TrainingSetup) -> MemoryEstimate:
    """What its step takes, as far as the row's own measure counts it."""
    config = _config(row, shape)
    spec = _spec(config, shape, setup)
    habits = Habits(
        autocast=setup.autocast,
        base=DTYPES.get(setup.weights),
        adapter=DTYPES[setup.trained],
        double_quantization=setup.weights == "nf4_double",
        tiles=setup.loss_bytes != FULL_LOSS,
        holds_outputs=row["framework"].startswith("PEFT"),  # its loop; transformers' trainer lets them go
    )
    padded = setup.micro_batch > 1 and "flash" not in row["attention_impl"].lower()
    found = dry_run(config, spec, Device("cuda", "bf16"), rows=Rows(padded=padded), habits=habits).train
    return replace(
        found,
        slack=found.slack if setup.reserved else 0.0,
        context=found.context if setup.context else 0.0,
    )


def _config(row: Mapping[str, str], shape: ModelShape) -> PreTrainedConfig:
    name = row["model"].lower()
    family = next((family for start, family in FAMILIES.items() if name.startswith(start)), "llama")
    config: PreTrainedConfig = tiny.config_of(family, shape, max_position_embeddings=32768, pad_token_id=None)
    return config


def _spec(config: PreTrainedConfig, shape: ModelShape, setup: TrainingSetup) -> JobSpec:
    tuning: dict[str, Any] = {"type": setup.tuning}
    if setup.tuning != "full":
        fused = FUSED if config.model_type == "phi3" else {}
        saved = [
            name for name, its in (("embed_tokens", setup.trains_embeddings), ("lm_head", setup.trains_head)) if its
        ]
        tuning |= {
            "r": setup.rank,
            "target_modules": sorted({fused.get(role, NAMES[role]) for role in setup.targets}),
            "use_dora": setup.use_dora,
            "modules_to_save": saved,
        }
    accumulation = 2 if setup.accumulates else 1
    hyperparameters = {
        "per_device_train_batch_size": setup.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "batch_size": setup.micro_batch * accumulation,
        "max_length": setup.length,
        "packing": False,
        "optim": _optim(setup),
        "gradient_checkpointing": setup.checkpointing,
    }
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    spec = JobSpec.model_validate({"model": "m", "training_file": "f", "seed": 0, "method": method, "tuning": tuning})
    facts = Facts(
        longest_row=setup.length,
        hidden_size=shape.hidden_size,
        model_type=config.model_type,
        context_length=32768,
        device="cuda",
    )
    return recipes.resolve(spec, facts)


def _optim(setup: TrainingSetup) -> str:
    eight_bits = setup.state_bytes not in (4.0, 8.0)
    if setup.states_in_host_memory:
        return "paged_adamw_8bit" if eight_bits else "paged_adamw_32bit"
    if eight_bits:
        return "adamw_bnb_8bit"
    return "adamw_torch" if setup.step_bytes else "adamw_torch_fused"
