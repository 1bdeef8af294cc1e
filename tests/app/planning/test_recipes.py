"""What `auto` becomes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec
from app.jobs.spec import resolved as resolved_number
from app.planning import guardrails, recipes
from app.planning.recipes import Facts
from app.planning.situations import ANY_GRADER

LLAMA_7B = Facts(longest_row=300, hidden_size=4096, model_type="llama", context_length=4096, device="cuda")
SMOLLM2 = replace(LLAMA_7B, hidden_size=576, device="cpu")


def resolved(tuning: str, facts: Facts, **hyperparameters: Any) -> Any:
    body = {
        "model": "m",
        "training_file": "f",
        "tuning": {"type": tuning},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }
    return recipes.resolve(JobSpec.model_validate(body), facts)


@pytest.mark.parametrize(
    ("tuning", "rate", "epochs", "batch"), [("full", 5e-6, 1, 32), ("lora", 2e-4, 3, 16), ("qlora", 2e-4, 3, 16)]
)
def test_the_recipe_of_a_7b_is_the_table_of_the_readme(tuning: str, rate: float, epochs: int, batch: int) -> None:
    given = resolved(tuning, LLAMA_7B).hyperparameters
    assert (given.learning_rate, given.n_epochs, given.batch_size) == (pytest.approx(rate), epochs, batch)
    assert (given.warmup_ratio, given.lr_scheduler_type, given.max_length) == (0.03, "cosine", 300)


def test_narrow_models_of_a_fitted_family_get_higher_rates() -> None:
    assert resolved("qlora", SMOLLM2).hyperparameters.learning_rate == pytest.approx(2e-4 * (4096 / 576) ** 0.781)
    other = replace(SMOLLM2, model_type="gpt2")
    assert resolved("qlora", other).hyperparameters.learning_rate == pytest.approx(2e-4)


AUTO = st.just("auto")


@given(
    tuning=st.sampled_from(["full", "lora", "qlora"]),
    batch=AUTO | st.integers(1, 4096),
    per_device=AUTO | st.integers(1, 1024),
    accumulation=AUTO | st.integers(1, 4096),
    multiplier=AUTO | st.floats(0.001, 1000),
    longest=st.integers(2, 10_000),
    hidden=st.sampled_from([16, 64, 576, 4096]),
)
def test_whatever_the_spec_takes_the_recipe_can_fill(
    tuning: str, batch: Any, per_device: Any, accumulation: Any, multiplier: Any, longest: int, hidden: int
) -> None:
    asked = {
        "batch_size": batch,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "learning_rate_multiplier": multiplier,
    }
    facts = replace(SMOLLM2, longest_row=longest, hidden_size=hidden)
    try:
        JobSpec.model_validate(
            {"model": "m", "training_file": "f", "method": {"supervised": {"hyperparameters": asked}}}
        )
    except ValidationError:
        return  # refused with the field's name, which is test_spec's

    numbers = resolved(tuning, facts, **asked).hyperparameters

    product = numbers.per_device_train_batch_size * numbers.gradient_accumulation_steps
    assert numbers.batch_size == product <= 4096
    assert all(getattr(numbers, name) == value for name, value in asked.items() if value != "auto")


@given(
    batch=AUTO | st.integers(1, 600),
    answers=AUTO | st.integers(2, 128),
    per_device=AUTO | st.integers(1, 1024),
    accumulation=AUTO | st.integers(1, 600),
    multiplier=AUTO | st.floats(1e-5, 10),
    rows=st.none() | st.integers(1, 50),
)
def test_whatever_a_step_of_reinforcement_is_given_as_its_groups_are_whole(
    batch: Any, answers: Any, per_device: Any, accumulation: Any, multiplier: Any, rows: int | None
) -> None:
    given = {
        "batch_size": batch,
        "num_generations": answers,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }
    hyperparameters = {**given, "compute_multiplier": multiplier}
    block = {"type": "reinforcement", "reinforcement": {"grader": ANY_GRADER, "hyperparameters": hyperparameters}}
    try:
        asked = JobSpec.model_validate({"model": "m", "training_file": "f", "method": block})
    except ValidationError:
        return  # refused with the field's name, which is test_spec's

    numbers = recipes.resolve(asked, replace(SMOLLM2, rows=rows)).hyperparameters
    assert isinstance(numbers, ReinforcementHyperparameters)

    completions = resolved_number(numbers.per_device_train_batch_size) * resolved_number(
        numbers.gradient_accumulation_steps
    )
    assert resolved_number(numbers.batch_size) * resolved_number(numbers.num_generations) == completions <= 4096
    assert all(getattr(numbers, name) == value for name, value in given.items() if value != "auto")
    if all(value == "auto" for value in given.values()):
        assert numbers.num_generations == max(2, round(8 * (1.0 if multiplier == "auto" else multiplier)))
        assert numbers.batch_size == min(4, rows or 4)


def spec_of(tuning: str, **hyperparameters: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": "m",
            "training_file": "f",
            "tuning": {"type": tuning},
            "method": {"supervised": {"hyperparameters": hyperparameters}},
        }
    )


@pytest.mark.parametrize(
    ("tuning", "rows_per_pack", "packs"),
    [("lora", 1.0, 16), ("lora", 3.2, 5), ("lora", 16.0, 1), ("full", 4.0, 8), ("full", 40.0, 1)],
)
def test_a_step_of_packs_has_about_the_rows_of_the_recipe(tuning: str, rows_per_pack: float, packs: int) -> None:
    given = resolved(tuning, replace(LLAMA_7B, rows_per_pack=rows_per_pack)).hyperparameters

    assert given.packing is True
    assert (given.batch_size, given.per_device_train_batch_size, given.gradient_accumulation_steps) == (packs, 1, packs)


def test_a_batch_that_is_given_counts_packs_where_packing_is_asked_for() -> None:
    facts = replace(LLAMA_7B, rows_per_pack=3.0, packing_saves=0.5)
    given = resolved("lora", facts, packing=True, batch_size=8).hyperparameters
    assert (given.batch_size, given.per_device_train_batch_size) == (8, 1)

    (warning,) = guardrails.warnings(spec_of("lora", packing=True, batch_size=8), facts)
    assert warning.code == "batch_counts_packs"
    assert "a step of 8 has about 24 rows" in warning.message
    assert guardrails.warnings(spec_of("lora", packing=True), facts) == []


@pytest.mark.parametrize("name", ["batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"])
def test_auto_packs_nothing_where_a_batch_is_given(name: str) -> None:
    facts = replace(LLAMA_7B, packing_saves=0.5)
    assert recipes.packing(spec_of("lora", **{name: 4})) is False
    assert resolved("lora", facts, **{name: 4}).hyperparameters.packing is False

    (warning,) = guardrails.warnings(spec_of("lora", **{name: 4}), facts)
    assert (warning.code, warning.param) == ("packing_left_out", "method.supervised.hyperparameters.packing")
    assert "50 % of the tokens computed are padding" in warning.message
    assert guardrails.warnings(spec_of("lora", **{name: 4}, packing=False), facts) == []
    assert guardrails.warnings(spec_of("lora", **{name: 4}), replace(facts, packing_saves=0.1)) == []


def test_auto_packs_what_saves_a_fifth_for_families_that_keep_rows_apart() -> None:
    assert recipes.packing(spec_of("lora")) == "auto"
    assert recipes.is_worth_packing("llama", 0.2)
    assert not recipes.is_worth_packing("llama", 0.19)
    assert not recipes.is_worth_packing("opt", 0.9)


def test_packing_that_is_asked_for_or_not_wanted_is_not_decided_again() -> None:
    assert recipes.packing(spec_of("lora", packing=True, batch_size=4)) is True
    assert recipes.packing(spec_of("lora", packing=False)) is False


def test_evaluations_have_as_many_rows_at_a_time_as_without_packing() -> None:
    assert recipes.rows_at_a_time(spec_of("lora")) == 2
    assert recipes.rows_at_a_time(spec_of("lora", per_device_train_batch_size=8)) == 8
    assert recipes.rows_at_a_time(spec_of("lora", packing=True, per_device_train_batch_size=8)) == 2
    assert recipes.rows_at_a_time(resolved("lora", replace(LLAMA_7B, rows_per_pack=3.0))) == 2


def test_a_rate_beyond_all_sense_is_capped_with_a_word() -> None:
    spec = JobSpec.model_validate(
        {
            "model": "m",
            "training_file": "f",
            "method": {"supervised": {"hyperparameters": {"learning_rate_multiplier": 1000.0}}},
        }
    )
    narrow = replace(SMOLLM2, hidden_size=64)
    assert recipes.resolve(spec, narrow).hyperparameters.learning_rate == 1.0
    assert [warning.code for warning in guardrails.warnings(spec, narrow)] == ["rate_capped"]
    assert guardrails.warnings(spec, SMOLLM2) == []


def test_a_multiplier_scales_the_recipe_and_a_number_is_taken_as_it_is() -> None:
    assert resolved("lora", LLAMA_7B, learning_rate_multiplier=2).hyperparameters.learning_rate == pytest.approx(4e-4)
    assert resolved("lora", SMOLLM2, learning_rate=1e-3).hyperparameters.learning_rate == 1e-3


@given(
    batch_size=st.none() | st.integers(1, 256),
    per_device=st.none() | st.integers(1, 16),
    accumulation=st.none() | st.integers(1, 16),
    tuning=st.sampled_from(["full", "lora", "qlora"]),
)
def test_a_batch_is_always_the_product_of_its_parts(
    batch_size: int | None, per_device: int | None, accumulation: int | None, tuning: str
) -> None:
    asked = {
        "batch_size": batch_size,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
    }
    numbers = {name: value for name, value in asked.items() if value is not None}
    try:
        given = resolved(tuning, LLAMA_7B, **numbers).hyperparameters
    except ValueError:
        assert batch_size is not None  # refused as inconsistent
        return
    assert given.batch_size == given.per_device_train_batch_size * given.gradient_accumulation_steps
    assert all(getattr(given, name) == value for name, value in numbers.items())


def test_a_resolved_spec_resolves_to_itself() -> None:
    once = resolved("qlora", SMOLLM2, learning_rate_multiplier=3)
    assert recipes.resolve(once, SMOLLM2) == once

    packs = replace(SMOLLM2, rows_per_pack=3.0, packing_saves=0.5)
    once = resolved("qlora", packs)
    assert once.hyperparameters.packing is True
    assert recipes.resolve(once, packs) == once


@pytest.mark.parametrize(
    ("tuning", "block", "code"),
    [
        ("lora", {"use_dora": True, "r": 32}, "dora_at_high_rank"),
        ("lora", {"use_dora": True, "r": 31}, None),
        ("lora", {"use_dora": True}, None),
        ("qlora", {"r": 64}, "rslora_advised"),
        ("qlora", {"r": 64, "use_rslora": True}, None),
        ("lora", {"r": 63}, None),
        ("lora", {"init_lora_weights": "pissa"}, "rank_doubles"),
        ("lora", {"init_lora_weights": "olora", "r": 8}, "rank_doubles"),
        ("qlora", {"init_lora_weights": "loftq"}, None),
    ],
)
def test_a_kind_of_adapter_that_does_not_suit_its_rank_is_warned_about(
    tuning: str, block: dict[str, Any], code: str | None
) -> None:
    body = {"model": "m", "training_file": "f", "tuning": {"type": tuning, **block}}
    found = guardrails.warnings(JobSpec.model_validate(body), LLAMA_7B)
    assert [warning.code for warning in found] == ([code] if code else [])
    assert all(warning.suggestion for warning in found)


@pytest.mark.parametrize(
    ("tuning", "given", "code"),
    [
        ("full", {"learning_rate": 2e-4}, "lora_rate_on_full"),
        ("lora", {"learning_rate": 1e-5}, "full_rate_on_lora"),
        ("lora", {"learning_rate": 2e-4, "learning_rate_multiplier": 2.0}, "multiplier_unused"),
        ("full", {"n_epochs": 5}, "many_epochs"),
    ],
)
def test_a_number_worth_a_second_look_is_warned_about(tuning: str, given: dict[str, Any], code: str) -> None:
    body = {
        "model": "m",
        "training_file": "f",
        "tuning": {"type": tuning},
        "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
    }
    (warning,) = guardrails.warnings(JobSpec.model_validate(body), LLAMA_7B)
    assert warning.code == code
    assert warning.param is not None
