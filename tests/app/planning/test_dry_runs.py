"""What a dry run is asked: all that moves bytes, and nothing else."""

from typing import Any

import pytest

from app.jobs.methods import BLOCKS
from app.jobs.spec import JobSpec
from app.planning import recipes
from app.planning.dry_runs import Asked
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of
from app.planning.step import ModelShape
from tests import tiny

SHAPE = ModelShape(4096, 32, 32, 8, 128, 14336, 128256)
FACTS = Facts(longest_row=2048, hidden_size=4096, model_type="llama", context_length=8192, device="cuda")
GPU = Device("cuda", "bf16")


def resolved(method: str, tuning: dict[str, Any], **hyperparameters: Any) -> JobSpec:
    block = {"hyperparameters": hyperparameters} | ({"grader": tiny.GRADER} if method == "reinforcement" else {})
    body = {"model": "m", "training_file": "f", "seed": 3, "tuning": tuning, "method": {"type": method, method: block}}
    return recipes.resolve(JobSpec.model_validate(body), FACTS)


@pytest.mark.parametrize(
    "tuning",
    [
        {"type": "full"},
        {"type": "qlora", "lora_dropout": 0.1, "use_dora": True},
        {"type": "lora", "r": 64, "init_lora_weights": "pissa"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", BLOCKS)
def test_the_question_takes_what_the_job_takes(method: str, tuning: dict[str, Any]) -> None:
    spec = resolved(method, tuning)
    asked = Asked.of({}, spec, FACTS, GPU)
    assert setup_of(asked.spec, SHAPE, GPU) == setup_of(spec, SHAPE, GPU)


def test_of_reinforcement_it_also_takes_what_is_generated_at_once() -> None:
    numbers = {"num_generations": 8, "batch_size": 4, "per_device_train_batch_size": 4, "beta": 0.1}
    few, many = (resolved("reinforcement", {"type": "full"}, **{**numbers, "batch_size": size}) for size in (4, 8))
    for spec, at_once in ((few, 32), (many, 64)):
        setup = setup_of(Asked.of({}, spec, FACTS, GPU).spec, SHAPE, GPU)
        assert (setup.generated, setup.reference) == (at_once, True)


def test_rates_and_losses_of_the_same_step_make_the_same_question() -> None:
    tuning = {"type": "lora"}
    one = resolved("dpo", tuning, beta=0.3, learning_rate=1e-6, loss_type="robust", gradient_accumulation_steps=4)
    other = resolved("dpo", tuning, gradient_accumulation_steps=8)
    assert Asked.of({}, one, FACTS, GPU).key == Asked.of({}, other, FACTS, GPU).key
