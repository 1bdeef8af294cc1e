"""The loss of each method in a dry run, and the batches that it takes.

On given answers and on texts it is a sum over what the model returns; of all others TRL's trainer computes it, built by
ours around a fake model.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import trl.trainer.dpo_trainer
import trl.trainer.grpo_trainer
import trl.trainer.kto_trainer
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    masking_utils,
)
from trl.trainer.utils import add_fused_lm_head

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import setups
from worker.training import configs, fake_model, model, trainers
from worker.training.device import Device
from worker.training.fake_model import Habits, base_of

Batch = dict[str, torch.Tensor]
Loss = tuple[torch.Tensor, object]
"""The loss, and what else somebody holds while it is differentiated."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A fake model, and what is asked of it."""

    trained: torch.nn.Module
    reference: torch.nn.Module | None
    """A copy of a full model; an adapter is turned off, or lies beside its copy."""
    arguments: TrainingArguments
    loss: Callable[[Batch], Loss]


def of(config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits, *, goes_on: bool = False) -> Objective:
    """The objective of a resolved spec. Raises what the trainer raises for what it cannot train."""
    if spec.method.type in ("supervised", "continued_pretraining"):
        return _of_answers(config, spec, machine, habits)
    return _of_trl(config, spec, machine, goes_on=goes_on)


def _of_answers(config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits) -> Objective:
    base = fake_model.base_in_shapes(config, spec, machine, habits)
    trained = fake_model.adapted(base, spec, habits)
    _recompute(base, spec, machine, takes_gradients=trained is not base)
    if habits.tiles:
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    _have_router_logits(base)
    fake_model.give_storages(trained, machine.compute_dtype, habits)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=machine.precision == "bf16" and habits.autocast)

    def loss(batch: Batch) -> Loss:
        """As `trl.SFTTrainer.compute_loss` has it, or transformers' models themselves."""
        with autocast:
            asked = {"fused_lm_head": True} if habits.tiles else {}
            outputs: Any = trained(**batch, use_cache=habits.holds_outputs, **asked)
        if not habits.tiles:
            return outputs.loss, outputs if habits.holds_outputs else None
        found: torch.Tensor = (-outputs.log_probs).sum() / outputs.label_mask.sum().clamp(min=1)
        return found if outputs.aux_loss is None else found + outputs.aux_loss, None

    return Objective(trained, None, configs.sft_config(spec, _on_cpu(machine), Path("unused")), loss)


def _recompute(base: Any, spec: JobSpec, machine: Device, *, takes_gradients: bool) -> None:
    """As transformers' trainer has a model compute activations again, and TRL's one with an adapter."""
    if not spec.hyperparameters.gradient_checkpointing:
        return
    base.gradient_checkpointing_enable(fake_model.checkpointing(machine))
    if takes_gradients:
        base.enable_input_require_grads()


def _have_router_logits(base: Any) -> None:
    """As TRL's trainer does where there is a loss of them."""
    text = base.config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = getattr(text, "router_aux_loss_coef", 0.0) != 0.0


def _of_trl(config: PreTrainedConfig, spec: JobSpec, machine: Device, *, goes_on: bool) -> Objective:
    def base() -> PreTrainedModel:
        return fake_model.base_in_shapes(config, spec, machine)

    with unset_fake_temporarily(), TemporaryDirectory() as folder, _left_in_shapes(base):
        trainer = _trainer(base(), spec, machine, Path(folder), goes_on=goes_on)
        trainer.accelerator.prepare_model(trainer.model)
    reference = getattr(trainer, "ref_model", None)
    for held in (trainer.model, reference):
        if held is not None:
            fake_model.give_storages(held, machine.compute_dtype)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # as when it trains
    trainer.args.gradient_checkpointing_kwargs = fake_model.checkpointing(machine)  # which TRL asks for again
    _recompute(base_of(trainer.model), spec, machine, takes_gradients=False)

    def loss(batch: Batch) -> Loss:
        return trainer.compute_loss(trainer.model, batch), None

    return Objective(trainer.model, reference, trainer.args, loss)


def _on_cpu(machine: Device) -> Device:
    """Arguments for a GPU can be made only where there is one."""
    return replace(machine, kind="cpu")


def _trainer(base: PreTrainedModel, spec: JobSpec, machine: Device, folder: Path, *, goes_on: bool) -> Any:
    """As `trainers.build` makes it, with a row that nobody reads."""
    tuning = spec.tuning if isinstance(spec.tuning, LoraTuning) else None
    given: dict[str, Any] = {
        "model": base,
        "processing_class": _tokenizer(),
        "train_dataset": Dataset.from_list([{"input_ids": [0], "labels": [0]}]),
        "eval_dataset": None,
        "peft_config": fake_model.adapter_config(base, spec, tuning) if tuning is not None else None,
    }
    is_copied = setups.copies_adapter(spec, goes_on=goes_on)
    if tuning is not None and (tuning.init_lora_weights is not True or is_copied):
        given |= {"model": fake_model.adapted(base, spec), "peft_config": None}
    with torch.device("meta"):
        trainer: Trainer = trainers.of_method(spec, _on_cpu(machine), folder, given)
    if tuning is not None:
        model.keep_adapter_in_fp32(trainer.model)
    return trainer


def _tokenizer() -> PreTrainedTokenizerBase:
    """Of one word, which ends and fills rows."""
    word = "-"
    of_words = Tokenizer(WordLevel({word: 0}, unk_token=word))
    return PreTrainedTokenizerFast(tokenizer_object=of_words, pad_token=word, eos_token=word)


@contextmanager
def _left_in_shapes(reference: Callable[[], PreTrainedModel]) -> Iterator[None]:
    """No model is moved to a device; and a reference, which TRL loads from where the model is from, is made."""
    with ExitStack() as stack:
        for place, name, value in (
            (torch.nn.Module, "to", lambda module, *_, **__: module),
            *((place, "create_model_from_path", lambda *_, **__: reference()) for place in _WITH_REFERENCE),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        yield


_WITH_REFERENCE = (trl.trainer.dpo_trainer, trl.trainer.kto_trainer, trl.trainer.grpo_trainer)


def batch(spec: JobSpec, rows: int, length: int, *, packed: bool = False, padded: bool = True) -> Batch:
    """As the collators of TRL make one: `rows` rows of `length` tokens, for pairs two sequences each.

    Packs lie in one row, with positions that restart, so that SDPA is handed a mask.
    """

    def ids(count: int = rows, tokens: int = length) -> torch.Tensor:
        return torch.empty((count, tokens), dtype=torch.long)

    match spec.method.type:
        case "dpo":
            return {name: ids(2 * rows) for name in ("input_ids", "attention_mask", "completion_mask")}
        case "kto":
            names = [f"{of}{name}" for of in ("", "KL_") for name in ("input_ids", "attention_mask", "completion_mask")]
            return {name: ids() for name in names} | {"label": torch.empty(rows, dtype=torch.bool)}
        case "reward":
            return {name: ids(2 * rows) for name in ("input_ids", "attention_mask")}
        case "orpo" | "simpo":
            kinds = ("input_ids", "attention_mask", "labels")
            answers = {f"{of}_{kind}": ids() for of in ("chosen", "rejected") for kind in kinds}
            return answers | {f"prompt_{kind}": ids() for kind in kinds[:2]}
        case "reinforcement":
            return _answered(spec, rows)
    made = {"input_ids": ids(1, rows * length) if packed else ids()}
    made["labels"] = torch.empty_like(made["input_ids"])
    if packed:
        made["position_ids"] = torch.empty_like(made["input_ids"])
    elif padded:
        made["attention_mask"] = torch.empty_like(made["input_ids"])
    return made


def _answered(spec: JobSpec, rows: int) -> Batch:
    """Prompts with the answers that were generated."""
    own = spec.hyperparameters
    assert isinstance(own, ReinforcementHyperparameters)  # noqa: S101  what the method is
    answer = resolved(own.max_completion_length)
    prompt = max(1, resolved(own.max_length) - answer)
    made = {
        f"{of}_{kind}": torch.empty((rows, tokens), dtype=torch.long)
        for of, tokens in (("prompt", prompt), ("completion", answer))
        for kind in ("ids", "mask")
    }
    made |= {"advantages": torch.empty(rows), "num_items_in_batch": torch.empty((), dtype=torch.long)}
    if setups.has_reference(spec):
        made["ref_per_token_logps"] = torch.empty((rows, answer))
    return made


@contextmanager
def rows_alike(objective: Objective, *, packed: bool = False) -> Iterator[None]:
    """No row is filled up, which transformers would look for in a mask that has no numbers; nor, where they are no
    packs, do positions restart.
    """
    before = masking_utils.find_packed_sequence_indices

    def without_mask(_: object, args: Any, given: dict[str, Any]) -> Any:
        return args, {**given, "attention_mask": None}

    models = [one for one in (objective.trained, objective.reference) if one is not None]
    hooks = [base_of(one).base_model.register_forward_pre_hook(without_mask, with_kwargs=True) for one in models]
    if not packed:
        masking_utils.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before
        for hook in hooks:
            hook.remove()
