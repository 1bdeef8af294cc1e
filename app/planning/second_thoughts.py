"""The two next-best choices beside a recommendation, and what to measure to change one's mind about it."""

from collections.abc import Iterator
from dataclasses import dataclass

from app.files.spec import Method
from app.planning import evidence
from app.planning.guardrails import RSLORA_FROM
from app.planning.hardware import GIB
from app.planning.recipes import LORA_R
from app.planning.situations import RANKS, Fit, Option, Situation, fits


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way that could be the better one."""

    method: Method
    option: Option
    why: str
    costs: str
    source: str
    fits: tuple[Fit, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What to measure, which result speaks against the recommendation, and what to do then."""

    measure: str
    threshold: str
    then: str
    source: str


SEEDS = "the difference between two seeds of the same job"
"""The least that any comparison has to beat; no figure of somebody else's data is one for this."""


def alternatives(s: Situation, method: Method, option: Option) -> tuple[Alternative, Alternative]:
    """Another method where the goal has one, and another tuning."""
    found = [*_other_methods(s, method, option), *_other_tunings(s, method, option)]
    return found[0], found[1]


def _other_methods(s: Situation, method: Method, option: Option) -> Iterator[Alternative]:
    """At most one."""
    if s.method is not None:
        return

    def instead(other: Method, why: str, costs: str, source: str) -> Alternative:
        found = fits(s, other, option)
        return Alternative(other, option, why, f"{costs}{_memory(found)}", source, found)

    match method:
        case "dpo":
            yield instead(
                "orpo",
                "It needs no reference model and learns the chosen answers beside the preference, so it can start from"
                " a base that has not been tuned before.",
                "It is less studied, and computes all logits of both answers at once.",
                evidence.ORPO,
            )
        case "kto":
            yield instead(
                "dpo",
                "Pairs of answers to one prompt say more than single verdicts.",
                "Each row needs a second answer.",
                evidence.DPO,
            )
        case "reinforcement":
            yield instead(
                "supervised",
                "Worked solutions teach what the model never gets right by itself, and no attempts are generated.",
                "Somebody has to write the solutions.",
                evidence.WITHOUT_REGRET,
            )
        case "continued_pretraining":
            yield instead(
                "supervised",
                "Questions and answers made from the text teach what will be asked.",
                "They have to be made; facts that the base does not know are learnt slowly from them.",
                evidence.NEW_FACTS,
            )
        case "supervised" if s.goal == "reasoning":
            yield instead(
                "reinforcement",
                "Where answers can be checked, a model learns from its own attempts, also what nobody has written.",
                "A grader, and the time to generate several answers a prompt.",
                evidence.GRPO,
            )
        case "supervised" if s.goal == "new_knowledge":
            yield instead(
                "continued_pretraining",
                "Knowledge is mostly acquired from running text.",
                "The documents that the answers come from.",
                evidence.NEW_FACTS,
            )


def _other_tunings(s: Situation, method: Method, option: Option) -> Iterator[Alternative]:
    """At least two."""

    def instead(other: Option, why: str, source: str, *, costs: str) -> Alternative:
        found = fits(s, method, other)
        return Alternative(method, other, why, f"{costs}{_memory(found)}", source, found)

    if option.r is None:
        yield instead(
            Option("lora", RANKS[-1]),
            "It forgets less, is a small file beside the base, and may be enough.",
            evidence.LEARNS_LESS,
            costs="Room: it may learn less of so much data.",
        )
        yield instead(
            Option("lora", RSLORA_FROM),
            "What it reaches says whether full fine-tuning is worth its cost.",
            evidence.PEFT,
            costs="A short job before the long one.",
        )
        return
    higher = next((rank for rank in RANKS if rank > max(option.r, LORA_R)), None)
    if higher is not None:
        yield instead(
            Option(option.tuning, higher),
            "Where the loss stops falling early, the adapter may have too little room.",
            evidence.PEFT,
            costs="A larger adapter, which a small set may not fill.",
        )
    if option.tuning == "lora":
        yield instead(
            Option("qlora", option.r),
            "On a smaller GPU, or with longer rows.",
            evidence.QLORA,
            costs="Steps take longer, as 4-bit weights are unpacked for each use.",
        )
    else:
        yield instead(
            Option("lora", option.r),
            "Steps are faster, and the base is not rounded.",
            evidence.QLORA,
            costs="Nearly four times the memory for the base.",
        )
    yield instead(
        Option("full"),
        "Where an adapter of a high rank was measured and fell short.",
        evidence.LEARNS_LESS,
        costs="A copy of the whole base, and more of what it knew forgotten.",
    )


def _memory(found: tuple[Fit, ...]) -> str:
    if not found:
        return ""
    room = [fit.hardware.name for fit in found if fit.fits]
    peak = max(fit.train_peak for fit in found) / GIB
    return f" Takes {peak:.1f} GiB: " + (f"fits {room[0]}." if room else "fits none of the devices.")


def checks(s: Situation, method: Method, option: Option) -> tuple[Check, ...]:
    """From the cheapest to the dearest."""
    return tuple(_checks(s, method, option))


def _checks(s: Situation, method: Method, option: Option) -> Iterator[Check]:
    yield Check(
        "The base as it is, with a careful prompt and some examples in it, on held-out rows of your own task.",
        f"The tuned model is not better by more than {SEEDS}.",
        "Do not train: a prompt is changed in a minute.",
        evidence.PROMPT_FIRST,
    )
    if s.goal == "new_knowledge":
        yield Check(
            "The base with the right passages in its prompt, on the same questions.",
            "It answers as many of them.",
            "Retrieve the passages instead; facts that change are looked up, not trained.",
            evidence.RETRIEVAL,
        )
    match method:
        case "dpo" | "orpo" | "simpo" | "reward":
            yield Check(
                "The share of held-out pairs whose chosen answer gets the higher reward.",
                "It stays near a half.",
                "Look at the pairs first (is the difference one a reader would see?), then double the rate.",
                evidence.DPO,
            )
        case "kto":
            yield Check(
                "The rewards of wanted and of unwanted answers in the held-out rows.",
                "They do not part.",
                "Look at the verdicts first, then double the rate.",
                evidence.KTO,
            )
        case "reinforcement":
            yield Check(
                "The share of prompts, before training, of which some attempts are right and some are wrong.",
                "It is near zero: where all attempts of a prompt have one reward, nothing is learnt from it.",
                "Take easier or harder prompts, or train on worked solutions first.",
                evidence.GRPO,
            )
        case _:
            yield Check(
                "The loss on held-out rows, as the job goes on.",
                "It rises again before the end.",
                "Take the checkpoint before, and fewer epochs or a lower rate.",
                evidence.RECIPE,
            )
    if option.r is not None:
        higher = next((rank for rank in RANKS if rank > option.r), None)
        yield Check(
            "Loss and score on held-out rows, here and "
            + (f"at rank {higher}." if higher else "with full fine-tuning, on a part of the data."),
            f"The other is better by more than {SEEDS}.",
            f"Take rank {higher}." if higher else "Take full fine-tuning.",
            evidence.CAPACITY,
        )
    if option.tuning == "qlora":
        yield Check(
            "The same job as lora, once, on a GPU where it fits.",
            f"It is better by more than {SEEDS}.",
            "Take lora where it counts.",
            evidence.QLORA,
        )
    yield Check(
        "A general suite, before and after.",
        "It lost more than you can give up.",
        "Take a lower rate or fewer epochs." if option.r is not None else "Take lora, which forgets less.",
        evidence.LEARNS_LESS,
    )
