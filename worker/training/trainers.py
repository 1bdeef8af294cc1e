"""TRL's trainer for each method, with nothing of ours in its arithmetic: its own class, configuration and collator.

Rows come prepared, so what a trainer would do to texts first is left out.
"""

# TRL publishes no types, so its classes are Any to derive from:
# mypy: disable-error-code="misc"

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, set_seed
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

from app.jobs.methods import (
    ContinuedPretrainingHyperparameters,
    DpoHyperparameters,
    KtoHyperparameters,
    OrpoHyperparameters,
    ReinforcementHyperparameters,
    RewardHyperparameters,
    SimpoHyperparameters,
)
from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import setups
from worker.training import configs, data, initial, model
from worker.training.device import Device
from worker.training.failures import MethodNotSupported, SpecUnusable
from worker.training.grading import Grading
from worker.training.logits import spare_logits


def build(
    work_dir: Path,
    spec: JobSpec,
    machine: Device,
    base_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parent: Path | None = None,
) -> Trainer:
    """The trainer of a resolved spec. `parent`: the folder of an adapter that goes on training.

    Raises `TargetModulesUnusable`, `PackingNotSupported` where the base would mix the rows of a pack, and
    `MethodNotSupported` where the installed TRL has no trainer for the method; `SpecUnusable` for what the base's own
    modules do not allow.
    """
    spare_logits(machine)
    tuning = spec.tuning if isinstance(spec.tuning, LoraTuning) else None
    if tuning is not None:
        model.require_target_modules(base_model, tuning.target_modules)
    validation = work_dir / "validation.arrow"
    given: dict[str, Any] = {
        "model": base_model,
        "processing_class": tokenizer,
        "train_dataset": data.rows_of(work_dir / "train.arrow"),
        "eval_dataset": data.rows_of(validation) if validation.exists() else None,
        "peft_config": None,
    }
    if tuning is not None:
        whole, tied = model.modules_to_save(base_model, tuning)
        given["peft_config"] = configs.lora_config(spec, tuning, whole, tied=tied)
        if tuning.init_lora_weights is not True:
            given = _adapted(spec, given, began=work_dir / "checkpoints" / initial.FILE)
    trainer = of_method(
        spec,
        machine,
        work_dir / "checkpoints",
        given,
        parent,
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, where the messages go by hand
    if tuning is not None:
        model.keep_adapter_in_fp32(trainer.model)
    if parent is not None:
        model.go_on_from(trainer.model, parent)
    if tuning is not None and tuning.loraplus_lr_ratio is not None:
        trainer.optimizer = loraplus_optimizer(trainer, tuning.loraplus_lr_ratio)
    own = spec.hyperparameters
    if isinstance(own, ContinuedPretrainingHyperparameters) and own.embedding_learning_rate is not None:
        trainer.optimizer = with_rate_of_embeddings(trainer, own.embedding_learning_rate, spec)
    if spec.hyperparameters.packing:
        model.require_rows_kept_apart(trainer)
    return trainer


def of_method(
    spec: JobSpec, machine: Device, checkpoints: Path, given: dict[str, Any], parent: Path | None = None
) -> Trainer:
    """TRL's trainer of the method, from what all of them take."""
    match spec.hyperparameters:
        case DpoHyperparameters() as own:
            args = configs.dpo_config(spec, own, machine, checkpoints)
            return _turning(_Dpo(args=args, **_with_reference(spec, given, parent)), data.for_dpo)
        case KtoHyperparameters() as own:
            args = configs.kto_config(spec, own, machine, checkpoints)
            return _turning(_Kto(args=args, **_with_reference(spec, given, parent)), data.for_kto)
        case RewardHyperparameters() as own:
            args = configs.reward_config(spec, own, machine, checkpoints)
            return _turning(_Reward(args=args, **given), data.for_reward)
        case ReinforcementHyperparameters() as own:
            return _reinforcement(spec, own, machine, checkpoints, _with_reference(spec, given, parent))
        case OrpoHyperparameters() | SimpoHyperparameters() as own:
            return _turning(_experimental(spec, own, machine, checkpoints, given), data.for_odds)
        case _:
            kind = _Sft if _may_reorder(spec) else SFTTrainer
            return kind(args=configs.sft_config(spec, machine, checkpoints), **given)


def _turning(trainer: Trainer, turn: Any) -> Trainer:
    trainer.data_collator = data.turned(turn, trainer.data_collator)
    return trainer


def _may_reorder(spec: JobSpec) -> bool:
    """Whether nothing but sums depends on which rows of a step are computed together: no random number, no pack."""
    draws = isinstance(spec.tuning, LoraTuning) and spec.tuning.lora_dropout > 0
    return not (draws or spec.hyperparameters.neftune_noise_alpha or spec.hyperparameters.packing)


class _Sft(SFTTrainer):
    """Computes rows of like length together, and each step on the rows it would have had: less padding, same loss."""

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        lengths = data.lengths_of(self.train_dataset)
        loader.batch_sampler.sampler = data.LikeLengths(loader.batch_sampler.sampler, lengths, rows)
        return loader


class _Prepared:
    """A trainer whose rows are prepared: its own preparation tokenises texts."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class _Dpo(_Prepared, DPOTrainer): ...


class _Kto(_Prepared, KTOTrainer): ...


class _Reward(_Prepared, RewardTrainer): ...


class _CountsTokens:
    """A trainer that says how many tokens it has seen, as TRL's others do."""

    _seen = 0

    def training_step(self, of: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        self._seen += sum(int(inputs[f"{name}_attention_mask"].sum()) for name in ("chosen", "rejected"))
        return super().training_step(of, inputs, *rest)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            logs["num_tokens"] = self._seen
        super().log(logs, *rest)


class _Grpo(GRPOTrainer):
    """Answers prepared prompts, in an order that a run which goes on finds again."""

    _seen_before: int | None = None

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> data.Repeated:
        theirs = super()._get_train_sampler(dataset)
        return data.Repeated(
            theirs.data_source,
            mini_repeat_count=theirs.mini_repeat_count,
            batch_size=theirs.batch_size,
            repeat_count=theirs.repeat_count,
            shuffle=theirs.shuffle,
            seed=theirs.seed,
        )

    def training_step(self, *args: Any) -> Any:
        if self._seen_before is None:
            self._seen_before = self.state.num_input_tokens_seen
        return super().training_step(*args)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Tokens since this process began, as TRL's other trainers count them: GRPO's go on where it does."""
        if "loss" in logs:
            before = self._seen_before or 0
            self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen - before]
        super().log(logs, *rest)

    def evaluate(self, *args: Any, **options: Any) -> Any:
        """By the same random numbers each time, and none of training's: two steps are compared by what they learnt."""
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **options)


def _reinforcement(
    spec: JobSpec, own: ReinforcementHyperparameters, machine: Device, checkpoints: Path, given: dict[str, Any]
) -> Trainer:
    grader = spec.method.grader
    assert grader is not None  # noqa: S101  the method's block has one
    validation = given["eval_dataset"]
    if validation is not None and own.eval_samples != "auto":
        validation = validation.select(range(min(own.eval_samples, len(validation))))
    rows = {
        "train_dataset": data.prompts(given["train_dataset"]),
        "eval_dataset": data.prompts(validation) if validation is not None else None,
    }
    reward = Grading(grader, given["processing_class"])
    return _Grpo(args=configs.grpo_config(spec, own, machine, checkpoints), reward_funcs=[reward], **(given | rows))


def _with_reference(spec: JobSpec, given: dict[str, Any], parent: Path | None) -> dict[str, Any]:
    """What a method against a reference model takes: that is the model before training.

    TRL takes a new adapter turned off for it, or of a full model a second copy. Of an adapter that goes on training it
    is that adapter as it was, of which TRL makes a copy where it gets the adapter and no configuration of one.
    """
    if parent is None or not setups.has_reference(spec):
        return given
    adapted = _adapted(spec, given)
    model.go_on_from(adapted["model"], parent)
    return adapted


def _adapted(spec: JobSpec, given: dict[str, Any], *, began: Path | None = None) -> dict[str, Any]:
    """The same with the adapter made here, by the same random numbers. `began`: see `initial.begun`."""
    if given["peft_config"] is None:
        return given
    set_seed(resolved(spec.seed))
    if began is not None:
        assert isinstance(spec.tuning, LoraTuning)  # noqa: S101  nothing else begins
        adapter = initial.begun(given["model"], given["peft_config"], spec.tuning, began)
    else:
        adapter = get_peft_model(given["model"], given["peft_config"])
    return {**given, "model": adapter, "peft_config": None}


def _experimental(
    spec: JobSpec,
    own: OrpoHyperparameters | SimpoHyperparameters,
    machine: Device,
    checkpoints: Path,
    given: dict[str, Any],
) -> Trainer:
    """ORPO's and CPO's trainers, which TRL may change or drop. Raises `MethodNotSupported`."""
    try:
        if isinstance(own, OrpoHyperparameters):
            from trl.experimental.orpo import ORPOTrainer

            theirs: Any = ORPOTrainer
            args = configs.orpo_config(spec, own, machine, checkpoints)
        else:
            from trl.experimental.cpo import CPOTrainer

            theirs = CPOTrainer
            args = configs.simpo_config(spec, own, machine, checkpoints)
    except ImportError as error:
        raise MethodNotSupported(f"The installed TRL has no trainer for '{spec.method.type}' any more.") from error

    counting: Any = type(theirs.__name__, (_CountsTokens, theirs), {})
    tokenizer, training = given["processing_class"], given["train_dataset"]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # They tokenise all rows they are given, so they are given none until they are made; and they would hold norms and
    # embeddings of a base in 4 bits in fp32, as `model.load` has it.
    given = _adapted(spec, given)
    trainer = counting(args=args, **{**given, "train_dataset": training.select([]), "eval_dataset": None})
    trainer.train_dataset, trainer.eval_dataset = training, given["eval_dataset"]
    return trainer


def loraplus_optimizer(trainer: Trainer, ratio: float) -> Optimizer:
    """The optimizer that is asked for, with a rate of its own for the B matrices (LoRA+, Hayou et al. 2024)."""
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    decay = trainer.args.weight_decay
    made: Optimizer = create_loraplus_optimizer(
        trainer.model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options
    )
    return made


def with_rate_of_embeddings(trainer: Trainer, rate: float, spec: JobSpec) -> Optimizer:
    """The trainer's optimizer, with a group of their own for embeddings and output layer. Raises `SpecUnusable`."""
    layers = [trainer.model.get_input_embeddings(), trainer.model.get_output_embeddings()]
    ours = {id(one): one for layer in layers if layer is not None for one in layer.parameters() if one.requires_grad}
    if not ours:
        message = "The modules to save have neither embeddings nor output layer. Leave it out, or name them there."
        raise SpecUnusable(spec.param("embedding_learning_rate"), message)
    made: Optimizer = trainer.create_optimizer()
    for group in list(made.param_groups):
        moved = [one for one in group["params"] if id(one) in ours]
        group["params"] = [one for one in group["params"] if id(one) not in ours]
        if moved:
            made.add_param_group({**group, "params": moved, "lr": rate})
    return made
