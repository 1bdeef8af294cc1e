"""From our spec to the libraries' configs: pure, and the only place that knows both vocabularies.

Every number comes from the spec; several of TRL's defaults differ from it (bf16, checkpointing, rates, lengths).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import BitsAndBytesConfig
from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, SFTConfig

from app.jobs.methods import (
    DpoHyperparameters,
    KtoHyperparameters,
    OrpoHyperparameters,
    ReinforcementHyperparameters,
    RewardHyperparameters,
    SimpoHyperparameters,
)
from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import recipes
from worker.training.device import Device


def lora_config(spec: JobSpec, tuning: LoraTuning, whole: Sequence[str] = (), *, tied: bool = False) -> LoraConfig:
    """The adapter's shape. `r` and `lora_alpha` are numbers: the spec is resolved.

    `whole`: the base's names for `modules_to_save`. `tied`: they have embeddings that are the output layer too.
    """
    return LoraConfig(
        # Of a reward model PEFT trains and saves the new output layer too.
        task_type=TaskType.SEQ_CLS if spec.method.type == "reward" else TaskType.CAUSAL_LM,
        r=resolved(tuning.r),
        lora_alpha=resolved(tuning.lora_alpha),
        lora_dropout=tuning.lora_dropout,
        target_modules=tuning.target_modules,
        use_dora=tuning.use_dora,
        use_rslora=tuning.use_rslora,
        init_lora_weights=tuning.init_lora_weights if tuning.init_lora_weights != "loftq" else True,
        modules_to_save=list(whole) or None,
        ensure_weight_tying=tied,
    )


def quantization_config(device: Device) -> BitsAndBytesConfig:
    """NF4 with double quantization: 0.516 bytes a parameter (QLoRA, Dettmers et al. 2023)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.compute_dtype,
    )


def base_dtype(spec: JobSpec, device: Device) -> torch.dtype:
    """What the base's weights are held in: fp32 where they move themselves, or where bf16 is slow."""
    return torch.float32 if spec.tuning.type == "full" else device.compute_dtype


def sft_config(spec: JobSpec, device: Device, output_dir: Path) -> SFTConfig:
    """Arguments of TRL's trainer on given answers and on texts."""
    given = spec.hyperparameters
    return SFTConfig(
        **_of_all(spec, device, output_dir),
        neftune_noise_alpha=given.neftune_noise_alpha,
        packing=bool(given.packing),  # batches without padding, positions that restart at each row of a pack
        packing_strategy="bfd",
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # preparing has made ids, labels and packs
    )


def dpo_config(spec: JobSpec, given: DpoHyperparameters, device: Device, output_dir: Path) -> DPOConfig:
    """Arguments of TRL's trainer on pairs of answers, against a reference model."""
    return DPOConfig(
        **_of_all(spec, device, output_dir),
        remove_unused_columns=False,
        beta=float(given.beta),
        loss_type=[given.loss_type],
        label_smoothing=float(given.label_smoothing),
    )


def kto_config(spec: JobSpec, given: KtoHyperparameters, device: Device, output_dir: Path) -> KTOConfig:
    """Arguments of TRL's trainer on single answers, wanted or not."""
    return KTOConfig(
        **_of_all(spec, device, output_dir),
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # an answer's batch is what it is compared in
        beta=float(given.beta),
        desirable_weight=given.desirable_weight,
        undesirable_weight=given.undesirable_weight,
    )


def orpo_config(spec: JobSpec, given: OrpoHyperparameters, device: Device, output_dir: Path) -> Any:
    """Arguments of TRL's trainer by odds ratios, `trl.experimental.orpo.ORPOConfig`."""
    from trl.experimental.orpo import ORPOConfig  # not every version has it

    return ORPOConfig(**_of_all(spec, device, output_dir), remove_unused_columns=False, beta=float(given.beta))


def simpo_config(spec: JobSpec, given: SimpoHyperparameters, device: Device, output_dir: Path) -> Any:
    """Arguments of TRL's contrastive trainer, `trl.experimental.cpo.CPOConfig`, with SimPO's loss and nothing else."""
    from trl.experimental.cpo import CPOConfig  # not every version has it

    return CPOConfig(
        **_of_all(spec, device, output_dir),
        remove_unused_columns=False,
        loss_type="simpo",
        cpo_alpha=0.0,  # CPO's own loss beside it
        beta=float(given.beta),
        simpo_gamma=float(given.simpo_gamma),
    )


def reward_config(spec: JobSpec, given: RewardHyperparameters, device: Device, output_dir: Path) -> RewardConfig:
    """Arguments of TRL's trainer of reward models."""
    return RewardConfig(
        **_of_all(spec, device, output_dir),
        remove_unused_columns=False,
        center_rewards_coefficient=given.center_rewards_coefficient,
    )


def batches(spec: JobSpec) -> dict[str, int]:
    """How many rows are computed at a time, and how often before a step."""
    given = spec.hyperparameters
    return {
        "per_device_train_batch_size": resolved(given.per_device_train_batch_size),
        "per_device_eval_batch_size": recipes.rows_at_a_time(spec),
        "gradient_accumulation_steps": resolved(given.gradient_accumulation_steps),
    }


def grpo_config(spec: JobSpec, given: ReinforcementHyperparameters, device: Device, output_dir: Path) -> GRPOConfig:
    """Arguments of TRL's trainer on the model's own answers.

    What is generated lasts for one step, so a checkpoint between steps lacks nothing of it.
    """
    theirs = _of_all(spec, device, output_dir)
    del theirs["max_length"]  # prompts are as long as they are, and answers have a length of their own
    return GRPOConfig(
        **theirs,
        remove_unused_columns=False,
        num_generations=resolved(given.num_generations),
        num_generations_eval=1,
        max_completion_length=resolved(given.max_completion_length),
        steps_per_generation=resolved(given.gradient_accumulation_steps),
        num_iterations=1,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=0,
        repetition_penalty=1.0,
        beta=float(given.beta),
        loss_type=given.loss_type,
        epsilon=given.epsilon,
        scale_rewards=given.scale_rewards,
        importance_sampling_level="token",
        mask_truncated_completions=False,
        use_vllm=False,
    )


def _of_all(spec: JobSpec, device: Device, output_dir: Path) -> dict[str, Any]:
    """What every trainer takes. When to save and to evaluate is our callback's to say, so both strategies are off;
    which checkpoints go is `checkpoints.prune`'s, because transformers drops old ones before the new one is committed.
    """
    given = spec.hyperparameters
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": resolved(given.n_epochs),
        "max_steps": given.max_steps or -1,
        **batches(spec),
        "learning_rate": float(given.learning_rate),
        "lr_scheduler_type": given.lr_scheduler_type,
        "warmup_steps": float(given.warmup_ratio),  # transformers 5 takes the fraction here
        "weight_decay": float(given.weight_decay),
        "max_grad_norm": float(given.max_grad_norm),
        "optim": given.optim,
        "gradient_checkpointing": bool(given.gradient_checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if given.gradient_checkpointing else None,
        "max_length": resolved(given.max_length),
        "bf16": device.precision == "bf16",
        "use_cpu": device.kind == "cpu",
        "seed": resolved(spec.seed),
        "data_seed": resolved(spec.seed),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a NaN shall be seen, not replaced by the mean
        "logging_strategy": "steps",
        "eval_strategy": "no",
        "prediction_loss_only": True,  # keep losses, not the logits of a whole file
        "save_strategy": "no",
        "dataloader_num_workers": 0,  # the rows are memory-mapped
        "dataloader_pin_memory": device.kind == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }
