"""Reinforcement: what TRL's GRPO does with a spec's grader, and what of it can be interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bare_trl
from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.training.child import StopRequest

ROWS = tiny.graded_rows(8)
SHORT = {"num_generations": 4, "max_completion_length": 8, "per_device_train_batch_size": 4, "batch_size": 2}


@pytest.mark.parametrize(
    ("tuning", "options"),
    [
        ("lora", {}),
        ("full", {"beta": 0.1}),
        ("qlora", {"beta": 0.1, "loss_type": "dr_grpo"}),
        pytest.param("lora", {"beta": 0.1, "loss_type": "grpo"}, marks=pytest.mark.long),
        pytest.param("full", {"loss_type": "bnpo", "scale_rewards": "none"}, marks=pytest.mark.long),
        pytest.param("qlora", {"temperature": 0.7, "top_p": 0.9}, marks=pytest.mark.long),
    ],
)
def test_every_step_has_the_loss_and_the_reward_of_the_librarys_own_trainer(
    make_job: Any, run: Any, bases: Path, tmp_path: Path, tuning: str, options: dict[str, Any]
) -> None:
    work_dir = make_job(tuning, method="reinforcement", rows=ROWS, learning_rate=1e-3, n_epochs=2, **SHORT, **options)

    ours = steps(run(work_dir))
    theirs = bare(bases / "tiny", work_dir, tmp_path / "out")

    assert len(theirs) == 8
    assert [one.loss for one in ours] == pytest.approx([one["loss"] for one in theirs], abs=1e-5)
    assert [one.mean_reward for one in ours] == pytest.approx([one["reward"] for one in theirs], abs=1e-5)
    assert [one.grad_norm for one in ours] == pytest.approx([one["grad_norm"] for one in theirs], abs=1e-4)
    assert [one.tokens for one in ours] == [one["num_tokens"] for one in theirs]
    assert len({one.mean_reward for one in ours}) == 8
    assert all((one.kl is not None) == bool(options.get("beta")) for one in ours)


def bare(base: Path, work_dir: Path, out: Path) -> list[dict[str, Any]]:
    spec = json.loads((work_dir / "job.json").read_text())
    trainer = bare_trl.build(base, work_dir / "training_file", spec, out, torch.float32)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_stop_and_resume_in_a_later_epoch_has_the_answers_of_an_uninterrupted_run(make_job: Any, run: Any) -> None:
    options = {"validation": tiny.graded_rows(3), "eval_steps": 3, "learning_rate": 1e-3, "n_epochs": 2, **SHORT}
    straight, stopped = (make_job("lora", method="reinforcement", rows=ROWS, **options) for _ in range(2))
    whole = run(straight)

    def stop_after_step_6(message: messages.AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == 5:
            stop.wish = "save"

    first = run(stopped, stop_after_step_6)
    second = run(stopped)

    assert first[-1] == messages.Stopped(6)
    assert messages.Phase("training", total_steps=8, resumed_from_step=6) in second
    compared = [[(one.step, one.tokens, one.mean_reward) for one in steps(said)] for said in (whole, first + second)]
    assert compared[1] == compared[0]
    assert [one.loss for one in steps(first + second)] == pytest.approx([one.loss for one in steps(whole)], abs=1e-6)
    assert rewards_of_evaluations(first + second) == rewards_of_evaluations(whole)
    for name in ("tokens", "trained_tokens", "generated_positions", "reward_first", "reward_last", "eval_reward"):
        assert report(stopped)[name] == report(straight)[name], name


def test_the_result_has_the_weights_of_the_highest_validation_reward(make_job: Any, run: Any) -> None:
    # What is rewarded in training is the opposite of what the validation rows' grader would like.
    away = {**tiny.GRADER, "reference": "{{item.answer}}"}
    rows = [{**row, "answer": "zzzz"} for row in ROWS]
    options = {"validation": ROWS[:4], "eval_interval": 2, "eval_samples": 3, "learning_rate": 2e-2, "n_epochs": 4}
    work_dir = make_job("lora", method="reinforcement", rows=rows, grader=away, **options, **SHORT)

    said = run(work_dir)

    evaluated = rewards_of_evaluations(said)
    assert [step for step, _ in evaluated] == list(range(2, 17, 2))
    best = max(evaluated, key=lambda one: (one[1], -one[0]))
    assert report(work_dir)["best"]["step"] == best[0]
    assert report(work_dir)["best"]["eval_reward"] == report(work_dir)["eval_reward"] == best[1]
    if best[0] != 16:
        told = [message.message for message in said if isinstance(message, messages.Notice)]
        assert any("which has the highest validation reward" in one for one in told)


def test_answers_are_shown_and_rewards_that_teach_nothing_are_said(make_job: Any, run: Any) -> None:
    never = {"type": "string_check", "name": "never", "input": "{{sample.output_text}}", "operation": "eq"}
    work_dir = make_job("lora", method="reinforcement", rows=ROWS, grader={**never, "reference": "Q"}, **SHORT)
    said = run(work_dir)

    told = {message.message: message.level for message in said if isinstance(message, messages.Notice)}
    assert [message.partition(":")[0] for message in told if " an answer: " in message] == [
        f"Step {step}" for step in (1, 2, 4, 8)
    ]
    assert any(message.startswith("In 8 steps up to step 8 all answers") for message in told)
    assert [one.equal_rewards for one in steps(said)] == [1.0] * 8
    assert [one.loss for one in steps(said)] == [0.0] * 8  # and no alarm of a loss that is zero
    assert said[-1] == messages.Done()


def test_answers_that_cannot_be_graded_are_counted(make_job: Any, run: Any) -> None:
    of_json = {**tiny.GRADER, "input": "{{sample.output_json.colour}}"}
    said = run(make_job("lora", method="reinforcement", rows=ROWS, grader=of_json, max_steps=2, **SHORT))

    assert [one.ungraded for one in steps(said)] == [1.0, 1.0]
    warned = [one.message for one in said if isinstance(one, messages.Notice) and one.level == "warn"]
    assert "no JSON, so there is no 'sample.output_json'" in warned[0]
    assert warned[-1] == "16 answers could not be graded, and had a reward of 0"


def rewards_of_evaluations(said: list[messages.AnyMessage]) -> list[tuple[int, float]]:
    found = {one.step: one.mean_reward for one in said if isinstance(one, messages.Eval)}
    return [(step, reward) for step, reward in found.items() if reward is not None]


def report(work_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work_dir / "result" / "metrics.json").read_text())
    return found
