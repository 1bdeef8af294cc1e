"""What works but deserves a second look: warnings about the numbers that a user chose, each with its reason.

Pure, as recipes are: none of them blocks a job that can be trained.
"""

from dataclasses import dataclass

from app.jobs.methods import HIGHEST_LEARNING_RATE, KtoHyperparameters, ReinforcementHyperparameters
from app.jobs.spec import FullTuning, JobSpec, LoraTuning
from app.planning import recipes
from app.planning.recipes import LORA_R, WIDTH_EXPONENTS, Facts, recipe_of
from app.planning.setups import WITHOUT_DROPOUT

DORA_UP_TO = 32
"""Its paper (Liu et al. 2024, on ranks) gains most at 4 and 8; from 32 on the field pays for it without a gain."""
RSLORA_FROM = 64
"""PEFT's own comparison, Llama-3.2-3B on GSM8K: 51.3 % at rank 64 with rsLoRA, 47.8 % at rank 32 without."""


MOST_EPOCHS_OF_FULL = 2
BALANCE = (1.0, 4 / 3)
"""Wanted to unwanted answers, each times its weight (equation 8 of KTO's paper)."""
FEWEST_GENERATIONS = 4
EPSILON = ReinforcementHyperparameters().epsilon
ROWS_FOR_HIGH_RANK = 1000
MILLIONS = 2_000_000
"""Tokens of another domain that are new knowledge more than style, for which full fine-tuning may be worth its cost."""
SOURCES = {
    "lora_rate_on_full": "LoRA Without Regret: an adapter's best rate is ten times a full fine-tune's",
    "full_rate_on_lora": "LoRA Without Regret: an adapter's best rate is ten times a full fine-tune's",
    "multiplier_unused": "what this service does: a rate given as a number is taken as it is",
    "rate_capped": "no published run has a rate of 1 or more",
    "rate_not_fitted": "LoRA Without Regret: its fit of rates to widths is for Llama and Qwen",
    "rows_held_out": "what this service does: a tenth from 100 rows on",
    "nothing_held_out": "the study: evaluate on held-out rows of the user's own task",
    "many_epochs": "the study: 1 to 2 passes of full fine-tuning; a third is memorised",
    "dora_at_high_rank": "DoRA (Liu et al. 2024): gains are largest at ranks 4 and 8",
    "rslora_advised": "rsLoRA (Kalajdzievski 2023), and PEFT's comparison: 51.3 % at rank 64, 47.8 % at 32 without",
    "rank_beyond_data": "the study: rank above what the data can fill",
    "capacity_may_fall_short": "LoRA Learns Less and Forgets Less (Biderman et al. 2024)",
    "forgetting_unmeasured": "LoRA Learns Less and Forgets Less (Biderman et al. 2024)",
    "dropout_unused": "what TRL does: `disable_dropout` of its trainers of preferences",
    "rank_doubles": "PiSSA (Meng et al. 2024), and how PEFT converts what it has trained",
    "packing_left_out": "this service's measurements of padding",
    "batch_counts_packs": "what TRL does: a batch of packs has as many sequences as packs",
    "compute_multiplier_unused": "what this service does: num_generations given as a number is taken as it is",
    "epsilon_unused": "how GRPO is defined: the ratio it clips is 1 at the first step on a set of answers",
    "reasoning_effort_unused": "what it is: a setting of OpenAI's own models",
    "classes_unbalanced": "KTO (Ethayarajh et al. 2024), equation 8: between 1:1 and 4:3, with their weights",
    "few_generations": "GRPO (Shao et al. 2024): an answer's reward is judged by its group's mean and deviation",
}
"""Of each warning."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """Something that works but deserves a second look."""

    code: str
    message: str
    param: str | None = None
    suggestion: str | None = None


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
                    spec.param("learning_rate_multiplier"),
                    "Leave one of the two out.",
                )
            )
    elif recipes.rate(spec, facts) > HIGHEST_LEARNING_RATE:
        found.append(
            Guardrail(
                "rate_capped",
                f"The recipe's rate times {given.learning_rate_multiplier} is {recipes.rate(spec, facts):g}; it is"
                f" capped at {HIGHEST_LEARNING_RATE:g}, where no training makes sense any more.",
                spec.param("learning_rate_multiplier"),
                "Use a multiplier between 0.1 and 10.",
            )
        )
    if facts.model_type not in WIDTH_EXPONENTS and given.learning_rate == "auto":
        found.append(
            Guardrail(
                "rate_not_fitted",
                f"No one has fitted how the rate of '{facts.model_type}' models scales with width; the rate for"
                " hidden size 4096 is used as it is.",
                spec.param("learning_rate"),
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
    if spec.tuning.type == "full" and given.n_epochs != "auto" and given.n_epochs > MOST_EPOCHS_OF_FULL:
        found.append(
            Guardrail(
                "many_epochs",
                f"{given.n_epochs} passes of full fine-tuning tend to memorise a small set.",
                spec.param("n_epochs"),
                "Use 1 or 2.",
            )
        )
    if isinstance(spec.tuning, LoraTuning):
        found.extend(_rank_warnings(spec.tuning))
        found.extend(_beginning_warnings(spec.tuning))
        if spec.tuning.lora_dropout and spec.method.type in WITHOUT_DROPOUT:
            found.append(
                Guardrail(
                    "dropout_unused",
                    f"{spec.method.type} compares what two passes say of the same answer, so TRL trains it without any"
                    f" dropout: lora_dropout {spec.tuning.lora_dropout:g} has no effect.",
                    "tuning.lora_dropout",
                    "Leave it out.",
                )
            )
    if facts.rows is not None and facts.tokens is not None:
        found.extend(_data_warnings(spec, facts, facts.rows, facts.tokens))
    if isinstance(given, ReinforcementHyperparameters):
        found.extend(_reinforcement_warnings(spec, given))
    if isinstance(given, KtoHyperparameters) and facts.rows is not None and facts.wanted is not None:
        found.extend(_balance_warnings(spec, given, facts.wanted, facts.rows - facts.wanted))
    if recipes.gives_batch_numbers(spec):
        found.extend(_packing_warnings(spec, facts))
    return found


def _balance_warnings(spec: JobSpec, given: KtoHyperparameters, wanted: int, unwanted: int) -> list[Guardrail]:
    """The one weight to change is the rarer class's."""
    low, high = BALANCE
    if not wanted or not unwanted:
        only, other = ("wanted", "unwanted") if wanted else ("unwanted", "wanted")
        message = f"All {wanted + unwanted} answers are {only}: KTO learns from the difference to {other} ones."
        return [Guardrail("classes_unbalanced", message, "training_file", f"Add rows with {other} answers.")]
    ratio = given.desirable_weight * wanted / (given.undesirable_weight * unwanted)
    if low <= ratio <= high:
        return []
    middle = (low + high) / 2
    if ratio < low:
        name, weight = "desirable_weight", middle * given.undesirable_weight * unwanted / wanted
    else:
        name, weight = "undesirable_weight", given.desirable_weight * wanted / (middle * unwanted)
    return [
        Guardrail(
            "classes_unbalanced",
            f"{wanted} answers are wanted and {unwanted} are not; with their weights that is {ratio:.2g} to 1, and"
            " KTO learns best from 1 to 1.33 of them.",
            spec.param(name),
            f"Send {name}: {weight:.3g}.",
        )
    ]


def _reinforcement_warnings(spec: JobSpec, given: ReinforcementHyperparameters) -> list[Guardrail]:
    found = []
    if given.num_generations != "auto" and given.compute_multiplier not in ("auto", 1.0):
        found.append(
            Guardrail(
                "compute_multiplier_unused",
                "num_generations is given as a number, so compute_multiplier has no effect.",
                spec.param("compute_multiplier"),
                "Leave one of the two out.",
            )
        )
    if given.reasoning_effort is not None:
        found.append(
            Guardrail(
                "reasoning_effort_unused",
                f"reasoning_effort '{given.reasoning_effort}' is for OpenAI's own models, and has no effect here.",
                spec.param("reasoning_effort"),
                "Say in the prompts how long the model shall think, and allow it with max_completion_length.",
            )
        )
    if given.epsilon != EPSILON:
        found.append(
            Guardrail(
                "epsilon_unused",
                "Each set of answers is trained on for one step, in which the ratio that epsilon clips is 1.",
                spec.param("epsilon"),
                "Leave it out.",
            )
        )
    answers = recipes.batch(spec, recipe_of(spec))["num_generations"]
    if answers < FEWEST_GENERATIONS:
        found.append(
            Guardrail(
                "few_generations",
                f"With {answers} answers to a prompt most groups have one reward, and nothing is learnt from those.",
                spec.param("num_generations"),
                "Use 8, with fewer prompts a step if there is no room.",
            )
        )
    return found


def _data_warnings(spec: JobSpec, facts: Facts, rows: int, tokens: int) -> list[Guardrail]:
    """What follows from how much there is to learn from."""
    found = []
    if isinstance(spec.tuning, LoraTuning):
        rank = _rank(spec.tuning)
        if rank >= RSLORA_FROM and rows < ROWS_FOR_HIGH_RANK:
            found.append(
                Guardrail(
                    "rank_beyond_data",
                    f"{rows} rows hardly fill an adapter of rank {rank}: it costs memory, and memorises sooner.",
                    "tuning.r",
                    f"Begin with {LORA_R}; raise it once the validation loss stands still and the training loss too.",
                )
            )
        if spec.method.type == "continued_pretraining" and tokens >= MILLIONS and rank < RSLORA_FROM:
            found.append(
                Guardrail(
                    "capacity_may_fall_short",
                    f"{tokens / 1e6:.1f} million tokens of text may be more than an adapter of rank {rank} can hold.",
                    "tuning.r",
                    "Use a rank of 64 to 256 on all linear layers with use_rslora, or full fine-tuning.",
                )
            )
    else:
        found.append(
            Guardrail(
                "forgetting_unmeasured",
                "Every weight moves, and nothing here measures what the model forgets beside the task.",
                "tuning.type",
                "Compare base and result on a general benchmark, or train an adapter, which forgets less.",
            )
        )
    if not facts.holdout and spec.validation_file is None:
        found.append(
            Guardrail(
                "nothing_held_out",
                "No rows are kept for validation, so nothing shows when the model begins to memorise.",
                "evaluation.holdout",
                "Send a validation_file, or evaluation.holdout: 0.1.",
            )
        )
    return found


def _rank_warnings(tuning: LoraTuning) -> list[Guardrail]:
    rank = _rank(tuning)
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


def _rank(tuning: LoraTuning) -> int:
    return LORA_R if tuning.r == "auto" else tuning.r


def _beginning_warnings(tuning: LoraTuning) -> list[Guardrail]:
    if not tuning.takes_from_base:
        return []
    rank = _rank(tuning)
    return [
        Guardrail(
            "rank_doubles",
            f"'{tuning.init_lora_weights}' changes the base while it trains. The result is converted to the untouched"
            f" base, as an adapter of rank {2 * rank}: its file is twice as large.",
            "tuning.init_lora_weights",
            f"Leave it out for a result of rank {rank}.",
        )
    ]


def _packing_warnings(spec: JobSpec, facts: Facts) -> list[Guardrail]:
    given, param = spec.hyperparameters, spec.param("packing")
    if given.packing == "auto" and recipes.is_worth_packing(facts.model_type, facts.packing_saves):
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
        rows = recipes.batch(spec, recipes.in_packs(recipe_of(spec), facts.rows_per_pack))["batch_size"]
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
    usual = recipe_of(spec).learning_rate * recipes.width_factor(facts.model_type, facts.hidden_size)
    param = spec.param("learning_rate")
    if isinstance(spec.tuning, FullTuning) and rate >= 10 * usual:
        return [
            Guardrail(
                "lora_rate_on_full",
                f"{rate:g} is a LoRA-like rate; with every weight moving it overwrites what the base knew.",
                param,
                f"Use about {usual:.1e}, or leave it 'auto'.",
            )
        ]
    if isinstance(spec.tuning, LoraTuning) and rate <= usual / 10:
        return [
            Guardrail(
                "full_rate_on_lora",
                f"{rate:g} is a full fine-tune's rate; an adapter hardly moves at it and underfits.",
                param,
                f"Use about {usual:.1e}, or leave it 'auto'.",
            )
        ]
    return []
