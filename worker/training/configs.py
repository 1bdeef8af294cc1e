"""From our spec to the libraries' configs: pure, and the only place that knows both vocabularies.

Every number comes from the spec; several of TRL's defaults differ from it (bf16, checkpointing, rates, lengths).
"""

from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from transformers import BitsAndBytesConfig
from trl import SFTConfig

from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import recipes
from worker.training.device import Device


def lora_config(tuning: LoraTuning) -> LoraConfig:
    """The adapter's shape. `r` and `lora_alpha` are numbers: the spec is resolved."""
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=resolved(tuning.r),
        lora_alpha=resolved(tuning.lora_alpha),
        lora_dropout=tuning.lora_dropout,
        target_modules=tuning.target_modules,
        use_dora=tuning.use_dora,
        use_rslora=tuning.use_rslora,
        init_lora_weights=tuning.init_lora_weights,
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
    """Arguments of TRL's trainer. When to save and to evaluate is our callback's to say, so both strategies are off;
    which checkpoints go is `checkpoints.prune`'s, because transformers drops old ones before the new one is committed.
    """
    given = spec.hyperparameters
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=resolved(given.n_epochs),
        max_steps=given.max_steps or -1,
        per_device_train_batch_size=resolved(given.per_device_train_batch_size),
        per_device_eval_batch_size=recipes.rows_at_a_time(spec),
        gradient_accumulation_steps=resolved(given.gradient_accumulation_steps),
        learning_rate=float(given.learning_rate),
        lr_scheduler_type=given.lr_scheduler_type,
        warmup_steps=float(given.warmup_ratio),  # transformers 5 takes the fraction here
        weight_decay=float(given.weight_decay),
        max_grad_norm=float(given.max_grad_norm),
        neftune_noise_alpha=given.neftune_noise_alpha,
        optim=given.optim,
        gradient_checkpointing=bool(given.gradient_checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False} if given.gradient_checkpointing else None,
        max_length=resolved(given.max_length),
        packing=bool(given.packing),  # batches without padding, positions that restart at each row of a pack
        packing_strategy="bfd",
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # preparing has made ids, labels and packs
        bf16=device.precision == "bf16",
        use_cpu=device.kind == "cpu",
        seed=resolved(spec.seed),
        data_seed=resolved(spec.seed),
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN shall be seen, not replaced by the mean
        logging_strategy="steps",
        eval_strategy="no",
        prediction_loss_only=True,  # keep losses, not the logits of a whole file
        save_strategy="no",
        dataloader_num_workers=0,  # the rows are memory-mapped
        dataloader_pin_memory=device.kind == "cuda",
        report_to="none",
        disable_tqdm=True,
    )
