"""A whole attempt: what the trainer says, what it leaves, and how it stops."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.registry.manifest import TrainingReport
from tests import tiny
from worker import messages
from worker.messages import AnyMessage
from worker.training import child
from worker.training.child import StopRequest
from worker.training.train import make_ready

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


class Trainer:
    """`python -m worker.training` as a process that speaks on its standard output."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.training", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        self.said: list[AnyMessage] = []

    def begin(self, work_dir: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{work_dir}\n".encode())
        self.process.stdin.flush()

    def hear(self, wanted: type[AnyMessage]) -> AnyMessage:
        """The next message of that class."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(messages.decode(line))
            if isinstance(self.said[-1], wanted):
                return self.said[-1]
        raise AssertionError(f"the trainer never said {wanted}; it said {self.said}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        self.said += [messages.decode(line) for line in self.process.stdout]
        return self.process.wait(timeout=60)


@pytest.fixture
def standby(request: pytest.FixtureRequest) -> Any:
    trainers: list[Trainer] = []

    def start(*arguments: str) -> Trainer:
        trainers.append(Trainer(*arguments or ("--wait",)))
        return trainers[-1]

    yield start
    for trainer in trainers:
        if trainer.process.poll() is None:
            trainer.process.kill()
        trainer.process.wait()
        for pipe in (trainer.process.stdin, trainer.process.stdout):
            assert pipe is not None
            pipe.close()


def test_each_tuning_leaves_a_result_that_plain_libraries_load(make_job: Any, standby: Any, bases: Path) -> None:
    jobs = {
        tuning: make_job(tuning, rows=tiny.chat_rows(24), n_epochs=3, validation=tiny.chat_rows(4))
        for tuning in ("full", "lora", "qlora")
    }
    trainers = {tuning: standby(str(work_dir)) for tuning, work_dir in jobs.items()}
    for tuning, work_dir in jobs.items():
        assert trainers[tuning].finish() == 0, trainers[tuning].said
        assert trainers[tuning].said[-1] == messages.Done()
        _require_result(work_dir, tuning, bases / "tiny")


def test_an_adapter_of_a_newer_kind_is_loaded_by_plain_peft_as_what_it_is(make_job: Any, run: Any, bases: Path) -> None:
    work_dir = make_job("lora", block={"use_dora": True, "use_rslora": True, "r": 4}, n_epochs=3)
    run(work_dir)
    config = json.loads((work_dir / "result" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["r"]) == (True, True, 4)
    base = AutoModelForCausalLM.from_pretrained(bases / "tiny")
    ids = AutoTokenizer.from_pretrained(work_dir / "result")("box", return_tensors="pt")["input_ids"]
    untrained = base(ids).logits
    loaded = PeftModel.from_pretrained(base, str(work_dir / "result"))
    lengths = [name for name, _ in loaded.named_parameters() if "lora_magnitude_vector" in name]
    assert len(lengths) == 2 * 7  # layers, linear layers of each
    assert not torch.allclose(loaded(ids).logits, untrained, atol=1e-2)


def _require_result(work_dir: Path, tuning: str, base: Path) -> None:
    folder = work_dir / "result"
    names = {path.name for path in folder.rglob("*")}
    weights = {"model.safetensors", "config.json"} if tuning == "full" else {"adapter_model.safetensors"}
    assert weights | {"tokenizer.json", "chat_template.jinja", "job.json", "metrics.json"} <= names
    assert not {name for name in names if Path(name).suffix in PICKLES or name == "README.md"}
    assert (folder / "job.json").read_text() == (work_dir / "job.json").read_text()
    JobSpec.model_validate_json((folder / "job.json").read_text())

    report = TrainingReport.model_validate_json((folder / "metrics.json").read_text())
    prepared = Prepared.model_validate_json((work_dir / "prepared.json").read_text())
    assert report.loss_last < report.loss_first - 0.3
    assert (report.steps, report.tokens) == (18, 3 * prepared.train.tokens)
    assert report.trained_tokens == 3 * prepared.train.trained_tokens

    ids = AutoTokenizer.from_pretrained(folder)("box", return_tensors="pt")["input_ids"]
    before = AutoModelForCausalLM.from_pretrained(base)
    untrained = before(ids).logits
    if tuning == "full":
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.dtype == before.dtype
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny"
        assert config["revision"] == prepared.base.revision
        loaded = PeftModel.from_pretrained(before, str(folder))
    assert not torch.allclose(loaded(ids).logits, untrained, atol=1e-2)


def test_the_story_is_told_in_order(make_job: Any, run: Any) -> None:
    told = run(make_job("lora", validation=tiny.chat_rows(4)))
    said = [message for message in told if not isinstance(message, messages.Evaluating)]  # of slow ones

    kinds = [f"{message.phase}" if isinstance(message, messages.Phase) else type(message).__name__ for message in said]
    epoch = ["Metrics"] * 4 + ["Eval", "Checkpoint"]
    assert kinds == ["loading", "Probed", "training", *epoch, *epoch, "saving", "Done"]
    metrics = [message for message in said if isinstance(message, messages.Metrics)]
    assert [message.step for message in metrics] == list(range(1, 9))
    assert {message.total_steps for message in metrics} == {8}
    assert all(message.loss != round(message.loss, 5) for message in metrics)
    assert all(message.grad_norm and message.mean_token_accuracy is not None for message in metrics)
    assert all(message.tokens_per_second > 0 and message.memory_bytes > 1e8 for message in metrics)


def test_saves_and_evaluates_every_so_many_steps_and_at_the_end(make_job: Any, run: Any) -> None:
    said = run(make_job("lora", validation=tiny.chat_rows(4), save_steps=3, eval_steps=5))

    evaluations = [message for message in said if isinstance(message, messages.Eval)]
    assert [message.step for message in evaluations] == [5, 8]
    assert evaluations[1].loss < evaluations[0].loss
    # After step 5 too, because its validation loss is the lowest so far.
    assert [message.step for message in said if isinstance(message, messages.Checkpoint)] == [3, 5, 6, 8]


def test_a_job_that_goes_on_elsewhere_saves_its_step_and_stops(make_job: Any, run: Any) -> None:
    def at_step_2(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == 2:
            stop.wish = "save"

    work_dir = make_job("lora", validation=tiny.chat_rows(4))
    said = run(work_dir, at_step_2)

    assert said[-2:] == [messages.Checkpoint(3, "checkpoint-3"), messages.Stopped(3)]
    assert not (work_dir / "result").exists()


def test_a_cancelled_job_stops_in_the_middle_of_a_step_and_saves_nothing(make_job: Any, run: Any) -> None:
    def at_step_2(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == 2:
            stop.wish = "stop"

    work_dir = make_job(
        "lora", validation=tiny.chat_rows(4), batch_size=4, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    said = run(work_dir, at_step_2)

    assert said[-1] == messages.Stopped(2)
    assert not [message for message in said if isinstance(message, messages.Checkpoint | messages.Eval)]
    assert not list((work_dir / "checkpoints").glob("checkpoint-*"))


def test_a_cancel_reaches_into_an_evaluation(make_job: Any, run: Any) -> None:
    def at_epoch_end(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == 4:
            stop.wish = "stop"

    # At step 4 the epoch ends: the wish is heard after on_step_end, in the evaluation or just before it.
    said = run(make_job("lora", validation=tiny.chat_rows(8), eval_steps=4), at_epoch_end)

    assert said[-1] == messages.Stopped(4)
    assert not [message for message in said if isinstance(message, messages.Checkpoint | messages.Eval)]


@pytest.mark.parametrize(
    ("number", "saves"), [(signal.SIGTERM, True), pytest.param(signal.SIGINT, False, marks=pytest.mark.long)]
)
def test_a_signal_ends_a_standby_that_trains(make_job: Any, standby: Any, number: signal.Signals, saves: bool) -> None:
    trainer = standby()
    work_dir = make_job("lora", n_epochs=50)
    trainer.begin(work_dir)
    trainer.hear(messages.Metrics)

    trainer.process.send_signal(number)

    assert trainer.finish() == 0
    assert isinstance(trainer.said[-1], messages.Stopped)
    assert any(isinstance(message, messages.Checkpoint) for message in trainer.said[-3:]) is saves


def test_a_signal_ends_a_trainer_in_the_middle_of_its_imports(standby: Any) -> None:
    trainer = standby()
    _wait_for(lambda: _catches(trainer, signal.SIGTERM))
    trainer.process.send_signal(signal.SIGTERM)

    assert trainer.finish() == 0
    assert trainer.said == [messages.Stopped(0)]


def test_a_standby_has_no_threads_and_ends_with_its_worker(standby: Any) -> None:
    trainer = standby()
    _wait_for(lambda: _waits_for_input(trainer))
    threads = {(path / "comm").read_text().strip() for path in _proc(trainer, "task").iterdir()}
    trainer.process.stdin.close()

    assert trainer.process.wait(timeout=30) == 0
    assert len(threads - {"jemalloc_bg_thd"}) == 1  # its own, and the one of Arrow's allocator, which only sweeps
    assert trainer.said == []


def test_getting_ready_by_hand_goes_on_where_it_was_broken_off(make_job: Any) -> None:
    work_dir = make_job("lora")
    resolved = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    prepared_at = (work_dir / "prepared.json").stat().st_mtime_ns
    asked = resolved.model_dump(mode="json")
    asked["tuning"]["r"] = "auto"  # as if the spec had not been written yet
    (work_dir / "job.json").write_text(json.dumps(asked))

    for _ in range(2):
        make_ready(work_dir, lambda _: None)

    assert JobSpec.model_validate_json((work_dir / "job.json").read_text()) == resolved
    assert (work_dir / "prepared.json").stat().st_mtime_ns == prepared_at


@pytest.mark.long  # and it needs a core that nobody else uses
def test_a_standby_leaves_the_cores_to_others_until_one_is_free_or_it_has_a_job(standby: Any, make_job: Any) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        patient, told = (standby("--wait", "--when-idle") for _ in range(2))
        time.sleep(1.5 * child.IDLE_INTERVAL)
        assert not any(_has_torch(trainer) for trainer in (patient, told))
        told.begin(make_job("lora", max_steps=1))
        told.hear(messages.Done)
        assert not _has_torch(patient)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    _wait_for(lambda: _has_torch(patient))


def test_an_expected_trainer_goes_when_no_job_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    monkeypatch.setattr(child, "PATIENCE", 0.2)
    with os.fdopen(read_end) as never_told:
        monkeypatch.setattr(sys, "stdin", never_told)

        assert child.work_dir_from(["--wait", "--for-a-while"]) is None
    os.close(write_end)


def test_imports_are_kept_from_the_garbage_collector() -> None:
    with child.importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _catches(trainer: Trainer, number: signal.Signals) -> bool:
    caught = int(_proc(trainer, "status").read_text().split("SigCgt:", 1)[1].split(maxsplit=1)[0], 16)
    return bool(caught & (1 << (number - 1)))


def _waits_for_input(trainer: Trainer) -> bool:
    """Whether it has torch loaded and used no processor time for a quarter of a second."""
    before = _proc(trainer, "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    time.sleep(0.25)
    after = _proc(trainer, "stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return before == after and _has_torch(trainer)


def _has_torch(trainer: Trainer) -> bool:
    return "libtorch" in _proc(trainer, "maps").read_text()


def _proc(trainer: Trainer, name: str) -> Path:
    return Path(f"/proc/{trainer.process.pid}/{name}")
