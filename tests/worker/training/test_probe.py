"""The probe before the first step: it changes nothing, takes what a step takes, and finds out what does not fit."""

import gc
import multiprocessing
import random
import resource
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from app.jobs.spec import JobSpec
from tests import tiny
from tests.worker.training.conftest import MakeJob, Run, steps
from tests.worker.training.counted import count, held_by, states_of
from worker import messages
from worker.messages import AnyMessage
from worker.training import device, failures, model, probe, trainers
from worker.training.child import StopRequest
from worker.training.live import LiveStorages
from worker.training.train import train

DROPOUT = {"lora_dropout": 0.3}
TWO_PARTS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "batch_size": "auto"}
PAIRS, ANSWERS = tiny.preference_rows(16), tiny.unpaired_rows(16)
ROW = {"messages": [{"role": "user", "content": "Which colour? " * 12}, {"role": "assistant", "content": "Red. " * 9}]}


@pytest.mark.parametrize(
    ("method", "tuning", "block", "chosen"),
    [
        ("supervised", "full", {}, {"neftune_noise_alpha": 5.0, "weight_decay": 0.1, **TWO_PARTS}),
        ("supervised", "lora", DROPOUT | {"loraplus_lr_ratio": 16.0}, {"packing": True}),
        ("supervised", "qlora", DROPOUT, TWO_PARTS),
        ("dpo", "lora", DROPOUT, TWO_PARTS),
        ("kto", "full", {}, TWO_PARTS),
        ("orpo", "lora", DROPOUT, TWO_PARTS),
    ],
    ids=str,
)
def test_it_leaves_everything_as_it_was(
    make_job: MakeJob, bases: Path, method: str, tuning: str, block: dict[str, Any], chosen: dict[str, Any]
) -> None:
    rows = {"dpo": PAIRS, "kto": ANSWERS, "orpo": PAIRS}.get(method, tiny.chat_rows(16))
    options = {"warmup_ratio": 0.0, "max_steps": 3, "block": block, "method": method, "rows": rows, **chosen}
    work_dir = make_job(tuning, validation=rows[:4], **options)
    never, probed = built(work_dir, bases / "tiny"), built(work_dir, bases / "tiny")
    before, drawn = bits(probed), random_state()

    assert probe.fits(probed)

    assert bits(probed) == before
    assert random_state() == drawn
    assert not probed.optimizer.state
    assert not list((work_dir / "checkpoints").glob("*"))
    assert logged(probed, from_seed=7) == logged(never, from_seed=7)


def test_rows_that_spoil_every_step_do_not_spoil_a_weight_in_it(make_job: MakeJob, bases: Path) -> None:
    """What they do is for the first step to say."""
    trainer = built(make_job("full"), bases / "tiny")
    trainer.model.model.norm.weight.data[0] = float("inf")
    before = bits(trainer)

    assert probe.fits(trainer)

    assert bits(trainer) == before


@pytest.mark.parametrize(
    ("tuning", "hyperparameters"),
    [("full", {"batch_size": 4}), ("full", {"gradient_accumulation_steps": 2, "batch_size": 4}), ("lora", {})],
    ids=str,
)
def test_it_holds_as_much_as_a_later_step(
    make_job: MakeJob, bases: Path, tuning: str, hyperparameters: dict[str, Any]
) -> None:
    """Of which the first has not the most: what the optimizer remembers is not there yet."""
    work_dir = make_job(tuning, rows=[ROW] * 8, packing=False, **hyperparameters)
    step, _, _ = count(work_dir, bases / "tiny")
    trainer = built(work_dir, bases / "tiny")
    live = LiveStorages()
    with live:
        for tensor in (*held_by(trainer.model), *states_of(trainer.create_optimizer())):
            live.count(tensor)
        assert probe.fits(trainer)
    assert live.peak == pytest.approx(step.peak, rel=0.03)


def test_the_longest_rows_are_tried_whichever_of_their_sequences_is_long(make_job: MakeJob, bases: Path) -> None:
    rows = [
        {"prompt": "box:", "chosen": " red" * (1 + index % 5), "rejected": " no" * (1 + index // 2)}
        for index in range(16)
    ]
    work_dir = make_job("lora", method="dpo", rows=rows)
    found = probe.longest(built(work_dir, bases / "tiny").train_dataset, 2)
    assert [len(one["rejected_input_ids"]) > len(one["input_ids"]) for one in found] == [True, True]
    assert len(found[0]["rejected_input_ids"]) >= len(found[1]["rejected_input_ids"])


def test_a_job_is_probed_before_its_first_step_and_not_where_it_goes_on(make_job: MakeJob, run: Run) -> None:
    def at_step_2(message: AnyMessage, stop: StopRequest) -> None:
        if isinstance(message, messages.Metrics) and message.step == 2:
            stop.wish = "save"

    work_dir = make_job("lora")
    begun, gone_on = run(work_dir, at_step_2), run(work_dir)

    (probed,) = [message for message in begun if isinstance(message, messages.Probed)]
    assert probed.memory_bytes > 1e8
    assert 0 < probed.seconds < 60
    assert begun.index(probed) < begun.index(steps(begun)[0])
    assert not [message for message in gone_on if isinstance(message, messages.Probed)]


@pytest.mark.fault(6)
@pytest.mark.long
def test_what_does_not_fit_fails_with_what_would_or_shrinks_until_it_does(
    make_job: MakeJob, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes that have no more memory: allocations fail for real."""
    tiny.make_base(tmp_path / "models" / "wide", hidden_size=256, layers=4, dtype=torch.bfloat16)
    monkeypatch.setenv("FINETUNED_MODELS_DIR", str(tmp_path / "models"))
    large: dict[str, Any] = {
        "model": "wide",
        "rows": [ROW] * 8,
        "max_steps": 1,
        "packing": False,
        "batch_size": 8,
        "train_on": "all",
    }
    parts: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    warm_up = make_job("lora", **{**large, "batch_size": 1})
    fails, shrinks, roomy = (make_job("lora", **large, **parts) for _ in range(3))
    spec = JobSpec.model_validate_json((shrinks / "job.json").read_text())
    wished = spec.model_copy(update={"resources": spec.resources.model_copy(update={"on_oom": "shrink"})})
    (shrinks / "job.json").write_text(wished.model_dump_json())

    of_the_first, of_the_second = short_of_memory(warm_up, [fails, shrinks])

    failed = of_the_first[-1]
    assert isinstance(failed, messages.Failed)
    assert (failed.code, failed.retryable) == ("out_of_memory", False)
    assert failed.param is not None
    assert failed.suggestion is not None
    assert f"What would help: {failed.param} " in failed.suggestion
    assert "resources.on_oom 'shrink'" in failed.suggestion
    assert not steps(of_the_first)

    last = [message for message in of_the_second if isinstance(message, messages.Shrunk)][-1]
    assert of_the_second[-1] == messages.Done()
    assert last.per_device_train_batch_size < 8
    assert last.per_device_train_batch_size * last.gradient_accumulation_steps == 8
    assert steps(of_the_second)[0].loss == pytest.approx(steps(run(roomy))[0].loss, rel=1e-5)
    for place in (shrinks, shrinks / "result"):
        given = JobSpec.model_validate_json((place / "job.json").read_text()).hyperparameters
        assert given.per_device_train_batch_size == last.per_device_train_batch_size
        assert given.batch_size == 8


def short_of_memory(warm_up: Path, work_dirs: list[Path]) -> list[list[AnyMessage]]:
    """What trainers say that may have 120 MiB more than one that has trained on `warm_up`.

    They are forked off a process that has done nothing else: the memory that other tests freed is still this one's.
    """
    answer, tell = multiprocessing.Pipe(duplex=False)
    fresh = multiprocessing.get_context("spawn").Process(target=train_all, args=(warm_up, work_dirs, tell))
    fresh.start()
    tell.close()
    try:
        heard = answer.recv()
    finally:
        fresh.join()
    assert isinstance(heard, list)
    return [[messages.decode(line) for line in lines] for lines in heard]


def train_all(warm_up: Path, work_dirs: list[Path], answer: Connection) -> None:
    torch.set_num_threads(1)  # a pool of threads would not outlive the forks
    train(warm_up, lambda _: None, StopRequest())
    heard = []
    for work_dir in work_dirs:
        said, tell = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=train_within, args=(work_dir, 120 * 1024**2, tell))
        child.start()
        tell.close()
        lines = []
        with suppress(EOFError):
            while True:
                lines.append(said.recv_bytes())
        child.join()
        assert child.exitcode == 0, lines
        heard.append(lines)
    answer.send(heard)


def train_within(work_dir: Path, more: int, tell: Connection) -> None:
    def report(message: AnyMessage) -> None:
        tell.send_bytes(messages.encode(message))

    give_back_what_is_free()
    status = Path("/proc/self/status").read_text()
    taken = int(status.split("VmData:", 1)[1].split(maxsplit=1)[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more, resource.RLIM_INFINITY))
    again = True
    while again:
        try:
            report(train(work_dir, report, StopRequest()))
            again = False
        except failures.DoesNotFit as error:
            report(failures.classify(error, "supervised"))
            again = error.retryable
        give_back_what_is_free()


def give_back_what_is_free() -> None:
    gc.collect()
    device.forget_peak(device.find())


def built(work_dir: Path, base: Path) -> Trainer:
    """As `train` does, with some zeros that are negative among what is trained."""
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    trainer = trainers.build(work_dir, spec, machine, *model.load(base, spec, machine))
    for one in trainer.model.parameters():
        if one.requires_grad:
            one.data.view(-1)[:3] = -0.0
    return trainer


def bits(trainer: Trainer) -> dict[str, bytes]:
    held = trainer.model.state_dict().items()
    return {name: one.flatten().view(torch.uint8).numpy().tobytes() for name, one in held}


def random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())


def logged(trainer: Trainer, *, from_seed: int) -> list[dict[str, Any]]:
    """All that its steps say, but their speed."""
    torch.manual_seed(from_seed)
    trainer.train()
    wanted = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: value for name, value in entry.items() if "runtime" not in name} for entry in wanted]
