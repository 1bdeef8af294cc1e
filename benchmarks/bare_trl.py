"""A fine-tune as a plain TRL script would do it, with nothing of the service: what the trainer is held against.

`python benchmarks/bare_trl.py BASE ROWS.jsonl JOB.json OUT [--dtype bfloat16]`: rows of prompt and completion as TRL
takes them, the numbers of a resolved job.json. Prints a JSON line for each step, and one for each phase.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer


class Tell(TrainerCallback):
    """Prints what the trainer logs."""

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        """One line a step."""
        if "loss" in logs:
            tell(step=state.global_step, loss=float(logs["loss"]))


def tell(**what: Any) -> None:
    """A line, with the time of day in seconds."""
    print(json.dumps({**what, "at": time.time()}), flush=True)


def main() -> None:
    """Load, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "rows", "job", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tell(phase="imported")
    spec = json.loads(arguments.job.read_text())
    trainer = build(arguments.base, arguments.rows, spec, arguments.out, getattr(torch, arguments.dtype))
    tell(phase="loaded")
    trainer.train()
    tell(phase="trained")
    trainer.save_model(arguments.out)
    tell(phase="saved")


def build(base: Path, rows: Path, spec: dict[str, Any], out: Path, dtype: torch.dtype) -> SFTTrainer:
    """TRL's trainer, the way its documentation does it."""
    given, tuning = spec["method"]["supervised"]["hyperparameters"], spec["tuning"]
    full = tuning["type"] == "full"
    options = {}
    if tuning["type"] == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32 if full else dtype, **options)
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list([json.loads(line) for line in rows.read_text().splitlines()]),
        args=SFTConfig(
            output_dir=str(out),
            num_train_epochs=given["n_epochs"],
            max_steps=given["max_steps"] or -1,
            per_device_train_batch_size=given["per_device_train_batch_size"],
            gradient_accumulation_steps=given["gradient_accumulation_steps"],
            learning_rate=given["learning_rate"],
            lr_scheduler_type=given["lr_scheduler_type"],
            warmup_steps=given["warmup_ratio"],
            weight_decay=given["weight_decay"],
            max_grad_norm=given["max_grad_norm"],
            neftune_noise_alpha=given["neftune_noise_alpha"],
            optim=given["optim"],
            gradient_checkpointing=given["gradient_checkpointing"],
            max_length=given["max_length"],
            bf16=dtype == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=spec["seed"],
            data_seed=spec["seed"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        peft_config=None
        if full
        else LoraConfig(
            task_type="CAUSAL_LM",
            r=tuning["r"],
            lora_alpha=tuning["lora_alpha"],
            lora_dropout=tuning["lora_dropout"],
            target_modules=tuning["target_modules"],
            use_dora=tuning["use_dora"],
            use_rslora=tuning["use_rslora"],
        ),
    )
    if tuning["type"] == "qlora":
        # The one thing the recipe does otherwise: TRL casts the adapter to bf16, which rounds small updates away.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if not full and tuning["loraplus_lr_ratio"]:
        kind, options = SFTTrainer.get_optimizer_cls_and_kwargs(trainer.args)
        ratio = {"loraplus_lr_ratio": tuning["loraplus_lr_ratio"], "loraplus_weight_decay": given["weight_decay"]}
        trainer.optimizer = create_loraplus_optimizer(trainer.model, kind, **options, **ratio)
    trainer.add_callback(Tell())
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
