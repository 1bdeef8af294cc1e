"""Which method, which tuning and which numbers suit a goal, each with its reason and its source.

Pure: what is known of goal, data, base and hardware in, a recommendation out. Its numbers are those of the recipes, so
a job that asks for `auto` trains with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from app.files.spec import ROWS_FOR_HOLDOUT, Method
from app.jobs.methods import HIGHEST_LEARNING_RATE
from app.planning import evidence, second_thoughts
from app.planning.guardrails import MILLIONS, RSLORA_FROM
from app.planning.hardware import GIB
from app.planning.recipes import (
    COMPLETION,
    LORA_ALPHA,
    LORA_R,
    RECIPES,
    WIDTH_EXPONENTS,
    Recipe,
    width_factor,
)
from app.planning.second_thoughts import Alternative, Check
from app.planning.situations import (
    RANKS,
    Fit,
    Option,
    Situation,
    changes_for,
    fits,
    is_possible,
    trained_params,
)

BITS_A_PARAMETER = 2
"""That a network can store at most (Allen-Zhu and Li 2024)."""
BITS_A_TOKEN = 1
"""Of a language model's loss on usual text, so no more than this is to be stored of it (LoRA Without Regret)."""

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Choice(Generic[T_co]):
    """A value, why, and who says so."""

    value: T_co
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to train with."""

    method: Choice[Method]
    tuning: Choice[Literal["full", "lora", "qlora"]]
    r: Choice[int | None]
    lora_alpha: Choice[int | None]
    use_rslora: Choice[bool]
    target_modules: Choice[str | None]
    learning_rate: Choice[float]
    n_epochs: Choice[int]
    option: Option
    trained_params: int | None
    """None where the shape of the base is not known."""
    fits: tuple[Fit, ...]
    """On the devices there are, else on common GPUs."""
    alternatives: tuple[Alternative, Alternative]
    change_your_mind: tuple[Check, ...]
    notes: tuple[str, ...]
    """What was not known, and what was assumed in its place; what else is worth knowing."""


def recommend(s: Situation) -> Recommendation:
    """The first of the wishes that fits what there is, else the one that takes the least."""
    method = _method(s)
    rank = _wanted_rank(s, method.value)
    wishes = list(_wishes(s, method.value, rank.value))
    least = [one for one in wishes if one.option.tuning == "qlora"][-1]
    wish = next((one for one in wishes if is_possible(s, method.value, one.option)), least)
    option = wish.option
    recipe = _recipe(method.value, option)
    found = fits(s, method.value, option)
    return Recommendation(
        method=method,
        tuning=Choice(option.tuning, _too_large(s, method.value, wishes[0], option) + wish.reason, wish.source),
        r=_rank(option, rank),
        lora_alpha=_alpha(option),
        use_rslora=_rslora(option),
        target_modules=_modules(option),
        learning_rate=_rate(s, method.value, option, recipe),
        n_epochs=_epochs(method.value, option, recipe),
        option=option,
        trained_params=trained_params(s, option),
        fits=found,
        alternatives=second_thoughts.alternatives(s, method.value, option),
        change_your_mind=second_thoughts.checks(s, method.value, option),
        notes=tuple(_notes(s, method.value, option, found)),
    )


def held_tokens(params: int) -> int:
    """How many learnt tokens an adapter of so many parameters can hold, at the least."""
    return params * BITS_A_PARAMETER // BITS_A_TOKEN


BY_ROWS: dict[str, tuple[Method, str, str]] = {
    "text": (
        "continued_pretraining",
        "The rows are plain text, of which every token is learnt.",
        evidence.LEARNS_LESS,
    ),
    "preferences": (
        "dpo",
        "The rows have a chosen and a rejected answer, which DPO learns from directly, without a reward model.",
        evidence.DPO,
    ),
    "judged": ("kto", "The rows are single answers, each wanted or not; KTO needs no pairs.", evidence.KTO),
    "prompts": (
        "reinforcement",
        "The rows are prompts without answers: what is learnt comes from grading the model's own.",
        evidence.GRPO,
    ),
}
"""Where the rows leave no other choice."""


def _method(s: Situation) -> Choice[Method]:
    if s.method is not None:
        return Choice(s.method, "It is what the spec asks for.", evidence.SPEC)
    if s.rows_are in BY_ROWS:
        return Choice(*BY_ROWS[s.rows_are])
    match s.goal:
        case "reasoning" if s.has_grader:
            return Choice(
                "reinforcement",
                "A grader tells right answers from wrong ones, so the model can learn from its own attempts.",
                evidence.GRPO,
            )
        case "reasoning":
            return Choice(
                "supervised",
                "Without a grader, reasoning is learnt from worked solutions: rows whose answers show the steps.",
                evidence.WITHOUT_REGRET,
            )
        case "new_knowledge" if s.rows_are is None:
            return Choice(
                "continued_pretraining",
                "Knowledge is mostly acquired from running text; questions and answers teach how to use it.",
                evidence.NEW_FACTS,
            )
        case "preference" if s.rows_are is None:
            return Choice("dpo", "DPO learns from pairs of answers directly, without a reward model.", evidence.DPO)
        case _:
            return Choice("supervised", "What to answer is shown by example.", evidence.LIMA)


class _Wish(NamedTuple):
    option: Option
    reason: str
    source: str


def _wishes(s: Situation, method: Method, rank: int) -> Iterator[_Wish]:
    """From the best to what is left where little fits."""
    if s.priority not in ("forgetting", "memory", "cost") and (whole := _whole(s, method)) is not None:
        yield whole
    lora = _Wish(Option("lora", rank), *_why_lora(s, method))
    smaller = _Wish(
        Option("qlora", rank),
        "In 4 bits the base takes little more than a quarter of its memory, and adapters on it learnt as well as on 16"
        " bits.",
        evidence.QLORA,
    )
    yield from (smaller, lora) if s.priority == "memory" else (lora, smaller)
    for lower in (one for one in reversed(RANKS) if one < rank):
        yield smaller._replace(option=Option("qlora", lower))


def _wanted_rank(s: Situation, method: Method) -> Choice[int]:
    """By the goal, and as high as the data can fill, as far as both are known."""
    if s.goal in ("style", "preference") or method in ("reinforcement", "reward"):
        return Choice(LORA_R, "What is to be learnt is little, however many tokens say it.", evidence.WITHOUT_REGRET)
    least = Choice(LORA_R, "The recipe's; the best rate hardly depends on the rank.", evidence.WITHOUT_REGRET)
    if s.goal == "new_knowledge":
        said = f"Knowledge takes more room than a habit: rank {RSLORA_FROM} to {RANKS[-1]}, on all layers."
        least = Choice(RSLORA_FROM, said, evidence.LEARNS_LESS)
    elif s.priority == "quality":
        least = Choice(RSLORA_FROM, "With rsLoRA this rank did better than lower ones and than full.", evidence.PEFT)
    enough = next((rank for rank in RANKS if rank >= least.value and _holds(s, rank)), RANKS[-1])
    if enough == least.value or s.tokens is None:
        return least
    held = held_tokens(trained_params(s, Option("lora", enough)) or 0)
    return Choice(
        enough,
        f"There are {s.tokens:,} tokens to learn, and an adapter of this rank is sure to hold {held:,}, at"
        f" {BITS_A_PARAMETER} bits a parameter and {BITS_A_TOKEN} a token.",
        evidence.CAPACITY,
    )


def _holds(s: Situation, rank: int) -> bool:
    """Whether an adapter of that rank has room for what is to be learnt; True where that is not known."""
    params = trained_params(s, Option("lora", rank))
    return params is None or s.tokens is None or held_tokens(params) >= s.tokens


def _whole(s: Situation, method: Method) -> _Wish | None:
    """Full fine-tuning, where the data want it."""
    if s.goal in ("style", "preference") or method not in ("supervised", "continued_pretraining") or s.tokens is None:
        return None
    params = trained_params(s, Option("lora", RANKS[-1]))
    if params is not None and not _holds(s, RANKS[-1]):
        return _Wish(
            Option("full"),
            f"{s.tokens:,} tokens to learn are more than an adapter of rank {RANKS[-1]} is sure to hold"
            f" ({held_tokens(params):,}, at {BITS_A_PARAMETER} bits a parameter and {BITS_A_TOKEN} a token).",
            evidence.CAPACITY,
        )
    if s.goal == "new_knowledge" and s.priority == "quality" and s.tokens >= MILLIONS:
        return _Wish(
            Option("full"),
            f"On {s.tokens:,} tokens of another domain full fine-tuning learns more than an adapter does, and quality"
            " is what matters most here.",
            evidence.LEARNS_LESS,
        )
    return None


def _why_lora(s: Situation, method: Method) -> tuple[str, str]:
    match s.goal:
        case _ if method == "reinforcement":
            return "A graded attempt tells about a bit, for which even rank 1 was enough.", evidence.WITHOUT_REGRET
        case _ if s.priority == "forgetting":
            return "An adapter forgets less of what the base knew than full fine-tuning does.", evidence.LEARNS_LESS
        case "style":
            return (
                "A style or a format is little to learn, for which an adapter has far more room than it takes.",
                f"{evidence.WITHOUT_REGRET}; {evidence.LIMA}",
            )
        case "new_knowledge":
            return (
                "An adapter of a high rank on all layers takes much of it in, and forgets less than full fine-tuning.",
                evidence.LEARNS_LESS,
            )
        case "preference" if method in ("dpo", "kto"):
            return (
                "With its adapter switched off the base is its own reference model, so no second one is in memory.",
                "TRL's DPO and KTO trainers",
            )
        case _:
            return (
                "Where an adapter on all layers has room for the data, it learns as well as full fine-tuning.",
                f"{evidence.WITHOUT_REGRET}; {evidence.PEFT}",
            )


def _too_large(s: Situation, method: Method, first: _Wish, option: Option) -> str:
    """Why it is not the first wish; empty where it is."""
    if option.tuning == first.option.tuning:
        return ""
    best = max(fits(s, method, first.option), key=lambda fit: fit.hardware.room - fit.train_peak)
    return (
        f"{first.option} was the first choice ({first.reason[0].lower()}{first.reason[1:]}), but takes"
        f" {best.train_peak / GIB:.1f} GiB, and {best.hardware.name} has {best.hardware.room / GIB:.1f}. "
    ).replace(".)", ")")


def _rank(option: Option, wanted: Choice[int]) -> Choice[int | None]:
    if option.r is None:
        return Choice(None, "All weights move, so there is no rank.", evidence.DEFINITION)
    if option.r < wanted.value:
        return Choice(option.r, f"Rank {wanted.value} was wanted, and does not fit.", evidence.FORMULA)
    return wanted


def _alpha(option: Option) -> Choice[int | None]:
    if option.r is None:
        return Choice(None, "All weights move, so there is no adapter to scale.", evidence.DEFINITION)
    return Choice(LORA_ALPHA, "Kept at every rank: so the best rate hardly moves with it.", evidence.WITHOUT_REGRET)


def _rslora(option: Option) -> Choice[bool]:
    if option.r is None:
        return Choice(False, "All weights move, so there is no adapter to scale.", evidence.DEFINITION)
    if option.use_rslora:
        said = f"From rank {RSLORA_FROM} on, alpha / √r keeps an adapter learning where alpha / r slows it down."
        return Choice(True, said, f"{evidence.RSLORA}; {evidence.PEFT}")
    return Choice(False, "At low ranks the two scales make little difference.", evidence.RSLORA)


def _modules(option: Option) -> Choice[str | None]:
    if option.r is None:
        return Choice(None, "All weights move.", evidence.DEFINITION)
    return Choice(
        "all-linear",
        "On attention alone adapters learn less, with as many parameters too.",
        f"{evidence.WITHOUT_REGRET}; {evidence.QLORA}",
    )


def _recipe(method: Method, option: Option) -> Recipe:
    return RECIPES[method, "full" if option.r is None else "lora"]


def _rate(s: Situation, method: Method, option: Option, recipe: Recipe) -> Choice[float]:
    reason = "The recipe's rate for a base of hidden size 4096"
    source = evidence.RATES[method]
    if option.r is not None:
        reason += ", about ten times that of full fine-tuning"
        source += f"; {evidence.WITHOUT_REGRET}"
    if s.base is None:
        return Choice(recipe.learning_rate, f"{reason}. This base's width is not known here; a job knows it.", source)
    if s.base.model_type not in WIDTH_EXPONENTS:
        known = f"How it scales with width has not been fitted for '{s.base.model_type}' models, so it is as it is."
        return Choice(recipe.learning_rate, f"{reason}. {known}", source)
    factor = width_factor(s.base.model_type, s.base.hidden_size)
    rate = min(HIGHEST_LEARNING_RATE, recipe.learning_rate * factor)
    scaled = f", times {factor:.2f} for {s.base.hidden_size}, as fitted for '{s.base.model_type}' models"
    scaled_source = f"{source}; {evidence.WITHOUT_REGRET}" if option.r is None else source
    return Choice(rate, f"{reason}{scaled if factor != 1 else ''}.", scaled_source)


def _epochs(method: Method, option: Option, recipe: Recipe) -> Choice[int]:
    match method:
        case "continued_pretraining":
            said, source = "One pass: running text is plenty.", evidence.RECIPE
        case "supervised" if option.r is None:
            said, source = "More passes with every weight moving memorise a small set.", evidence.STUDY
        case "supervised":
            said, source = "An adapter moves little in one pass over a small set.", evidence.STUDY
        case "reinforcement":
            said, source = "Each pass makes new attempts; the reward says when to stop.", evidence.RECIPE
        case _:
            said, source = "A second pass gains little and goes further from the base.", evidence.ZEPHYR
    return Choice(recipe.n_epochs, said, source)


def _what_would_fit(s: Situation, method: Method, option: Option) -> str:
    """Of what does not fit the largest device there is either."""
    largest = max(s.hardware, key=lambda hardware: hardware.room)
    needed = changes_for(s, method, option, largest)
    said = f"Even {option} does not fit {largest.name} with the recipe's batch"
    if needed is None:
        return f"{said}, and no change would make it fit: take a smaller base or a larger GPU."
    return f"{said}; it would with " + ", ".join(f"{change.param} {change.value}" for change in needed) + "."


def _notes(s: Situation, method: Method, option: Option, found: tuple[Fit, ...]) -> Iterator[str]:
    if s.base is None:
        yield "The base's config.json is not here, so neither its width nor its memory was taken into account."
    elif s.base.shape is None:
        yield "The memory formula does not know models of this kind, so whether it fits was not taken into account."
    elif s.longest_row is None:
        yield f"Rows of up to {s.length:,} tokens were assumed for the memory."
    if not s.hardware:
        yield "No hardware was named and no worker has been heard of, so everything was taken to fit."
    elif found and not any(fit.fits for fit in found):
        yield _what_would_fit(s, method, option)
    if s.tokens is None:
        yield "How many tokens are to be learnt is not known, so the rank was not held against them."
    elif option.r is not None and s.goal not in ("style", "preference") and not _holds(s, option.r):
        yield f"An adapter of rank {option.r} may have too little room for {s.tokens:,} tokens."
    if s.rows is not None and s.rows < ROWS_FOR_HOLDOUT:
        yield (
            f"Of fewer than {ROWS_FOR_HOLDOUT} rows none is held out by itself: send evaluation.holdout or a"
            " validation_file, or whether it helped cannot be seen."
        )
    if s.goal == "preference" and s.rows_are == "answers":
        yield "The rows have one answer each. Preferences need a rejected one as well (dpo), or a verdict (kto)."
    if s.goal == "new_knowledge" and method == "supervised":
        yield (
            f"New facts in answers are learnt slowly, and then make a model guess more ({evidence.NEW_FACTS}): add the"
            " text they come from, by continued pretraining."
        )
    if method == "reinforcement":
        yield f"A grader is needed. Answers of up to {COMPLETION} tokens were assumed for the memory."
