"""What `auto` becomes: the recipe for a tuning, scaled to the base, with the reason beside each number.

Pure: a spec and the facts of its data and base in, the same spec with numbers out.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from app.files.spec import Auto, DataSpec
from app.jobs.prepared import Prepared
from app.jobs.spec import (
    HIGHEST_LEARNING_RATE,
    LARGEST_BATCH,
    SHORTEST_MAX_LENGTH,
    FullTuning,
    JobSpec,
    LoraTuning,
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults of one tuning, for a base of hidden size 4096."""

    learning_rate: float
    n_epochs: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    weight_decay: float
    warmup_ratio: float = 0.03
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 1.0  # transformers' own default

    @property
    def rows(self) -> int:
        """Of a step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


FULL = Recipe(
    learning_rate=5e-6,  # to 1e-5; ten times more overwrites what the base knew
    n_epochs=1,  # 1 to 2: a third pass over a small set is memorised
    per_device_train_batch_size=1,
    gradient_accumulation_steps=32,
    weight_decay=0.01,
)
LORA = Recipe(
    learning_rate=2e-4,  # about ten times a full fine-tune's, at every rank (LoRA Without Regret)
    n_epochs=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,
    weight_decay=0.0,  # as in QLoRA's own runs; the adapter is small and starts at zero
)
LORA_R = 16
LORA_ALPHA = 32
"""Kept at every rank: with alpha / r the best rate hardly moves with r (LoRA Without Regret)."""

RECIPES: dict[str, Recipe] = {"full": FULL, "lora": LORA, "qlora": LORA}

DORA_UP_TO = 32
"""Its paper (Liu et al. 2024, on ranks) gains most at 4 and 8; from 32 on the field pays for it without a gain."""
RSLORA_FROM = 64
"""PEFT's own comparison, Llama-3.2-3B on GSM8K: 51.3 % at rank 64 with rsLoRA, 47.8 % at rank 32 without."""

WIDTH_EXPONENTS = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}
"""p in (4096 / hidden)^p by `model_type`: the fit of *LoRA Without Regret* (Thinking Machines, 2025)."""


PACKING_SAVES = 0.2
"""Share of the tokens that must be saved, for packing to be worth that steps of packs vary in their number of rows."""

KEEPS_ROWS_APART = frozenset(
    {
        "gemma",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
    | {"stablelm", "starcoder2"}
)
"""`model_type`s that `auto` packs for. Tests compare their losses packed and unpacked; each trainer tries its base."""

BATCH_NUMBERS = ("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recipe needs to know of the data, the base and the device."""

    longest_row: int
    hidden_size: int
    model_type: str
    context_length: int
    device: Literal["cpu", "cuda"]
    rows_per_pack: float | None = None
    """The mean; None where each row is its own sequence."""
    packing_saves: float = 0.0
    """Share of the tokens, whether the rows were packed or not."""
    holdout: float = 0.0
    """Share of the rows that is not trained on."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """Something that works but deserves a second look."""

    code: str
    message: str
    param: str | None = None
    suggestion: str | None = None


def facts_of(prepared: Prepared, *, device: Literal["cpu", "cuda"]) -> Facts:
    """What preparing found, as far as a recipe needs it."""
    parts = [prepared.train, *([prepared.validation] if prepared.validation else [])]
    return Facts(
        longest_row=max(part.longest_row for part in parts),
        hidden_size=prepared.hidden_size,
        model_type=prepared.model_type,
        context_length=prepared.context_length,
        device=device,
        rows_per_pack=prepared.train.rows / prepared.train.packs if prepared.train.packs else None,
        packing_saves=prepared.train.packing_saves,
        holdout=prepared.resolved.holdout if prepared.resolved else 0.0,
    )


def data_spec(spec: JobSpec) -> DataSpec:
    """What of a spec decides over its tokens."""
    given = spec.hyperparameters
    return DataSpec(
        model=spec.model,
        method=spec.method.type,
        train_on="all" if given.train_on == "all" else "completion",
        max_length=given.max_length,
        truncate=given.truncate,
        packing=packing(spec),
        per_device_train_batch_size=rows_at_a_time(spec),
        most_rows_per_pack=most_rows_per_pack(spec),
        holdout=0.0 if spec.validation_file is not None else spec.evaluation.holdout,
    )


def max_length(spec: JobSpec, *, longest_row: int, context_length: int) -> int:
    """Tokens that a row, or a pack, may have: as given, else the longest row, at most the model's context."""
    given = spec.hyperparameters.max_length
    return max(SHORTEST_MAX_LENGTH, min(longest_row, context_length)) if given == "auto" else given


def rows_at_a_time(spec: JobSpec) -> int:
    """Rows of a batch on a device where no packs are trained: without packing, and in evaluations."""
    recipe = RECIPES[spec.tuning.type]
    if spec.hyperparameters.packing is True:  # then what is given counts packs
        return recipe.per_device_train_batch_size
    return _batch(spec, recipe)["per_device_train_batch_size"]


def most_rows_per_pack(spec: JobSpec) -> int:
    """A pack is at most one step of the recipe, however short its rows: fewer and larger steps learn less."""
    return RECIPES[spec.tuning.type].rows


def packing(spec: JobSpec) -> Auto | bool:
    """Whether to pack: as given; not by itself where a given batch counts rows; `auto`: if it `is_worth_packing`."""
    given = spec.hyperparameters.packing
    return False if given == "auto" and _gives_batch_numbers(spec) else given


def is_worth_packing(model_type: str, saves: float) -> bool:
    """What `auto` packs: rows that a base of this family keeps apart, where it saves so large a share of the tokens."""
    return model_type in KEEPS_ROWS_APART and saves >= PACKING_SAVES


def _gives_batch_numbers(spec: JobSpec) -> bool:
    return any(getattr(spec.hyperparameters, name) != "auto" for name in BATCH_NUMBERS)


def width_factor(model_type: str, hidden_size: int) -> float:
    """By how much narrower bases want higher rates: (4096 / hidden)^p, 1 for families nobody has fitted."""
    return float((4096 / hidden_size) ** WIDTH_EXPONENTS.get(model_type, 0.0))


def resolve(spec: JobSpec, facts: Facts) -> JobSpec:
    """The spec with every `auto` that is a number replaced by that number.

    `save_steps` and `eval_steps` stay `auto` where they were: they are policies of the clock and the epoch. A spec
    that is resolved already comes back unchanged.
    """
    given = spec.hyperparameters
    recipe = RECIPES[spec.tuning.type]
    multiplier = 1.0 if given.learning_rate_multiplier == "auto" else given.learning_rate_multiplier
    numbers: dict[str, Any] = {
        "n_epochs": recipe.n_epochs,
        "learning_rate": min(HIGHEST_LEARNING_RATE, _rate(spec, facts)),
        "learning_rate_multiplier": multiplier,
        "max_length": max_length(spec, longest_row=facts.longest_row, context_length=facts.context_length),
        "packing": facts.rows_per_pack is not None,
        "train_on": "completion",
        "warmup_ratio": recipe.warmup_ratio,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "weight_decay": recipe.weight_decay,
        "optim": _optimizer(spec, facts),
        "max_grad_norm": recipe.max_grad_norm,
        # Recomputing costs a third of the speed; without a memory plan it is the safe choice on a GPU only.
        "gradient_checkpointing": facts.device == "cuda",
        **_batch(spec, _in_packs(recipe, facts.rows_per_pack)),
    }
    chosen = {name: value for name, value in numbers.items() if getattr(given, name) == "auto"}
    body = spec.model_dump(mode="json")
    body["method"]["supervised"]["hyperparameters"].update(chosen)
    if body["evaluation"]["holdout"] == "auto":
        body["evaluation"]["holdout"] = facts.holdout
    if isinstance(spec.tuning, LoraTuning):
        for name, value in (("r", LORA_R), ("lora_alpha", LORA_ALPHA)):
            if body["tuning"][name] == "auto":
                body["tuning"][name] = value
    return JobSpec.model_validate(body)


def _rate(spec: JobSpec, facts: Facts) -> float:
    """The recipe's, for this width, times what the user multiplies it with."""
    multiplier = spec.hyperparameters.learning_rate_multiplier
    factor = width_factor(facts.model_type, facts.hidden_size)
    return RECIPES[spec.tuning.type].learning_rate * factor * (1.0 if multiplier == "auto" else multiplier)


def warnings(spec: JobSpec, facts: Facts) -> list[Guardrail]:
    """What is worth saying about the numbers that a user chose."""
    found = []
    given = spec.hyperparameters
    if given.learning_rate != "auto":
        found.extend(_rate_warnings(given.learning_rate, spec, facts))
        if given.learning_rate_multiplier not in ("auto", 1.0):
            found.append(
                Guardrail(
                    "multiplier_unused",
                    "learning_rate is given as a number, so learning_rate_multiplier has no effect.",
                    "method.supervised.hyperparameters.learning_rate_multiplier",
                    "Leave one of the two out.",
                )
            )
    elif _rate(spec, facts) > HIGHEST_LEARNING_RATE:
        found.append(
            Guardrail(
                "rate_capped",
                f"The recipe's rate times {given.learning_rate_multiplier} is {_rate(spec, facts):g}; it is capped at"
                f" {HIGHEST_LEARNING_RATE:g}, where no training makes sense any more.",
                "method.supervised.hyperparameters.learning_rate_multiplier",
                "Use a multiplier between 0.1 and 10.",
            )
        )
    if facts.model_type not in WIDTH_EXPONENTS and given.learning_rate == "auto":
        found.append(
            Guardrail(
                "rate_not_fitted",
                f"No one has fitted how the rate of '{facts.model_type}' models scales with width; the rate for"
                " hidden size 4096 is used as it is.",
                "method.supervised.hyperparameters.learning_rate",
                "Try two or three rates around it on a small part of the data.",
            )
        )
    if spec.evaluation.holdout == "auto" and facts.holdout:
        found.append(
            Guardrail(
                "rows_held_out",
                f"{100 * facts.holdout:g} % of the training file's rows are kept for validation and not trained on.",
                "evaluation.holdout",
                "Send evaluation.holdout: 0 to train on all of them, or a validation_file.",
            )
        )
    if spec.tuning.type == "full" and given.n_epochs != "auto" and given.n_epochs > 2:
        found.append(
            Guardrail(
                "many_epochs",
                f"{given.n_epochs} passes of full fine-tuning tend to memorise a small set.",
                "method.supervised.hyperparameters.n_epochs",
                "Use 1 or 2.",
            )
        )
    if isinstance(spec.tuning, LoraTuning):
        found.extend(_rank_warnings(spec.tuning))
    if _gives_batch_numbers(spec):
        found.extend(_packing_warnings(spec, facts))
    return found


def _rank_warnings(tuning: LoraTuning) -> list[Guardrail]:
    rank = LORA_R if tuning.r == "auto" else tuning.r
    found = []
    if tuning.use_dora and rank >= DORA_UP_TO:
        found.append(
            Guardrail(
                "dora_at_high_rank",
                f"At rank {rank} DoRA costs time and memory, for which little has been seen to come back.",
                "tuning.use_dora",
                f"Leave it out, or use a rank below {DORA_UP_TO}, where it can help.",
            )
        )
    if not tuning.use_rslora and rank >= RSLORA_FROM:
        found.append(
            Guardrail(
                "rslora_advised",
                f"At rank {rank} the scale alpha / r slows an adapter down; with alpha / √r high ranks learn more.",
                "tuning.use_rslora",
                "Send use_rslora: true.",
            )
        )
    return found


def _packing_warnings(spec: JobSpec, facts: Facts) -> list[Guardrail]:
    given, param = spec.hyperparameters, "method.supervised.hyperparameters.packing"
    if given.packing == "auto" and is_worth_packing(facts.model_type, facts.packing_saves):
        return [
            Guardrail(
                "packing_left_out",
                f"A batch that is given counts rows, so they are not packed: {100 * facts.packing_saves:.0f} % of the"
                " tokens computed are padding.",
                param,
                "Leave the numbers of a batch 'auto', or send packing: true and count packs.",
            )
        ]
    if given.packing is True and facts.rows_per_pack is not None:
        rows = _batch(spec, _in_packs(RECIPES[spec.tuning.type], facts.rows_per_pack))["batch_size"]
        return [
            Guardrail(
                "batch_counts_packs",
                f"With packing a batch counts packs: a step of {rows} has about {rows * facts.rows_per_pack:.0f} rows.",
                param,
                "Leave the numbers of a batch 'auto' for as many rows a step as the recipe has.",
            )
        ]
    return []


def _rate_warnings(rate: float, spec: JobSpec, facts: Facts) -> list[Guardrail]:
    factor = width_factor(facts.model_type, facts.hidden_size)
    param = "method.supervised.hyperparameters.learning_rate"
    if isinstance(spec.tuning, FullTuning) and rate >= 10 * FULL.learning_rate * factor:
        return [
            Guardrail(
                "lora_rate_on_full",
                f"{rate:g} is a LoRA-like rate; with every weight moving it overwrites what the base knew.",
                param,
                f"Use about {FULL.learning_rate * factor:.1e}, or leave it 'auto'.",
            )
        ]
    if isinstance(spec.tuning, LoraTuning) and rate <= LORA.learning_rate * factor / 10:
        return [
            Guardrail(
                "full_rate_on_lora",
                f"{rate:g} is a full fine-tune's rate; an adapter hardly moves at it and underfits.",
                param,
                f"Use about {LORA.learning_rate * factor:.1e}, or leave it 'auto'.",
            )
        ]
    return []


def _optimizer(spec: JobSpec, facts: Facts) -> str:
    # 8-bit states save memory; on a CPU bitsandbytes' step is four times slower than torch's fused one.
    if isinstance(spec.tuning, LoraTuning) and facts.device == "cuda":
        return "adamw_bnb_8bit"
    return "adamw_torch_fused"


def _in_packs(recipe: Recipe, rows_per_pack: float | None) -> Recipe:
    """About as many rows a step, in packs: one at a time, which is as long as the longest row alone would be."""
    if rows_per_pack is None:
        return recipe
    packs_a_step = max(1, round(recipe.rows / rows_per_pack))
    return replace(recipe, per_device_train_batch_size=1, gradient_accumulation_steps=packs_a_step)


def _batch(spec: JobSpec, recipe: Recipe) -> dict[str, int]:
    """The three numbers of a batch; what is given rules, what is `auto` follows from it."""
    given, gpus = spec.hyperparameters, spec.resources.gpus
    size, per_device, accumulation = (
        None if number == "auto" else number
        for number in (given.batch_size, given.per_device_train_batch_size, given.gradient_accumulation_steps)
    )
    if size is not None:
        rows = size // gpus
        if per_device is None and accumulation is None:
            per_device = max(n for n in range(1, recipe.per_device_train_batch_size + 1) if rows % n == 0)
        if per_device is None:
            assert accumulation is not None  # noqa: S101  the case above has filled per_device otherwise
            per_device = rows // accumulation
        accumulation = rows // per_device
    elif per_device is None:
        per_device = min(recipe.per_device_train_batch_size, max(1, LARGEST_BATCH // ((accumulation or 1) * gpus)))
    if accumulation is None:
        accumulation = max(1, recipe.rows // per_device)
    return {
        "batch_size": per_device * accumulation * gpus,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }
