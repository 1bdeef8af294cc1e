"""Why `auto` became what it did: a reason and its source for every number of a resolved spec. Pure."""

from dataclasses import dataclass
from typing import Any

from app.jobs.spec import JobSpec, LoraTuning
from app.planning import recipes
from app.planning.evidence import (
    DAPO,
    DPO,
    GRPO,
    INSTRUCT_GPT,
    KTO,
    ORPO,
    QLORA,
    RATES,
    RECIPE,
    SIMPO,
    STUDY,
    WITHOUT_REGRET,
    ZEPHYR,
)
from app.planning.recipes import Facts, recipe_of

OWN = {"dpo": DPO, "kto": KTO, "orpo": ORPO, "simpo": SIMPO, "reward": INSTRUCT_GPT, "reinforcement": GRPO}
"""Of each method on preferences, and on rewards, its paper."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why, and who says so."""

    reason: str
    source: str


def reasons(asked: JobSpec, resolved: JobSpec, facts: Facts) -> dict[str, Reason]:
    """By the path of a field, for each that was left to the recipe; `resolved` is `asked` with its numbers."""
    found = {asked.param(name): why for name, why in _of_hyperparameters(resolved, facts).items()}
    left = {path: why for path, why in found.items() if _at(asked, path) == "auto" != _at(resolved, path)}
    if isinstance(asked.tuning, LoraTuning):
        for name, why in _OF_ADAPTERS.items():
            if getattr(asked.tuning, name) == "auto":
                left[f"tuning.{name}"] = why
    if asked.evaluation.holdout == "auto":
        left["evaluation.holdout"] = Reason("A tenth from 100 rows on: fewer say little, and are missed.", STUDY)
    return left


_OF_ADAPTERS = {
    "r": Reason("Enough for most tasks; more is worth it where the data fills it.", STUDY),
    "lora_alpha": Reason("Kept at every rank: the best rate then hardly moves with the rank.", WITHOUT_REGRET),
}


def _of_hyperparameters(spec: JobSpec, facts: Facts) -> dict[str, Reason]:
    method, recipe = spec.method.type, recipe_of(spec)
    full = spec.tuning.type == "full"
    paper = OWN.get(method, STUDY)
    factor = recipes.width_factor(facts.model_type, facts.hidden_size)
    width = f", times {factor:.3g} for hidden size {facts.hidden_size}" if factor != 1 else ""
    batch = Reason(f"Some {recipe.rows} rows a step.", paper)
    if method == "reinforcement":
        batch = Reason(f"Some {recipe.rows // recipe.num_generations} prompts a step, each answered so often.", RECIPE)
    checkpointing = (
        "Blocks are computed twice, because their activations would not leave a tenth of the device free."
        if spec.hyperparameters.gradient_checkpointing
        else "Every block's activations have room, and computing them twice takes a third longer."
    )
    own = Reason("The value of its paper.", paper)
    graded = method == "reinforcement"
    return {
        "learning_rate": Reason(
            f"{recipe.learning_rate:g} at hidden size 4096{width}"
            + ("." if full else "; an adapter learns at some ten times a full fine-tune's rate."),
            f"{RATES[method]}; {WITHOUT_REGRET}",
        ),
        "learning_rate_multiplier": Reason("The recipe's rate as it is.", STUDY),
        "n_epochs": Reason(
            "Each pass makes new answers; the reward says when to stop."
            if method == "reinforcement"
            else "One pass: what is seen again is soon memorised."
            if recipe.n_epochs == 1
            else "Adapters gain from three.",
            RECIPE if method == "reinforcement" else paper,
        ),
        "batch_size": batch,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": batch,
        "max_length": Reason(
            "The longest prompt and its completion, at most the model's context."
            if graded
            else "The longest row, at most the model's context: nothing is cut.",
            "the data",
        ),
        "packing": Reason("Answers are generated prompt by prompt.", "what GRPO is")
        if graded
        else Reason(
            f"It would save {100 * facts.packing_saves:.0f} % of the tokens computed; from"
            f" {100 * recipes.PACKING_SAVES:.0f} % on it is worth it.",
            "the data",
        ),
        "train_on": Reason("What the model shall learn to say, and not what it only reads.", "TRL's default too"),
        "warmup_ratio": Reason("Steps of a new optimizer are large at first.", ZEPHYR if method in OWN else STUDY),
        "lr_scheduler_type": Reason("Rewards say when it is enough.", RECIPE)
        if graded
        else Reason("Ends at small steps.", STUDY),
        "weight_decay": Reason(
            "A little, against weights that drift."
            if recipe.weight_decay
            else "An adapter starts at zero."
            if not full
            else "What holds the model back is its reference, or its loss.",
            STUDY if full and method not in OWN else QLORA if method not in OWN else ZEPHYR,
        ),
        "optim": Reason(
            "States of 8 bits, which train as well as those of 32."
            if "8bit" in str(spec.hyperparameters.optim)
            else "One kernel for all of a step.",
            "Dettmers et al. 2022" if "8bit" in str(spec.hyperparameters.optim) else "torch",
        ),
        "max_grad_norm": Reason("A single bad batch does not throw the run.", "transformers' default"),
        "gradient_checkpointing": Reason(checkpointing, "this plan"),
        "beta": Reason("Without a reference model, which would take memory and time.", f"{DAPO}; TRL's default")
        if graded
        else own,
        "num_generations": Reason("So many answers to a prompt are compared.", "TRL's default"),
        "max_completion_length": Reason("Where an answer is broken off.", "TRL's default"),
        "compute_multiplier": Reason("The recipe's num_generations as it is.", RECIPE),
        "eval_steps": Reason("As eval_interval says.", "the spec"),
        "simpo_gamma": Reason("Half of beta, as the authors advise to begin with.", paper),
        "label_smoothing": Reason("The share of preferences that may be the wrong way round.", "Chowdhury et al. 2024"),
    }


def _at(spec: JobSpec, path: str) -> Any:
    return getattr(spec.hyperparameters, path.rsplit(".", 1)[-1], None)
