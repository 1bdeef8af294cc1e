"""Checkpoints: which of them count, and that stopping and going on changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.storage import Storage
from tests import tiny
from worker import checkpoints, messages, resuming
from worker.checkpoints import MANIFEST, Checkpoint
from worker.messages import AnyMessage
from worker.training import initial
from worker.training.child import StopRequest


def _write(folder: Path, step: int, *, of: int = 300) -> Checkpoint:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"state" * step)
    saved = Checkpoint(path, step=step, total_steps=of, tokens=10 * step, seconds=0.5 * step)
    checkpoints.commit(saved)
    return saved


def test_an_empty_checkpoint_does_not_hide_the_whole_one_before_it(tmp_path: Path) -> None:
    whole = _write(tmp_path, 100)
    (tmp_path / "checkpoint-200").mkdir()

    assert checkpoints.newest_verified(tmp_path) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-100", "aside-checkpoint-200-0"}


@pytest.mark.fault(24)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "half a manifest"])
def test_a_torn_checkpoint_is_never_trusted(tmp_path: Path, damage: str) -> None:
    whole, torn = _write(tmp_path, 100), _write(tmp_path, 200).path
    content = (torn / "optimizer.pt").read_bytes()
    match damage:
        case "truncated":
            (torn / "optimizer.pt").write_bytes(content[:-1])
        case "flipped":
            (torn / "optimizer.pt").write_bytes(b"S" + content[1:])
        case "missing":
            (torn / "optimizer.pt").unlink()
        case "no manifest":
            (torn / MANIFEST).unlink()
        case _:
            (torn / MANIFEST).write_text((torn / MANIFEST).read_text()[:20])

    assert checkpoints.newest_verified(tmp_path) == whole


def test_pruning_keeps_two_that_are_committed(tmp_path: Path) -> None:
    for step in (9, 20, 100):
        _write(tmp_path, step)
    (tmp_path / "checkpoint-50").mkdir()
    (tmp_path / "aside-checkpoint-200-0").mkdir()

    checkpoints.prune(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-20", "checkpoint-100"}


def test_a_job_without_checkpoints_begins_at_the_beginning(tmp_path: Path) -> None:
    assert checkpoints.newest_verified(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("tuning", "block", "chosen"),
    [
        # With noise and dropout the random state counts, with LoRA+ the groups of the optimizer's state.
        ("full", {}, {"neftune_noise_alpha": 5.0}),
        ("lora", {"use_dora": True, "loraplus_lr_ratio": 4.0}, {}),
        # The base lacks a part in the second attempt too.
        ("lora", {"init_lora_weights": "pissa_niter_4", "r": 8, "lora_dropout": 0.2}, {}),
        ("lora", {"init_lora_weights": "olora", "r": 8, "modules_to_save": ["embed_tokens"]}, {}),
    ],
    ids=["full", "DoRA and LoRA+", "PiSSA", "OLoRA and modules trained whole"],
)
def test_stop_and_resume_has_the_losses_of_an_uninterrupted_run(
    make_job: Any, run: Any, tuning: str, block: dict[str, Any], chosen: dict[str, Any]
) -> None:
    # Step 3 of 4 in an epoch makes the position in the data count.
    options = {"block": block, "per_device_train_batch_size": 2, **chosen}
    straight, stopped = make_job(tuning, **options), make_job(tuning, **options)
    whole = _by_step(run(straight))

    first = run(stopped, _stop_after(2))
    assert first[-1] == messages.Stopped(3)
    newest = checkpoints.newest_verified(stopped / "checkpoints")
    assert newest is not None
    spent = newest.seconds
    second = run(stopped)

    assert _by_step(first) == {step: pytest.approx(whole[step], abs=1e-6) for step in (1, 2, 3)}
    assert _by_step(second) == {step: pytest.approx(whole[step], abs=1e-6) for step in range(4, 9)}
    assert messages.Phase("training", total_steps=8, resumed_from_step=3) in second
    for name in ("tokens", "loss_first", "loss_last", "trained_tokens", "steps"):
        assert _report(stopped)[name] == pytest.approx(_report(straight)[name], abs=1e-6), name
    assert _report(stopped)["train_seconds"] > spent > 0
    for name, weight in _weights(straight).items():
        torch.testing.assert_close(_weights(stopped)[name], weight, atol=1e-6, rtol=1e-5)


def test_a_packed_run_goes_on_with_the_packs_that_are_left(make_job: Any, run: Any) -> None:
    # Packs of different numbers of rows, and a last step that is smaller: the position counts packs.
    options = {"rows": tiny.prompt_rows(33), "packing": True, "batch_size": 2, "max_length": 60}
    straight, stopped = make_job("lora", **options), make_job("lora", **options)
    packs = Dataset.from_file(str(straight / "train.arrow"))["seq_lengths"]
    assert len(packs) % 2
    assert len({len(rows) for rows in packs}) > 1
    whole = [message for message in run(straight) if isinstance(message, messages.Metrics)]

    first = run(stopped, _stop_after(2))
    second = run(stopped)

    assert first[-1] == messages.Stopped(3)
    steps = [message for message in [*first, *second] if isinstance(message, messages.Metrics)]
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in whole], abs=1e-6)
    assert [(step.step, step.tokens, step.epoch) for step in steps] == [
        (step.step, step.tokens, step.epoch) for step in whole
    ]
    for name in ("tokens", "loss_last", "trained_tokens", "steps"):
        assert _report(stopped)[name] == pytest.approx(_report(straight)[name], abs=1e-6), name


@pytest.mark.parametrize(
    ("method", "tuning"),
    [
        ("dpo", "lora"),
        ("kto", "lora"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("dpo", "full"), ("orpo", "lora"), ("reward", "full"))
        ),
    ],
)
def test_other_methods_go_on_as_if_nothing_had_been(make_job: Any, run: Any, method: str, tuning: str) -> None:
    rows = tiny.unpaired_rows(16) if method == "kto" else tiny.preference_rows(16)
    options = {"method": method, "rows": rows, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    straight, stopped = make_job(tuning, **options), make_job(tuning, **options)
    whole = _by_step(run(straight))

    first = run(stopped, _stop_after(2))
    second = run(stopped)

    assert first[-1] == messages.Stopped(3)
    assert _by_step(first) | _by_step(second) == pytest.approx(whole, abs=1e-6)
    assert _report(stopped)["tokens"] == _report(straight)["tokens"]


ROWS = {"supervised": tiny.chat_rows(16), "dpo": tiny.preference_rows(16), "packed": tiny.prompt_rows(60)}


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [
        ("supervised", "qlora"),
        ("packed", "lora"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (
                ("supervised", "full"),
                ("supervised", "lora"),
                ("dpo", "full"),
                ("dpo", "lora"),
                ("dpo", "qlora"),
                ("packed", "full"),
                ("packed", "qlora"),
            )
        ),
    ],
)
def test_a_run_is_the_same_after_a_kill_after_a_pause_and_on_another_worker(
    make_job: Any, run: Any, tmp_path: Path, kind: str, tuning: str
) -> None:
    """In a later epoch, at the end of one, and in the middle of the first."""
    options: dict[str, Any] = {
        "rows": ROWS[kind],
        "method": "dpo" if kind == "dpo" else "supervised",
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "block": {} if tuning == "full" else {"lora_dropout": 0.1},
        **({"packing": True, "max_length": 60, "n_epochs": 3} if kind == "packed" else {}),
    }
    straight = make_job(tuning, **options)
    whole = _by_step(run(straight))
    assert len(whole) > 6

    killed = make_job(tuning, **options)
    with pytest.raises(Killed):
        run(killed, _killed_after(7))
    again = run(killed)
    assert _resumed_from(again) == 6
    assert _by_step(again) == {step: pytest.approx(whole[step], abs=1e-6) for step in range(7, len(whole) + 1)}

    paused = make_job(tuning, **options)
    first = run(paused, _stop_after(2 if kind == "dpo" else 3))
    stopped_at = max(_by_step(first))
    elsewhere = make_job(tuning, **options)
    _carry(paused, elsewhere, Storage(f"file://{tmp_path}/storage"))
    for work_dir in (paused, elsewhere):
        rest = run(work_dir)
        assert _resumed_from(rest) == stopped_at
        assert _by_step(first) | _by_step(rest) == {step: pytest.approx(loss, abs=1e-6) for step, loss in whole.items()}

    for work_dir in (killed, paused, elsewhere):
        for name, weight in _weights(straight).items():
            torch.testing.assert_close(_weights(work_dir)[name], weight, atol=1e-6, rtol=1e-5)


def test_the_rows_at_a_time_may_change_on_the_way_and_nothing_else(make_job: Any, run: Any) -> None:
    work_dir = make_job("full", per_device_train_batch_size=2)
    whole = _by_step(run(make_job("full", per_device_train_batch_size=2)))
    run(work_dir, _stop_after(2))
    given = json.loads((work_dir / "job.json").read_text())
    hyperparameters = given["method"]["supervised"]["hyperparameters"]

    hyperparameters |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    (work_dir / "job.json").write_text(json.dumps(given))
    rest = run(work_dir, _stop_after(4))
    assert _resumed_from(rest) == 3
    assert _by_step(rest) == {4: pytest.approx(whole[4], abs=1e-5)}

    hyperparameters["learning_rate"] *= 2
    (work_dir / "job.json").write_text(json.dumps(given))
    anew = run(work_dir)
    assert _resumed_from(anew) is None
    assert list(_by_step(anew)) == list(range(1, 9))
    refused = "The checkpoint at step 4 is of another training, and is not used: it differs in learning_rate"
    assert messages.Notice("warn", refused) in anew


@pytest.mark.long
def test_what_an_adapter_began_as_goes_with_its_checkpoint(make_job: Any, run: Any, tmp_path: Path) -> None:
    """The other worker has begun before, with another part of the base."""
    options = {"block": {"init_lora_weights": "pissa_niter_4", "r": 8}, "per_device_train_batch_size": 2}
    here, there, straight = (make_job("lora", **options) for _ in range(3))
    whole = _by_step(run(straight))
    first = run(here, _stop_after(2))
    began = {name: 2 * weight for name, weight in load_file(here / "checkpoints" / initial.FILE).items()}
    (there / "checkpoints").mkdir()
    save_file(began, there / "checkpoints" / initial.FILE)

    _carry(here, there, Storage(f"file://{tmp_path}/storage"))
    rest = run(there)

    assert _by_step(first) | _by_step(rest) == {step: pytest.approx(loss, abs=1e-6) for step, loss in whole.items()}
    for name, weight in _weights(straight).items():
        torch.testing.assert_close(_weights(there)[name], weight, atol=1e-6, rtol=1e-5)


def test_a_resume_without_its_state_would_be_seen(make_job: Any, run: Any) -> None:
    straight, stopped = make_job("lora"), make_job("lora")
    whole = _by_step(run(straight))
    run(stopped, _stop_after(2))
    saved = stopped / "checkpoints" / "checkpoint-3"
    (saved / "optimizer.pt").unlink()  # transformers begins with a new optimizer, without a word
    checkpoints.commit(Checkpoint(saved, step=3, total_steps=8, tokens=0, seconds=0.0))

    assert _by_step(run(stopped))[8] != pytest.approx(whole[8], abs=1e-6)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_run_killed_after_its_last_step_trains_no_further(make_job: Any, run: Any, tuning: str) -> None:
    work_dir = make_job(tuning, max_steps=3, validation=tiny.chat_rows(2))  # in the middle of the first epoch
    run(work_dir)
    whole, report = _weights(work_dir), _report(work_dir)
    shutil.rmtree(work_dir / "result")

    said = run(work_dir)

    assert _by_step(said) == {}
    assert messages.Phase("training", total_steps=3, resumed_from_step=3) in said
    assert all(torch.equal(weight, whole[name]) for name, weight in _weights(work_dir).items())
    for name in ("steps", "tokens", "trained_tokens", "loss_first", "loss_last", "eval_loss"):
        assert _report(work_dir)[name] == report[name], name


def test_resume_state_is_read_without_running_it(make_job: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work_dir = make_job("lora")
    run(work_dir, _stop_after(2))
    loaded: list[tuple[str, bool | None]] = []
    load = torch.load

    def seen(path: Any, *args: Any, weights_only: bool | None = None, **rest: Any) -> Any:
        loaded.append((Path(path).name, weights_only))
        return load(path, *args, weights_only=weights_only, **rest)

    monkeypatch.setattr(torch, "load", seen)
    run(work_dir)

    assert {name for name, _ in loaded} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(safely is True for _, safely in loaded)


def _stop_after(step: int) -> Any:
    """A shutdown that comes while the step after this one is computed."""

    def heard(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == step:
            stop.wish = "save"

    return heard


class Killed(BaseException):
    """As a signal that nobody can catch: nothing is saved."""


def _killed_after(step: int) -> Any:
    def heard(message: AnyMessage, _: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == step:
            raise Killed

    return heard


def _resumed_from(said: list[AnyMessage]) -> int | None:
    return next(
        message.resumed_from_step for message in said if isinstance(message, messages.Phase) and message.total_steps
    )


def _carry(here: Path, there: Path, storage: Storage) -> None:
    """The newest checkpoint to another worker's WORKDIR, by the storage alone."""
    newest = checkpoints.newest_committed(here / "checkpoints")
    assert newest is not None
    manifest = checkpoints.read_manifest(newest)
    for name in manifest["files"]:
        storage.put_file(newest / name)
    sha256 = storage.write_manifest("resume/job/1.json", manifest)
    course = checkpoints.course_of(
        JobSpec.model_validate_json((there / "job.json").read_text()),
        Prepared.model_validate_json((there / "prepared.json").read_text()),
    )
    resuming.fetch(storage, "resume/job/1.json", sha256, there / "checkpoints", course)


def _by_step(said: list[AnyMessage]) -> dict[int, float]:
    return {message.step: message.loss for message in said if isinstance(message, messages.Metrics)}


def _report(work_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((work_dir / "result" / "metrics.json").read_text())
    return report


def _weights(work_dir: Path) -> dict[str, torch.Tensor]:
    [file] = (work_dir / "result").glob("*.safetensors")
    weights: dict[str, torch.Tensor] = load_file(file)
    return weights
