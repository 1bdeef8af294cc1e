"""Specs in, warnings out: each with what is behind it; and what is fine stays unsaid."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs.spec import JobSpec
from app.planning import guardrails
from app.planning.recipes import Facts
from app.planning.situations import ANY_GRADER

LLAMA_7B = Facts(300, 4096, "llama", 4096, "cuda", rows=5000, tokens=1_000_000, holdout=0.1)
FEW = replace(LLAMA_7B, rows=200, tokens=40_000)
TEXT = replace(LLAMA_7B, rows=50_000, tokens=30_000_000)
UNFITTED = replace(LLAMA_7B, model_type="gpt2", hidden_size=768)
PADDED = replace(LLAMA_7B, packing_saves=0.4)
PACKED = replace(LLAMA_7B, packing_saves=0.4, rows_per_pack=6.0)
MOSTLY_WANTED = replace(LLAMA_7B, wanted=4000)
MOSTLY_UNWANTED = replace(LLAMA_7B, wanted=1000)
ALL_WANTED = replace(LLAMA_7B, wanted=5000)
ALL_TRAINED = replace(LLAMA_7B, holdout=0.0)


def numbers(method: str = "supervised", **given: Any) -> dict[str, Any]:
    return {"method": {"type": method, method: {"hyperparameters": given}}}


def graded(**given: Any) -> dict[str, Any]:
    return {"method": {"type": "reinforcement", "reinforcement": {"grader": ANY_GRADER, "hyperparameters": given}}}


HELD_OUT = {"rows_held_out"}
"""Said of every job with a holdout that nobody asked for."""
FULL = {"tuning": {"type": "full"}}
MOVES_ALL = {"forgetting_unmeasured"} | HELD_OUT

# ruff: noqa: E501  a row is a line
TABLE: list[tuple[str, dict[str, Any], Facts, set[str]]] = [
    ("a recipe of an adapter", {}, LLAMA_7B, HELD_OUT),
    ("a recipe of all weights", FULL, LLAMA_7B, MOVES_ALL),
    ("an adapter's rate on all weights", FULL | numbers(learning_rate=2e-4), LLAMA_7B, MOVES_ALL | {"lora_rate_on_full"}),
    ("less than ten times the recipe's", FULL | numbers(learning_rate=4e-5), LLAMA_7B, MOVES_ALL),
    ("a full fine-tune's rate on an adapter", numbers(learning_rate=1e-5), LLAMA_7B, HELD_OUT | {"full_rate_on_lora"}),
    ("more than a tenth of the recipe's", numbers(learning_rate=3e-5), LLAMA_7B, HELD_OUT),
    ("what is a good rate of DPO", numbers("dpo", learning_rate=5e-6), LLAMA_7B, HELD_OUT),
    ("a supervised rate on DPO of all weights", FULL | numbers("dpo", learning_rate=5e-6), LLAMA_7B, MOVES_ALL | {"lora_rate_on_full"}),
    ("a rate and a multiplier", numbers(learning_rate=2e-4, learning_rate_multiplier=2.0), LLAMA_7B, HELD_OUT | {"multiplier_unused"}),
    ("a multiplier beyond all rates", numbers(learning_rate_multiplier=1000.0), replace(LLAMA_7B, hidden_size=64), HELD_OUT | {"rate_capped"}),
    ("a family without a fit", {}, UNFITTED, HELD_OUT | {"rate_not_fitted"}),
    ("nothing held out", {}, ALL_TRAINED, {"nothing_held_out"}),
    ("a validation file", {"validation_file": "file-2"}, ALL_TRAINED, set()),
    ("three passes of all weights", FULL | numbers(n_epochs=3), LLAMA_7B, MOVES_ALL | {"many_epochs"}),
    ("two passes of all weights", FULL | numbers(n_epochs=2), LLAMA_7B, MOVES_ALL),
    ("DoRA of rank 32", {"tuning": {"type": "lora", "r": 32, "use_dora": True}}, LLAMA_7B, HELD_OUT | {"dora_at_high_rank"}),
    ("DoRA of rank 8", {"tuning": {"type": "lora", "r": 8, "use_dora": True}}, LLAMA_7B, HELD_OUT),
    ("rank 64", {"tuning": {"type": "lora", "r": 64}}, LLAMA_7B, HELD_OUT | {"rslora_advised"}),
    ("rank 64 with rsLoRA", {"tuning": {"type": "lora", "r": 64, "use_rslora": True}}, LLAMA_7B, HELD_OUT),
    ("rank 64 on 200 rows", {"tuning": {"type": "lora", "r": 64, "use_rslora": True}}, FEW, HELD_OUT | {"rank_beyond_data"}),
    ("rank 16 on millions of tokens of text", numbers("continued_pretraining"), TEXT, HELD_OUT | {"capacity_may_fall_short"}),
    ("rank 128 on them", numbers("continued_pretraining") | {"tuning": {"type": "lora", "r": 128, "use_rslora": True}}, TEXT, HELD_OUT),
    ("rank 16 on as many tokens of answers", {}, TEXT, HELD_OUT),
    ("PiSSA", {"tuning": {"type": "lora", "init_lora_weights": "pissa"}}, LLAMA_7B, HELD_OUT | {"rank_doubles"}),
    ("dropout on preferences", numbers("dpo") | {"tuning": {"type": "lora", "lora_dropout": 0.05}}, LLAMA_7B, HELD_OUT | {"dropout_unused"}),
    ("dropout on answers", {"tuning": {"type": "lora", "lora_dropout": 0.05}}, LLAMA_7B, HELD_OUT),
    ("a batch that counts rows beside much padding", numbers(batch_size=8), PADDED, HELD_OUT | {"packing_left_out"}),
    ("a grader", graded(), LLAMA_7B, HELD_OUT),
    ("OpenAI's numbers", graded(compute_multiplier=1.5, eval_interval=5, eval_samples=4), LLAMA_7B, HELD_OUT),
    ("an effort of reasoning", graded(reasoning_effort="low"), LLAMA_7B, HELD_OUT | {"reasoning_effort_unused"}),
    ("answers and a multiplier of them", graded(num_generations=8, compute_multiplier=2.0), LLAMA_7B, HELD_OUT | {"compute_multiplier_unused"}),
    ("a quarter of the answers", graded(compute_multiplier=0.25), LLAMA_7B, HELD_OUT | {"few_generations"}),
    ("a range for a ratio of 1", graded(epsilon=0.1), LLAMA_7B, HELD_OUT | {"epsilon_unused"}),
    ("four wanted answers to one", numbers("kto"), MOSTLY_WANTED, HELD_OUT | {"classes_unbalanced"}),
    ("one to four", numbers("kto"), MOSTLY_UNWANTED, HELD_OUT | {"classes_unbalanced"}),
    ("one to four, that one four times", numbers("kto", desirable_weight=4.0), MOSTLY_UNWANTED, HELD_OUT),
    ("wanted answers alone", numbers("kto"), ALL_WANTED, HELD_OUT | {"classes_unbalanced"}),
    ("five to four", numbers("kto"), replace(LLAMA_7B, wanted=2777), HELD_OUT),
    ("packs counted", numbers(batch_size=8, packing=True), PACKED, HELD_OUT | {"batch_counts_packs"}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "facts", "codes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_spec_is_warned_about_what_deserves_a_second_look(
    body: dict[str, Any], facts: Facts, codes: set[str]
) -> None:
    found = guardrails.warnings(JobSpec.model_validate({"model": "m", "training_file": "f", **body}), facts)
    assert {warning.code for warning in found} == codes
    for warning in found:
        assert warning.message.endswith(".")
        assert warning.param
        assert warning.suggestion
        assert guardrails.SOURCES[warning.code]


@pytest.mark.parametrize("facts", [MOSTLY_WANTED, MOSTLY_UNWANTED], ids=["wanted", "unwanted"])
def test_the_weight_that_is_suggested_balances_the_answers(facts: Facts) -> None:
    body = {"model": "m", "training_file": "f", "validation_file": "v"}
    (found,) = balance(JobSpec.model_validate(body | numbers("kto")), facts)
    assert found.param
    assert found.suggestion
    suggested = re.fullmatch(r"Send (\w+): ([\d.]+)\.", found.suggestion)
    assert suggested is not None
    name, value = suggested.groups()
    assert found.param.endswith(name)
    assert not balance(JobSpec.model_validate(body | numbers("kto", **{name: float(value)})), facts)


def balance(spec: JobSpec, facts: Facts) -> list[guardrails.Guardrail]:
    return [one for one in guardrails.warnings(spec, facts) if one.code == "classes_unbalanced"]


def test_the_table_has_every_warning_there_is() -> None:
    written = re.findall(r'Guardrail\(\s*"(\w+)"', Path(guardrails.__file__).read_text())
    assert set(written) == set(guardrails.SOURCES) == set().union(*(row[3] for row in TABLE))
