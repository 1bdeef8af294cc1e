"""The result is the best step by validation loss; training ends once there is no better one, after a stop as well."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.worker.training.conftest import steps
from worker import checkpoints, messages
from worker.messages import AnyMessage
from worker.training import evaluations
from worker.training.child import StopRequest
from worker.training.failures import SpecUnusable

NEVER_SEEN = [
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": 4 * f"@#%^&*~{index}`"}]}
    for index in range(4)
]
"""Whose tokens become less likely as others are learnt, so the first evaluations have the lowest loss."""
TURNED = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in tiny.preference_rows(4)]


@pytest.mark.parametrize("tuning", ["qlora", "full", pytest.param("lora", marks=pytest.mark.long)])
def test_the_result_has_the_weights_of_the_lowest_validation_loss(make_job: Any, run: Any, tuning: str) -> None:
    work_dir = make_job(tuning, validation=NEVER_SEEN, n_epochs=5, learning_rate=1e-2)
    said = run(work_dir)

    _require_the_best(work_dir, said)
    assert any("which has the lowest validation loss" in told for told in _notices(said))


@pytest.mark.parametrize(
    ("method", "tuning"),
    [
        ("dpo", "lora"),
        ("reward", "full"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("dpo", "full"), ("kto", "lora"), ("reward", "lora"))
        ),
    ],
)
def test_other_methods_publish_their_best_as_well(make_job: Any, run: Any, method: str, tuning: str) -> None:
    rows, validation = tiny.preference_rows(16), TURNED
    if method == "kto":
        rows = tiny.unpaired_rows(16)
        validation = [{**row, "label": not row["label"]} for row in rows[:4]]
    options = {"method": method, "rows": rows, "validation": validation, "per_device_train_batch_size": 2}
    work_dir = make_job(tuning, n_epochs=4, learning_rate=1e-2, **options)

    _require_the_best(work_dir, run(work_dir))
    assert not (work_dir / "result" / "ref").exists()


def _require_the_best(work_dir: Path, said: list[AnyMessage]) -> None:
    losses = {message.step: message.loss for message in said if isinstance(message, messages.Eval)}
    best, last = min(losses, key=losses.__getitem__), max(losses)
    assert best < last
    report = _report(work_dir)
    assert report["published"] == "best"
    assert report["best"] == {"step": best, "eval_loss": losses[best]}
    assert report["last"] == {"step": last, "eval_loss": losses[last]}
    assert report["eval_loss"] == losses[best]
    assert report["steps"] == last
    assert _same_weights(work_dir / "result", work_dir / "checkpoints" / f"checkpoint-{best}")
    assert not _same_weights(work_dir / "result", work_dir / "checkpoints" / f"checkpoint-{last}")


def test_a_run_whose_last_step_is_the_best_says_so_and_nothing_else(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora", validation=tiny.chat_rows(4))
    said = run(work_dir)

    report = _report(work_dir)
    assert (report["published"], report["best"], report["last"]["step"]) == ("best", report["last"], 8)
    assert _notices(said) == []


def test_a_run_without_validation_publishes_its_last_step(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora")
    run(work_dir)

    report = _report(work_dir)
    assert (report["published"], report["best"]) == ("last", None)
    assert report["last"] == {"step": 8, "eval_loss": None}


def test_a_best_step_whose_checkpoint_is_gone_is_not_pretended(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora", validation=NEVER_SEEN, n_epochs=4, learning_rate=1e-2)
    run(work_dir)
    best, last = _report(work_dir)["best"]["step"], _report(work_dir)["last"]["step"]
    shutil.rmtree(work_dir / "result")
    shutil.rmtree(work_dir / "checkpoints" / f"checkpoint-{best}")

    said = run(work_dir)

    report = _report(work_dir)
    assert (report["published"], report["best"]["step"]) == ("last", best)
    assert report["eval_loss"] == report["last"]["eval_loss"]
    assert _same_weights(work_dir / "result", work_dir / "checkpoints" / f"checkpoint-{last}")
    (told,) = _notices(said)
    assert "is not on this worker: the result has the weights of step" in told


def test_pruning_keeps_the_best(make_job: Any, run: Any) -> None:
    work_dir = make_job("lora", validation=NEVER_SEEN, n_epochs=4, learning_rate=1e-2, save_steps=1)
    run(work_dir)

    best = _report(work_dir)["best"]["step"]
    kept = {path.name for path in (work_dir / "checkpoints").glob("checkpoint-*")}
    assert best < 15
    assert kept == {f"checkpoint-{step}" for step in (best, 15, 16)}


def test_training_ends_after_so_many_evaluations_without_a_lower_loss(make_job: Any, run: Any) -> None:
    options = {"validation": NEVER_SEEN, "n_epochs": 8, "learning_rate": 1e-2, "eval_steps": 3}
    said = run(work_dir := make_job("lora", early_stopping_patience=2, **options))

    losses = [message for message in said if isinstance(message, messages.Eval)]
    best, end = min(losses, key=lambda one: one.loss), losses[-1].step
    assert end == best.step + 2 * 3 < 32
    assert steps(said)[-1].step == end
    assert said[-1] == messages.Done()
    (ended, chosen) = _notices(said)
    assert ended.startswith(f"Training ends early after step {end}: 2 evaluations in a row")
    assert f"step {best.step} has the lowest validation loss, {best.loss:.4f}" in ended
    assert f"step {best.step}" in chosen
    assert _report(work_dir)["last"]["step"] == end
    assert checkpoints.verified(work_dir / "checkpoints", end) is not None

    without = run(make_job("lora", **options))
    assert steps(without)[-1].step == 32


@pytest.mark.parametrize("eval_steps", [3, pytest.param("auto", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "wished_at", [11, *(pytest.param(at, marks=pytest.mark.long) for at in (2, 3, 7))]
)  # in step 12, too, after which the run ends
def test_a_run_that_was_stopped_ends_early_where_it_would_have(
    make_job: Any, run: Any, eval_steps: int | str, wished_at: int
) -> None:
    options = {"validation": NEVER_SEEN, "n_epochs": 6, "learning_rate": 1e-2, "eval_steps": eval_steps}
    options |= {"early_stopping_patience": 2, "rows": tiny.chat_rows(12), "block": {"lora_dropout": 0.2}}
    straight, stopped = make_job("lora", **options), make_job("lora", **options)
    whole = run(straight)
    assert steps(whole)[-1].step == 12

    first = run(stopped, _stop_after(wished_at))
    second = run(stopped)

    assert isinstance(first[-1], messages.Stopped)
    assert _losses(first) | _losses(second) == pytest.approx(_losses(whole), abs=1e-6)
    assert _evaluated([*first, *second]) == pytest.approx(_evaluated(whole), abs=1e-6)
    for name in ("steps", "published", "tokens"):
        assert _report(stopped)[name] == _report(straight)[name]
    for name in ("best", "last"):
        assert _report(stopped)[name] == pytest.approx(_report(straight)[name], abs=1e-6)


def test_a_run_that_ended_early_and_was_killed_trains_no_further(make_job: Any, run: Any) -> None:
    options = {"n_epochs": 8, "learning_rate": 1e-2, "eval_steps": 3, "early_stopping_patience": 1}
    work_dir = make_job("lora", validation=NEVER_SEEN, **options)
    run(work_dir)
    report = _report(work_dir)
    shutil.rmtree(work_dir / "result")

    said = run(work_dir)

    assert steps(said) == []
    for name in ("steps", "best", "last", "published"):
        assert _report(work_dir)[name] == report[name]


def test_early_stopping_without_rows_to_validate_with_is_refused_when_files_are_prepared(make_job: Any) -> None:
    with pytest.raises(SpecUnusable, match=r"of 16 none is held out\. Send evaluation\.holdout") as refused:
        make_job("lora", early_stopping_patience=2)
    assert refused.value.param == "method.supervised.hyperparameters.early_stopping_patience"


def test_the_first_of_equal_losses_is_the_best() -> None:
    history = [{"step": step, "eval_loss": loss} for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (4, 1.5))]
    assert evaluations.best_step(history) == 2
    assert evaluations.since_best(history) == 2
    assert (evaluations.best_step([]), evaluations.since_best([])) == (None, 0)


def _stop_after(step: int) -> Any:
    """A shutdown that comes while the step after this one is computed."""

    def heard(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == step:
            stop.wish = "save"

    return heard


def _losses(said: list[AnyMessage]) -> dict[int, float]:
    return {message.step: message.loss for message in steps(said)}


def _evaluated(said: list[AnyMessage]) -> dict[int, float]:
    return {message.step: message.loss for message in said if isinstance(message, messages.Eval)}


def _notices(said: list[AnyMessage]) -> list[str]:
    return [message.message for message in said if isinstance(message, messages.Notice)]


def _report(work_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((work_dir / "result" / "metrics.json").read_text())
    return report


def _same_weights(result: Path, checkpoint: Path) -> bool:
    """A full model is published in its base's dtype."""
    (one,), (other,) = result.glob("*.safetensors"), checkpoint.glob("*.safetensors")
    published, saved = load_file(one), load_file(other)
    assert published.keys() <= saved.keys()
    return all(torch.equal(weight, saved[name].to(weight.dtype)) for name, weight in published.items())
