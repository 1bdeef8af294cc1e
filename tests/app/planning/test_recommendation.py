"""What is recommended in which situation; each row has the reason that its tuning and rank rest on."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.files.spec import Method
from app.jobs.spec import JobSpec
from app.planning import guardrails, recipes
from app.planning.bases import Base
from app.planning.hardware import GIB, GPUS, ON_GPU, Hardware
from app.planning.recipes import Facts
from app.planning.recommendation import Recommendation, held_tokens, recommend
from app.planning.setups import Device
from app.planning.situations import Goal, Option, Priority, Rows, Situation
from app.planning.step import ModelShape

LLAMA_3_8B = Base("llama", 4096, 8192, ModelShape(4096, 32, 32, 8, 128, 14336, 128256))
LLAMA_3_70B = Base("llama", 8192, 8192, ModelShape(8192, 80, 64, 8, 128, 28672, 128256))
SMOLLM2 = Base("llama", 576, 8192, ModelShape(576, 30, 9, 3, 64, 1536, 49152, tied_embeddings=True))


def gpus(*names: str) -> tuple[Hardware, ...]:
    return tuple(Hardware(name, ON_GPU, GPUS[name] * GIB) for name in names)


def asked(goal: Goal, **known: Any) -> Situation:
    return Situation(goal, **{"base": LLAMA_3_8B, "hardware": gpus("24 GB"), **known})


@pytest.mark.parametrize(
    ("situation", "method", "option", "says", "source"),
    [
        # A style needs little room, however much is said of it and whatever matters.
        (asked("style", rows=1000, tokens=200_000), "supervised", Option("lora", 16), "is little to learn", "LIMA"),
        (
            asked("style", tokens=10**9, priority="quality", hardware=gpus("141 GB")),
            "supervised",
            Option("lora", 16),
            "is little to learn",
            "LoRA Without Regret",
        ),
        # A task: as much room as its tokens take.
        (asked("task", tokens=10**6), "supervised", Option("lora", 16), "learns as well as full", "PEFT's"),
        (
            asked("task", tokens=10**6, priority="quality"),
            "supervised",
            Option("lora", 64),
            "learns as well as full",
            "51.3 %",
        ),
        (asked("task", tokens=10**8), "supervised", Option("lora", 32), "learns as well as full", "Without Regret"),
        (
            asked("task", tokens=10**10, hardware=gpus("141 GB")),
            "supervised",
            Option("full"),
            "10,000,000,000 tokens to learn are more than",
            "Allen-Zhu and Li 2024",
        ),
        # New knowledge: a high rank on all layers; full where there are millions of tokens, room, and quality counts.
        (
            asked("new_knowledge", tokens=5 * 10**6),
            "continued_pretraining",
            Option("lora", 64),
            "a high rank on all layers",
            "Biderman",
        ),
        (
            asked("new_knowledge", tokens=5 * 10**6, priority="quality", hardware=gpus("141 GB")),
            "continued_pretraining",
            Option("full"),
            "On 5,000,000 tokens of another domain",
            "Biderman",
        ),
        (
            asked("new_knowledge", tokens=5 * 10**6, priority="forgetting", hardware=gpus("141 GB")),
            "continued_pretraining",
            Option("lora", 64),
            "forgets less",
            "Forgets Less",
        ),
        (
            asked("new_knowledge", tokens=5 * 10**6, priority="quality", hardware=gpus("80 GB")),
            "continued_pretraining",
            Option("lora", 64),
            "full was the first choice",
            "Biderman",
        ),
        # A small base is soon full.
        (
            asked("new_knowledge", tokens=10**9, base=SMOLLM2),
            "continued_pretraining",
            Option("full"),
            "more than an adapter of rank 256 is sure to hold",
            "Allen-Zhu",
        ),
        *(
            (
                asked("new_knowledge", tokens=10**9, base=SMOLLM2, priority=priority),
                "continued_pretraining",
                option,
                says,
                "Allen-Zhu",
            )
            for priority, option, says in (
                ("forgetting", Option("lora", 256), "forgets less"),
                ("cost", Option("lora", 256), "forgets less"),
                ("memory", Option("qlora", 256), "a quarter"),
            )
        ),
        # Preferences.
        (asked("preference"), "dpo", Option("lora", 16), "its own reference model", "TRL"),
        (asked("preference", rows_are="judged"), "kto", Option("lora", 16), "its own reference model", "TRL"),
        # Reasoning: worked solutions, or attempts where a grader tells right from wrong.
        (asked("reasoning", tokens=10**6), "supervised", Option("lora", 16), "learns as well", "Without Regret"),
        (
            asked("reasoning", has_grader=True, hardware=gpus("48 GB")),
            "reinforcement",
            Option("lora", 16),
            "even rank 1 was enough",
            "Without Regret",
        ),
        # What fits.
        (
            asked("task", hardware=gpus("16 GB")),
            "supervised",
            Option("qlora", 16),
            "takes 18.3 GiB, and 16 GB has 15.0",
            "Dettmers",
        ),
        (asked("task", priority="memory"), "supervised", Option("qlora", 16), "little more than a quarter", "Dettmers"),
        (
            asked("task", base=LLAMA_3_70B, hardware=gpus("80 GB")),
            "supervised",
            Option("qlora", 16),
            "lora of rank 16 was the first choice",
            "Dettmers",
        ),
        # The largest GPU decides; and where nothing is known, nothing is in the way.
        (asked("task", hardware=gpus("16 GB", "80 GB")), "supervised", Option("lora", 16), "Where an adapter", "PEFT"),
        (asked("task", hardware=()), "supervised", Option("lora", 16), "Where an adapter", "PEFT"),
        (asked("task", base=None), "supervised", Option("lora", 16), "Where an adapter", "PEFT"),
        # The rows leave no other choice.
        (asked("task", rows_are="text"), "continued_pretraining", Option("lora", 16), "Where an adapter", "PEFT"),
        (asked("style", rows_are="preferences"), "dpo", Option("lora", 16), "is little to learn", "LIMA"),
        (
            asked("task", rows_are="prompts", hardware=gpus("48 GB")),
            "reinforcement",
            Option("lora", 16),
            "about a bit",
            "Regret",
        ),
        # Keys and values of 32 answers, which the weights leave no room for.
        (asked("task", rows_are="prompts"), "reinforcement", Option("qlora", 16), "lora of rank 16 was", "Dettmers"),
        (
            asked("task", method="orpo", hardware=gpus("80 GB")),
            "orpo",
            Option("lora", 16),
            "Where an adapter",
            "PEFT",
        ),
        # Whose step takes all logits of two answers at once.
        (asked("task", method="orpo"), "orpo", Option("qlora", 16), "lora of rank 16 was the first choice", "Dettmers"),
    ],
)
def test_a_situation_has_its_recommendation(
    situation: Situation, method: str, option: Option, says: str, source: str
) -> None:
    found = recommend(situation)
    assert (found.method.value, found.option) == (method, option)
    assert (found.tuning.value, found.r.value) == (option.tuning, option.r)
    assert says in found.tuning.reason
    assert source in found.tuning.source + found.r.source


def test_a_rank_is_the_lowest_that_is_sure_to_hold_what_is_to_be_learnt() -> None:
    """Llama-3-8B has 41,943,040 adapter weights at rank 16, and 2 bits in each of them."""
    room = held_tokens(41_943_040)
    assert room == 83_886_080
    assert recommend(asked("task", tokens=room)).r.value == 16
    above = recommend(asked("task", tokens=room + 1)).r
    assert above.value == 32
    assert "83,886,081 tokens to learn, and an adapter of this rank is sure to hold 167,772,160" in above.reason


@pytest.mark.parametrize("base", [LLAMA_3_8B, SMOLLM2, replace(SMOLLM2, model_type="gpt2")])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", ["supervised", "continued_pretraining", "dpo", "kto", "orpo", "simpo", "reward"])
def test_rate_and_epochs_are_those_that_a_job_gets(method: Method, tuning: str, base: Base) -> None:
    tokens = 10**12 if tuning == "full" and method in ("supervised", "continued_pretraining") else 1000
    found = recommend(asked("task", method=method, base=base, tokens=tokens, hardware=()))
    facts = Facts(100, base.hidden_size, base.model_type, base.context_length, "cuda")
    block = {"method": {"type": method}, "tuning": found.option.block}
    job = recipes.resolve(JobSpec.model_validate({"model": "m", "training_file": "f", **block}), facts)
    assert found.learning_rate.value == pytest.approx(job.hyperparameters.learning_rate)
    assert found.n_epochs.value == job.hyperparameters.n_epochs
    if job.tuning.type != "full":
        assert (found.lora_alpha.value, found.target_modules.value) == (job.tuning.lora_alpha, "all-linear")


def test_what_is_not_known_is_said() -> None:
    notes = " ".join(recommend(Situation("task")).notes)
    assert "config.json is not here" in notes
    assert "No hardware was named" in notes
    assert "How many tokens are to be learnt is not known" in notes
    known = asked("task", rows=1000, tokens=10**5, longest_row=300)
    assert recommend(known).notes == ()
    assert "fewer than 100 rows" in " ".join(recommend(replace(known, rows=99)).notes)
    odd = replace(known, base=replace(LLAMA_3_8B, shape=None))
    assert "does not know models of this kind" in " ".join(recommend(odd).notes)


@pytest.mark.parametrize("priority", ["balanced", "memory"])
def test_what_fits_nowhere_is_told_what_would_make_it_fit(priority: Priority) -> None:
    found = recommend(asked("task", priority=priority, hardware=(Hardware("8 GB", ON_GPU, 8e9),)))
    assert (found.option, [fit.fits for fit in found.fits]) == (Option("qlora", 16), [False])
    assert "it would with method.supervised.hyperparameters.per_device_train_batch_size 1" in " ".join(found.notes)
    none = recommend(asked("task", base=LLAMA_3_70B))
    assert "no change would make it fit" in " ".join(none.notes)


def test_on_a_processor_memory_counts_too() -> None:
    """In fp32 an 8B has 32 GB, and as much again of activations, which are not computed twice there."""
    machine = Hardware("cpu", Device("cpu", "fp32"), 16e9)
    assert recommend(asked("task", hardware=(machine,))).option == Option("qlora", 16)
    assert recommend(asked("task", hardware=(replace(machine, room=128e9),))).option == Option("lora", 16)


def test_rows_that_do_not_suit_the_goal_are_told_apart() -> None:
    answers = recommend(asked("preference", rows_are="answers"))
    assert answers.method.value == "supervised"
    assert "Preferences need a rejected one" in " ".join(answers.notes)
    facts = recommend(asked("new_knowledge", rows_are="answers"))
    assert "Gekhman" in " ".join(facts.notes)
    assert facts.alternatives[0].method == "continued_pretraining"


@given(
    goal=st.sampled_from(get_args(Goal)),
    priority=st.sampled_from(get_args(Priority)),
    rows_are=st.none() | st.sampled_from(get_args(Rows)),
    method=st.none() | st.sampled_from(get_args(Method)),
    base=st.sampled_from([None, LLAMA_3_8B, SMOLLM2, replace(LLAMA_3_8B, shape=None)]),
    hardware=st.lists(st.sampled_from(list(GPUS)), max_size=2),
    rows=st.none() | st.integers(1, 10**7),
    tokens=st.none() | st.integers(1, 10**12),
    grader=st.booleans(),
)
def test_whatever_is_asked_there_are_three_different_ways_each_with_its_reason(
    goal: Goal,
    priority: Priority,
    rows_are: Rows | None,
    method: Method | None,
    base: Base | None,
    hardware: list[str],
    rows: int | None,
    tokens: int | None,
    grader: bool,
) -> None:
    known = {"priority": priority, "rows_are": rows_are, "method": method, "rows": rows, "tokens": tokens}
    found = recommend(asked(goal, base=base, hardware=gpus(*hardware), has_grader=grader, **known))
    ways = [(other.method, other.option) for other in found.alternatives]
    assert len({(found.method.value, found.option), *ways}) == 3
    for name in ("method", "tuning", "r", "lora_alpha", "use_rslora", "target_modules", "learning_rate", "n_epochs"):
        choice = getattr(found, name)
        assert choice.reason.endswith((".", ")")), name
        assert choice.source, name
    assert all(other.why and other.costs and other.source for other in found.alternatives)
    assert len(found.change_your_mind) >= 3
    if found.method.value != "reinforcement":
        assert codes(found) <= {"rate_not_fitted"}


def codes(found: Recommendation) -> set[str]:
    """What the guardrails say of a job as it is recommended."""
    block = {"method": {"type": found.method.value}, "tuning": found.option.block}
    spec = JobSpec.model_validate({"model": "m", "training_file": "f", **block})
    return {one.code for one in guardrails.warnings(spec, Facts(100, 4096, "llama", 8192, "cuda"))}
