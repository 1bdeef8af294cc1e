"""How many checkpoints a plan counts with. Bytes are held against PEFT's own files in `test_initial.py`."""

from typing import Any

import pytest

from app.jobs.spec import JobSpec
from app.planning import artifacts, recipes
from app.planning.recipes import Facts

FACTS = Facts(300, 4096, "llama", 4096, "cuda", rows=800, tokens=100_000, holdout=0.1)


def spec(**given: Any) -> JobSpec:
    numbers = {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, **given}}}}
    return recipes.resolve(JobSpec.model_validate({"model": "m", "training_file": "f", "seed": 0, **numbers}), FACTS)


@pytest.mark.parametrize(
    ("given", "steps", "evaluates", "saved"),
    [
        ({}, 300, True, 3),  # an epoch's end is evaluated and saved
        ({}, 2, True, 2),  # no more than there are steps
        ({"save_steps": 50}, 300, False, 6),
        ({"save_steps": 70}, 300, False, 5),  # and the last
        ({"save_steps": 100, "eval_steps": 50}, 300, True, 6),  # at each evaluation, where it is the best so far
        ({"save_steps": 100, "eval_steps": 50}, 300, False, 3),  # on nothing
        ({"eval_steps": 70}, 300, True, 4 + 3),  # 70 to 280, and the epochs' ends
    ],
)
def test_steps_are_saved_at_ends_and_at_what_may_be_the_best(
    given: dict[str, Any], steps: int, evaluates: bool, saved: int
) -> None:
    assert artifacts.checkpoints(spec(**given), steps, evaluates=evaluates) == saved


def test_no_more_are_counted_than_are_kept() -> None:
    assert artifacts.Retention(newest=10, every=None).most(1000) == 11
    assert artifacts.Retention(newest=10, every=100).most(1000) == 21
