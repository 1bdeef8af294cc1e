"""Runs that go wrong stop by themselves, each with its code; what is healthy is left alone."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests import tiny
from tests.worker.training.conftest import steps
from worker import messages
from worker.training import failures, health
from worker.training.failures import GradientExploded, LossDiverged, LossIsZero

ROWS = tiny.chat_rows(64)


@pytest.fixture
def learnt(make_job: Any, run: Any, bases: Path) -> str:
    """The name of a base that knows such rows, so that there is something to unlearn."""
    folder = bases / "learnt"
    if not folder.exists():
        work_dir = make_job("full", rows=ROWS, n_epochs=6, learning_rate=3e-3)
        assert steps(run(work_dir))[-1].loss < 1.5
        shutil.copytree(bases / "tiny", folder)
        shutil.copy(work_dir / "result" / "model.safetensors", folder / "model.safetensors")
    return folder.name


@pytest.mark.parametrize(
    ("tuning", "rate"),
    [
        ("full", 1e-2),
        pytest.param("lora", 1e-2, marks=pytest.mark.long),
        pytest.param("qlora", 1e-2, marks=pytest.mark.long),
    ],
)
def test_a_rate_ten_times_too_high_stops_by_itself(
    make_job: Any, run: Any, learnt: str, tuning: str, rate: float
) -> None:
    options = {"model": learnt, "rows": ROWS, "n_epochs": 3}
    right = steps(run(make_job(tuning, learning_rate=rate, **options)))
    assert right[-1].loss < right[0].loss + 0.5
    work_dir = make_job(tuning, learning_rate=10 * rate, save_steps=1, **options)
    said: list[Any] = []

    with pytest.raises(LossDiverged, match=r"for 20 steps, up to step \d+; it began at 1\.") as stopped:
        run(work_dir, lambda message, _: said.append(message))

    at = steps(said)[-1].step
    assert at < 48
    assert not (work_dir / "checkpoints" / f"checkpoint-{at}").exists()
    failed = failures.classify(stopped.value, "supervised")
    assert (failed.code, failed.retryable) == ("loss_diverged", False)
    assert failed.param == "method.supervised.hyperparameters.learning_rate"
    assert f"up to step {at}" in failed.message


def test_a_gradient_that_explodes_stops_by_itself(make_job: Any, run: Any) -> None:
    options = {"method": "reward", "rows": tiny.preference_rows(16), "n_epochs": 8, "center_rewards_coefficient": 1.0}
    work_dir = make_job("full", learning_rate=1.0, save_steps=1, **options)
    said: list[Any] = []

    with pytest.raises(
        GradientExploded, match=r"above 1\d\d\d for 5 steps, up to step 7; before, it was 11\."
    ) as stopped:
        run(work_dir, lambda message, _: said.append(message))

    assert steps(said)[-1].step == 7
    assert all(step.grad_norm is not None and step.grad_norm > 1000 for step in steps(said)[2:])
    assert not (work_dir / "checkpoints" / "checkpoint-7").exists()
    failed = failures.classify(stopped.value, "reward")
    assert (failed.code, failed.param) == ("gradient_exploded", "method.reward.hyperparameters.learning_rate")
    assert run(make_job("full", learning_rate=1e-2, **options))[-1] == messages.Done()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_row_that_makes_nan_stops_at_its_step(make_job: Any, run: Any, bases: Path, tuning: str) -> None:
    """The base has one broken embedding, which one row of 16 uses."""
    folder = shutil.copytree(bases / "tiny", bases / f"broken-{tuning}")
    (token,) = AutoTokenizer.from_pretrained(folder)("~")["input_ids"]
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # else every row's logits would have it
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"prompt": "box ~:", "completion": " red"}, *tiny.prompt_rows(15)]
    work_dir = make_job(tuning, model=folder.name, rows=rows, save_steps=1, batch_size=1, n_epochs=1)
    said: list[Any] = []

    with pytest.raises(failures.LossNotFinite, match=r"The loss of step \d+ is nan") as stopped:
        run(work_dir, lambda message, _: said.append(message))

    at = steps(said)[-1].step + 1
    assert f"loss of step {at} is nan" in str(stopped.value)
    assert {path.name for path in (work_dir / "checkpoints").glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (at - 2, at - 1)
    }
    failed = failures.classify(stopped.value, "supervised")
    assert (failed.code, failed.param) == ("loss_not_finite", "method.supervised.hyperparameters.learning_rate")


def test_rows_without_a_label_stop_by_themselves(make_job: Any, run: Any) -> None:
    """Preparing refuses a file of such rows; a set of them that got past it is stopped in training."""
    with pytest.raises(failures.FileUnusable) as refused:
        make_job("lora", rows=[{"prompt": "box 1:", "completion": ""}])
    assert failures.classify(refused.value, "supervised").code == "invalid_training_file"

    work_dir = make_job("lora", save_steps=1)
    rows = Dataset.from_file(str(work_dir / "train.arrow"))
    masked = rows.map(
        lambda row: {"labels": [-100] * len(row["labels"])}, cache_file_name=str(work_dir / "masked.arrow")
    )
    assert len(masked) == len(rows)
    shutil.move(work_dir / "masked.arrow", work_dir / "train.arrow")
    with pytest.raises(LossIsZero, match=r"exactly 0 for 5 steps, up to step 5: nothing is learnt any more") as stopped:
        run(work_dir)
    assert not (work_dir / "checkpoints" / "checkpoint-5").exists()
    failed = failures.classify(stopped.value, "supervised")
    assert (failed.code, failed.param, failed.retryable) == ("loss_is_zero", "training_file", False)


def _history(losses: list[float], *, norms: list[float] | None = None, warm_up: int = 2) -> list[dict[str, Any]]:
    """As transformers logs it, with evaluations in between that are not steps."""
    entries: list[dict[str, Any]] = []
    for index, loss in enumerate(losses):
        rate = 0.0 if index + 1 < warm_up else 1e-4
        norm = norms[index] if norms else 1.0
        entries += [
            {"step": index + 1, "loss": loss, "grad_norm": norm, "learning_rate": rate},
            {"step": index + 1, "eval_loss": 9.0},
        ]
    return entries


def _stops_at(losses: list[float], method: Any = "supervised", **more: Any) -> tuple[int, str] | None:
    """The step at which a run with these losses stops, and why."""
    history = _history(losses, **more)
    for end in range(1, len(history), 2):
        try:
            health.require(history[:end], method)
        except failures.TrainingSpoilt as error:
            return history[end - 1]["step"], error.code
    return None


def test_a_loss_of_zero_stops_after_five_steps() -> None:
    assert _stops_at([2.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0]) is None
    assert _stops_at([2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]) == (6, "loss_is_zero")


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_a_loss_of_zero_is_no_fault_where_it_means_that_all_is_learnt(method: str) -> None:
    assert _stops_at([1.0, *[0.0] * 30], method) is None


def test_hinge_dpo_comes_to_zero_and_succeeds(make_job: Any, run: Any) -> None:
    work_dir = make_job("full", method="dpo", rows=tiny.preference_rows(16), loss_type="hinge", n_epochs=8)
    said = run(work_dir)

    assert [step.loss for step in steps(said)[-10:]] == [0.0] * 10
    assert said[-1] == messages.Done()


def test_only_a_norm_that_stays_out_of_proportion_stops() -> None:
    usual = [1.0] * 10
    losses = [2.0] * 40
    assert _stops_at(losses, norms=[*usual, *[2000.0] * 4, *usual, *[1e9] * 4, *usual, 1.0, 1.0]) is None
    assert _stops_at(losses, norms=[*usual, *[2000.0] * 30]) == (15, "gradient_exploded")
    assert _stops_at(losses, norms=[*usual, *[900.0] * 30]) is None  # out of proportion, and still usual elsewhere
    assert _stops_at(losses, norms=[50.0, *[4000.0] * 39]) is None  # as it began, within a hundred times
    assert _stops_at(losses, norms=[*[0.0] * 10, *[999.0] * 30]) is None  # all was learnt


def test_only_a_loss_that_stays_above_the_bases_stops() -> None:
    up = [6.0] * 30
    assert _stops_at([1.0, 1.2, *up]) == (22, "loss_diverged")
    assert _stops_at([1.0, 1.2, *up[:19], 1.5, *up[:19]]) is None  # it recovers
    assert _stops_at([1.0, 1.2, *[1.75] * 60]) is None  # by less than half
    assert _stops_at([0.01, 0.02, *[0.5] * 60]) is None  # by less than 0.5
    assert _stops_at([1.0, *up], warm_up=1) == (21, "loss_diverged")


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo", "reward"])
def test_a_loss_that_is_no_likelihood_is_not_compared_with_its_first(method: str) -> None:
    assert _stops_at([0.5, 0.5, *[9.0] * 60], method) is None


def test_noisy_losses_of_single_rows_stop_nothing() -> None:
    """Half of the rows are easy; the first ones are among them."""
    easy, hard = 0.1, 2.0
    losses = [easy, easy, *(easy if (index * 2654435761) % 97 < 48 else hard for index in range(3000))]
    assert math.isclose(sum(loss == hard for loss in losses) / len(losses), 0.5, abs_tol=0.02)
    assert _stops_at(losses) is None


def test_a_run_that_goes_on_is_judged_by_all_its_steps(make_job: Any, run: Any, learnt: str) -> None:
    """The steps before a stop count: 20 in a row, however many attempts they take."""
    options = {"model": learnt, "rows": ROWS, "n_epochs": 4, "learning_rate": 0.3}
    straight, stopped = make_job("lora", **options), make_job("lora", **options)
    with pytest.raises(LossDiverged) as whole:
        run(straight)

    def at_step_12(message: Any, stop: Any) -> None:
        if isinstance(message, messages.Metrics) and message.step == 12:
            stop.wish = "save"

    assert run(stopped, at_step_12)[-1] == messages.Stopped(13)
    with pytest.raises(LossDiverged) as resumed:
        run(stopped)
    assert str(resumed.value) == str(whole.value)
