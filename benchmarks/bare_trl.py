"""A fine-tune as a plain TRL script would do it, with nothing of the service: what the trainer is held against.

`python -m benchmarks.bare_trl BASE ROWS.jsonl JOB.json OUT [--dtype bfloat16]`: rows as TRL takes them for the
method, the numbers of a resolved job.json. Prints a JSON line for each step, and one for each phase.
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
from rapidfuzz import fuzz
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Tell(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
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
    parser.add_argument("--defaults", action="store_true", help="TRL's own: 8 rows, checkpointing, bf16")
    parser.add_argument("--fp32", action="store_true", help="with --defaults: fp32 in place of TRL's bf16")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tell(phase="imported")
    spec = json.loads(arguments.job.read_text())
    dtype = getattr(torch, arguments.dtype)
    build_with = {"defaults": arguments.defaults, "fp32": arguments.fp32}
    trainer = build(arguments.base, arguments.rows, spec, arguments.out, dtype, **build_with)
    tell(phase="loaded")
    trainer.train()
    tell(phase="trained")
    trainer.save_model(arguments.out)
    tell(phase="saved")


def build(
    base: Path,
    rows: Path,
    spec: dict[str, Any],
    out: Path,
    dtype: torch.dtype,
    *,
    defaults: bool = False,
    fp32: bool = False,
) -> Any:
    """TRL's trainer for the spec's method, the way its documentation does it.

    `defaults`: with TRL's own of what changes no step's rows, which is how many are computed at a time and how.
    `fp32`: with those, but for bf16.
    """
    method, tuning = spec["method"]["type"], spec["tuning"]
    given, full = spec["method"][method]["hyperparameters"], tuning["type"] == "full"
    options: dict[str, Any] = {}
    if tuning["type"] == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    kind: Any = AutoModelForCausalLM
    if method == "reward":
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
        set_seed(spec["seed"])
    trainer_of, config_of, own = of_method(method, given)
    ways = {
        "per_device_train_batch_size": given["per_device_train_batch_size"],
        "gradient_accumulation_steps": given["gradient_accumulation_steps"],
        "gradient_checkpointing": given["gradient_checkpointing"],
        "bf16": dtype == torch.bfloat16,
    }
    if defaults:
        ways = {"gradient_accumulation_steps": given["batch_size"] // 8, **({"bf16": False} if fp32 else {})}
    lengths = {"max_length": given["max_length"]}
    if method == "reinforcement":
        lengths = {"max_completion_length": given["max_completion_length"]}
    args = config_of(
        output_dir=str(out),
        num_train_epochs=given["n_epochs"],
        max_steps=given["max_steps"] or -1,
        learning_rate=given["learning_rate"],
        lr_scheduler_type=given["lr_scheduler_type"],
        warmup_steps=given["warmup_ratio"],
        weight_decay=given["weight_decay"],
        max_grad_norm=given["max_grad_norm"],
        neftune_noise_alpha=given["neftune_noise_alpha"],
        optim=given["optim"],
        use_cpu=not torch.cuda.is_available(),
        seed=spec["seed"],
        data_seed=spec["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **lengths,
        **ways,
        **own,
    )
    model = kind.from_pretrained(base, dtype=torch.float32 if full else dtype, **options)
    whole = [] if full else tuning["modules_to_save"]
    adapter = LoraConfig(
        task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM",
        **{
            name: tuning[name]
            for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
            if not full
        },
        init_lora_weights=True if full else tuning["init_lora_weights"],
        modules_to_save=whole or None,
        ensure_weight_tying=model.config.tie_word_embeddings and "embed_tokens" in whole,
    )
    examples = [json.loads(line) for line in rows.read_text().splitlines()]
    rewards = {}
    if method == "reinforcement":
        examples = [{"prompt": row["messages"], "answer": row["answer"]} for row in examples]
        rewards = {"reward_funcs": likeness}
    trainer = trainer_of(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list(examples),
        args=args,
        **rewards,
        peft_config=None if full else adapter,
    )
    if tuning["type"] == "qlora":
        # The one thing the recipe does otherwise: TRL casts the adapter to bf16, which rounds small updates away.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if not full and tuning["loraplus_lr_ratio"]:
        optimizer, options = trainer_of.get_optimizer_cls_and_kwargs(trainer.args)
        ratio = {"loraplus_lr_ratio": tuning["loraplus_lr_ratio"], "loraplus_weight_decay": given["weight_decay"]}
        trainer.optimizer = create_loraplus_optimizer(trainer.model, optimizer, **options, **ratio)
    trainer.add_callback(Tell())
    trainer.remove_callback(PrinterCallback)
    return trainer


def likeness(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """What a grader of `fuzzy_match` makes of them, as a script has it: how like an answer is to the row's, 0 to 1."""
    return [fuzz.ratio(said[0]["content"], wanted) / 100 for said, wanted in zip(completions, answer, strict=True)]


def of_method(method: str, given: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """TRL's trainer, its configuration's class, and the numbers that this one alone has."""
    match method:
        case "dpo":
            own = {name: given[name] for name in ("beta", "loss_type", "label_smoothing")}
            return DPOTrainer, DPOConfig, own
        case "kto":
            own = {name: given[name] for name in ("beta", "desirable_weight", "undesirable_weight")}
            return KTOTrainer, KTOConfig, own
        case "orpo":
            return ORPOTrainer, ORPOConfig, {"beta": given["beta"]}
        case "simpo":
            own = {"beta": given["beta"], "simpo_gamma": given["simpo_gamma"]}
            return CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, **own}
        case "reward":
            return RewardTrainer, RewardConfig, {"center_rewards_coefficient": given["center_rewards_coefficient"]}
        case "reinforcement":
            names = ("num_generations", "temperature", "top_p", "beta", "loss_type", "epsilon", "scale_rewards")
            return GRPOTrainer, GRPOConfig, {name: given[name] for name in names}
        case _:
            return SFTTrainer, SFTConfig, {}


if __name__ == "__main__":
    main()
