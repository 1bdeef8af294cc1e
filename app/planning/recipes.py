"""What `auto` becomes: the recipe for a tuning, scaled to the base, with the reason beside each number.

Pure: a spec and the facts of its data and base in, the same spec with numbers out.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from app.files.spec import Auto, DataSpec
from app.graders.spec import item_paths
from app.jobs import groups
from app.jobs.methods import (
    HIGHEST_LEARNING_RATE,
    LARGEST_BATCH,
    SHORTEST_MAX_LENGTH,
    DpoHyperparameters,
    KtoHyperparameters,
    OrpoHyperparameters,
    ReinforcementHyperparameters,
    SimpoHyperparameters,
)
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec, LoraTuning

AnySpec = TypeVar("AnySpec", bound=JobSpec)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults of one method and tuning, for a base of hidden size 4096."""

    learning_rate: float
    n_epochs: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 1.0  # transformers' own default
    beta: float | None = None
    """Of the methods that have one."""
    num_generations: int = 1
    """Sequences that a row makes."""

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

LARGER_FOR_LORA = 10
"""An adapter's rate over a full fine-tune's, where only the latter was published (LoRA Without Regret)."""
DPO = Recipe(
    learning_rate=5e-7,  # Zephyr's (Tunstall et al. 2023), and 5e-6 of its QLoRA in the alignment handbook
    n_epochs=1,  # a second one gains little and leaves the reference further (Zephyr: 1 to 3)
    per_device_train_batch_size=1,
    gradient_accumulation_steps=32,  # its paper's 32 to 64 pairs
    warmup_ratio=0.1,
    beta=0.1,  # its paper (Rafailov et al. 2023), and TRL's default
)
PREFERENCES: dict[str, Recipe] = {
    "dpo": DPO,
    # Within the 5e-7 to 5e-6 that go with a beta of 0.1 (TRL's page on KTO); at least 2 rows at a time.
    "kto": replace(DPO, per_device_train_batch_size=2, gradient_accumulation_steps=16),
    "orpo": replace(DPO, learning_rate=5e-6),  # its paper (Hong et al. 2024): 8e-6, Mistral 5e-6, lambda 0.1
    "simpo": replace(DPO, beta=2.0),  # its paper (Meng et al. 2024): 3e-7 to 1e-6, beta 2 to 2.5
    "reward": replace(DPO, learning_rate=1e-5, warmup_ratio=0.03, beta=None),  # InstructGPT's 6B: 9e-6, one epoch
}
"""Full fine-tuning on preferences. Without weight decay: what holds a model back there is its reference or its loss."""
GRPO = Recipe(
    learning_rate=1e-6,  # TRL's default, and DeepSeekMath's (Shao et al. 2024)
    n_epochs=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=8,  # 4 prompts: what is generated at once takes memory, as a step's 32 answers do
    lr_scheduler_type="constant_with_warmup",  # rewards say when it is enough, not a plan made before
    beta=0.0,  # TRL's default; DAPO and Dr. GRPO (2025) do without a reference, which would be a second model
    num_generations=8,  # TRL's default; DeepSeekMath's 64 are eight times the time
)
COMPLETION = 512
"""Tokens of an answer, TRL's default."""
SIMPO_GAMMA = 0.5
"""Over beta, as the authors advise to begin with."""
ROBUST_SMOOTHING = 0.1
"""What *Robust DPO* (Chowdhury et al. 2024) takes for the share of preferences the wrong way round."""


def _for_lora(full: Recipe) -> Recipe:
    at_a_time = 2 * full.per_device_train_batch_size
    return replace(
        full,
        learning_rate=LARGER_FOR_LORA * full.learning_rate,
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=full.rows // at_a_time,
    )


RECIPES: dict[tuple[str, str], Recipe] = {
    ("supervised", "full"): FULL,
    ("supervised", "lora"): LORA,
    # The same loss on other rows, of which there are many more: one pass.
    ("continued_pretraining", "full"): FULL,
    ("continued_pretraining", "lora"): replace(LORA, n_epochs=1),
    **{(method, "full"): recipe for method, recipe in PREFERENCES.items()},
    **{(method, "lora"): _for_lora(recipe) for method, recipe in PREFERENCES.items()},
    ("reinforcement", "full"): GRPO,
    ("reinforcement", "lora"): _for_lora(GRPO),
}
"""By method and tuning; QLoRA's are LoRA's."""


def recipe_of(spec: JobSpec) -> Recipe:
    """The defaults for this method and tuning."""
    return RECIPES[spec.method.type, "full" if spec.tuning.type == "full" else "lora"]


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
    rows: int | None = None
    """That are trained on in one pass; None: nobody knows."""
    tokens: int | None = None
    """Of these."""
    wanted: int | None = None
    """Of unpaired rows those whose answer is wanted."""
    memory_is_tight: bool = True
    """Whether the device may not have the memory to keep every block's activations; on a CPU it is taken to have."""
    goes_on: bool = False
    """Whether the model is an adapter, which goes on training as it is."""


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
        rows=prepared.train.rows,
        tokens=prepared.train.tokens,
        wanted=prepared.train.wanted,
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
        room_behind=given.max_completion_length if isinstance(given, ReinforcementHyperparameters) else 0,
        item_paths=item_paths(spec.method.grader) if spec.method.grader is not None else (),
    )


def max_length(spec: JobSpec, *, longest_row: int, context_length: int) -> int:
    """Tokens that a row, or a pack, may have: as given, else the longest row, at most the model's context.

    Of a prompt that is still to be answered with its completion.
    """
    given = spec.hyperparameters.max_length
    longest = min(longest_row + completion_length(spec, context_length), context_length)
    return max(SHORTEST_MAX_LENGTH, longest) if given == "auto" else given


def completion_length(spec: JobSpec, context_length: int) -> int:
    """Tokens that the model may say behind a row; 0 of methods that only read."""
    given = spec.hyperparameters
    if not isinstance(given, ReinforcementHyperparameters):
        return 0
    most = context_length if given.max_length == "auto" else given.max_length
    return auto_completion(most) if given.max_completion_length == "auto" else given.max_completion_length


def auto_completion(most: int) -> int:
    """Of a prompt with its completion that may have so many tokens: of short ones half."""
    return max(1, min(COMPLETION, most // 2))


def rows_at_a_time(spec: JobSpec) -> int:
    """Rows of a batch on a device where no packs are trained: without packing, and in evaluations."""
    recipe = recipe_of(spec)
    if spec.hyperparameters.packing is True:  # then what is given counts packs
        return recipe.per_device_train_batch_size
    return batch(spec, recipe)["per_device_train_batch_size"]


def most_rows_per_pack(spec: JobSpec) -> int:
    """A pack is at most one step of the recipe, however short its rows: fewer and larger steps learn less."""
    return recipe_of(spec).rows


def packing(spec: JobSpec) -> Auto | bool:
    """Whether to pack: as given; not by itself where a given batch counts rows; `auto`: if it `is_worth_packing`."""
    given = spec.hyperparameters.packing
    return False if given == "auto" and gives_batch_numbers(spec) else given


def is_worth_packing(model_type: str, saves: float) -> bool:
    """What `auto` packs: rows that a base of this family keeps apart, where it saves so large a share of the tokens."""
    return model_type in KEEPS_ROWS_APART and saves >= PACKING_SAVES


def gives_batch_numbers(spec: JobSpec) -> bool:
    """Whether one of the three numbers of a batch is given."""
    return any(getattr(spec.hyperparameters, name) != "auto" for name in BATCH_NUMBERS)


def width_factor(model_type: str, hidden_size: int) -> float:
    """By how much narrower bases want higher rates: (4096 / hidden)^p, 1 for families nobody has fitted."""
    return float((4096 / hidden_size) ** WIDTH_EXPONENTS.get(model_type, 0.0))


def resolve(spec: AnySpec, facts: Facts) -> AnySpec:
    """The spec with every `auto` that is a number replaced by that number.

    `save_steps` and `eval_steps` stay `auto` where they were: they are policies of the clock and the epoch. A spec
    that is resolved already comes back unchanged.
    """
    given = spec.hyperparameters
    recipe = recipe_of(spec)
    multiplier = 1.0 if given.learning_rate_multiplier == "auto" else given.learning_rate_multiplier
    numbers: dict[str, Any] = {
        "n_epochs": recipe.n_epochs,
        "learning_rate": min(HIGHEST_LEARNING_RATE, rate(spec, facts)),
        "learning_rate_multiplier": multiplier,
        "max_length": max_length(spec, longest_row=facts.longest_row, context_length=facts.context_length),
        "packing": facts.rows_per_pack is not None,
        "train_on": "all" if spec.method.type == "continued_pretraining" else "completion",
        "warmup_ratio": recipe.warmup_ratio,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "weight_decay": recipe.weight_decay,
        "optim": _optimizer(spec, facts),
        "max_grad_norm": recipe.max_grad_norm,
        # Recomputing costs a third of the speed; where no plan says that it fits without, it is the safe choice.
        "gradient_checkpointing": facts.device == "cuda" and facts.memory_is_tight,
        **batch(spec, in_packs(recipe, facts.rows_per_pack), rows=facts.rows),
    }
    numbers |= _of_the_method(spec, recipe, facts)
    chosen = {name: value for name, value in numbers.items() if getattr(given, name) == "auto"}
    body = spec.model_dump(mode="json")
    body["method"][spec.method.type]["hyperparameters"].update(chosen)
    if body["evaluation"]["holdout"] == "auto":
        body["evaluation"]["holdout"] = facts.holdout
    if isinstance(spec.tuning, LoraTuning):
        for name, value in (("r", LORA_R), ("lora_alpha", LORA_ALPHA)):
            if body["tuning"][name] == "auto":
                body["tuning"][name] = value
    return type(spec).model_validate(body)


def _of_the_method(spec: JobSpec, recipe: Recipe, facts: Facts) -> dict[str, float | None]:
    """The numbers that this method alone has."""
    match spec.hyperparameters:
        case DpoHyperparameters(loss_type=loss_type):
            return {"beta": recipe.beta, "label_smoothing": ROBUST_SMOOTHING if loss_type == "robust" else 0.0}
        case KtoHyperparameters() | OrpoHyperparameters():
            return {"beta": recipe.beta}
        case SimpoHyperparameters(beta=given):
            beta = recipe.beta if given == "auto" else given
            return {"beta": beta, "simpo_gamma": SIMPO_GAMMA * (beta or 0.0)}
        case ReinforcementHyperparameters(compute_multiplier=multiplier, eval_interval=interval):
            return {
                "beta": recipe.beta,
                "compute_multiplier": 1.0 if multiplier == "auto" else multiplier,
                "max_completion_length": completion_length(spec, facts.context_length),
                **({} if interval == "auto" else {"eval_steps": interval}),
            }
        case _:
            return {}


def rate(spec: JobSpec, facts: Facts) -> float:
    """The recipe's, for this width, times what the user multiplies it with."""
    multiplier = spec.hyperparameters.learning_rate_multiplier
    factor = width_factor(facts.model_type, facts.hidden_size)
    return recipe_of(spec).learning_rate * factor * (1.0 if multiplier == "auto" else multiplier)


def _optimizer(spec: JobSpec, facts: Facts) -> str:
    # 8-bit states save memory; on a CPU bitsandbytes' step is four times slower than torch's fused one.
    if isinstance(spec.tuning, LoraTuning) and facts.device == "cuda":
        return "adamw_bnb_8bit"
    return "adamw_torch_fused"


def in_packs(recipe: Recipe, rows_per_pack: float | None) -> Recipe:
    """About as many rows a step, in packs: one at a time, which is as long as the longest row alone would be."""
    if rows_per_pack is None:
        return recipe
    packs_a_step = max(1, round(recipe.rows / rows_per_pack))
    return replace(recipe, per_device_train_batch_size=1, gradient_accumulation_steps=packs_a_step)


def batch(spec: JobSpec, recipe: Recipe, *, rows: int | None = None) -> dict[str, int]:
    """The three numbers of a batch; what is given rules, what is `auto` follows from it.

    Of reinforcement also how many completions a prompt has; of `rows` prompts, where so many are known, no more.
    """
    given, gpus = spec.hyperparameters, spec.resources.gpus
    if isinstance(given, ReinforcementHyperparameters):
        multiplier = 1.0 if given.compute_multiplier == "auto" else given.compute_multiplier
        wish = groups.Wish(
            prompts=recipe.rows // recipe.num_generations,
            num_generations=max(2, round(multiplier * recipe.num_generations)),
            per_device=recipe.per_device_train_batch_size,
            most_prompts=rows or LARGEST_BATCH,
        )
        step = groups.chosen(given, gpus, wish)
        return {
            "batch_size": step.prompts,
            "num_generations": step.num_generations,
            "per_device_train_batch_size": step.per_device,
            "gradient_accumulation_steps": step.accumulation,
        }
    size, per_device, accumulation = (
        None if number == "auto" else number
        for number in (given.batch_size, given.per_device_train_batch_size, given.gradient_accumulation_steps)
    )
    if size is not None:
        here = size // gpus
        if per_device is None and accumulation is None:
            per_device = groups.divisor(here, recipe.per_device_train_batch_size, least=least_at_a_time(spec))
        if per_device is None:
            assert accumulation is not None  # noqa: S101  the case above has filled per_device otherwise
            per_device = here // accumulation
        accumulation = here // per_device
    elif per_device is None:
        per_device = min(recipe.per_device_train_batch_size, max(1, LARGEST_BATCH // ((accumulation or 1) * gpus)))
    if accumulation is None:
        accumulation = max(1, recipe.rows // per_device)
    return {
        "batch_size": per_device * accumulation * gpus,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }


def least_at_a_time(spec: JobSpec) -> int:
    """Rows: KTO compares those of a batch."""
    return 2 if spec.method.type == "kto" else 1
