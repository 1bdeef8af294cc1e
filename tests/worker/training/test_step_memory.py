"""What the memory formula says of our trainer's own steps, against those steps, counted tensor by tensor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import LlamaForCausalLM, TrainerCallback

from app.jobs.spec import JobSpec
from app.planning.memory import MemoryEstimate, estimate, evaluation
from app.planning.setups import Device, setup_of
from app.planning.shapes import shape_of
from tests import tiny
from tests.worker.training.conftest import MakeJob
from worker.training import device, model, trainers
from worker.training.live import LiveStorages

Precision = Literal["fp32", "bf16"]
PAIR = {"prompt": "Which colour? " * 12, "chosen": "Red. " * 9, "rejected": "Tan. " * 9}
ANSWER = {"prompt": "Which colour? " * 12, "completion": "Red. " * 9, "label": True}
ROW = {"messages": [{"role": "user", "content": "Which colour? " * 12}, {"role": "assistant", "content": "Red. " * 9}]}


class SecondStep(TrainerCallback):
    """Counts what is alive in the second step, when the optimizer has its states."""

    def __init__(self, reference: torch.nn.Module | None) -> None:
        self.live = LiveStorages()
        self._reference = reference

    def on_step_begin(self, _: Any, state: Any, __: Any, **given: Any) -> None:
        if state.global_step != 1:
            return
        self.live.__enter__()
        for tensor in (*_held_by(given["model"]), *_states_of(given["optimizer"])):
            self.live.count(tensor)
        for tensor in _held_by(self._reference) if self._reference is not None else ():
            self.live.count(tensor)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == 2:
            self.live.__exit__(None, None, None)


def _held_by(model: torch.nn.Module) -> list[torch.Tensor]:
    held = [*model.parameters(), *model.buffers()]
    states = [state for parameter in held if (state := getattr(parameter, "quant_state", None)) is not None]
    states += [state.state2 for state in states if state.state2 is not None]
    return held + [value for state in states for value in vars(state).values() if isinstance(value, torch.Tensor)]


def _states_of(optimizer: Any) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


@pytest.fixture(scope="module")
def wide(bases: Path) -> Path:
    """A base whose activations count: TRL's tile for the loss is 32,768 columns wide, however few there are."""
    return tiny.make_base(bases / "wide", hidden_size=256, layers=6, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tall(bases: Path) -> Path:
    """A base whose vocabulary counts, most of which its tokenizer never uses."""
    folder = tiny.make_base(bases / "tall", dtype=torch.bfloat16)
    larger = LlamaForCausalLM.from_pretrained(folder)
    larger.resize_token_embeddings(8192)
    larger.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("tuning", "block", "hyperparameters"),
    [
        ("full", {}, {}),
        ("full", {}, {"gradient_checkpointing": True}),
        ("full", {}, {"gradient_accumulation_steps": 2, "batch_size": 4}),
        ("lora", {}, {}),
        ("lora", {"lora_dropout": 0.1}, {}),
        ("lora", {"target_modules": ["q_proj", "v_proj"], "r": 64}, {}),
        ("lora", {}, {"gradient_checkpointing": True}),
        ("qlora", {}, {}),
        ("qlora", {}, {"gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_the_formula_knows_what_a_step_of_the_trainer_takes(
    wide: Path,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    tuning: str,
    block: dict[str, Any],
    hyperparameters: dict[str, Any],
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    counted, found = counted_and_found(wide, make_job, tuning, [ROW] * 8, block=block, packing=False, **hyperparameters)
    assert found.total == pytest.approx(counted, rel=0.10), found


@pytest.mark.parametrize(
    ("tuning", "precision"),
    [
        ("full", "fp32"),
        ("qlora", "bf16"),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("full", "bf16"), ("qlora", "fp32"))),
        *(pytest.param("lora", precision, marks=pytest.mark.long) for precision in ("fp32", "bf16")),
    ],
)
@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo", "reward"])
def test_it_knows_what_a_step_of_every_method_takes(
    wide: Path,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    tuning: str,
    method: str,
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    row = ANSWER if method == "kto" else PAIR
    counted, found = counted_and_found(wide, make_job, tuning, [row] * 8, method=method)
    assert found.total == pytest.approx(counted, rel=0.10), found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_it_knows_what_logits_take_that_are_computed_at_once(
    tall: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, precision: Precision, method: str
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    counted, found = counted_and_found(tall, make_job, "lora", [PAIR] * 8, method=method)
    assert found.total == pytest.approx(counted, rel=0.10), found


def counted_and_found(
    base_folder: Path, make_job: MakeJob, tuning: str, rows: list[dict[str, Any]], **options: Any
) -> tuple[int, MemoryEstimate]:
    """Bytes at the peak of the second step, and what the formula says of it."""
    chosen = {"batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 2, **options}
    work_dir = make_job(tuning, rows=rows, model=base_folder.name, **chosen)
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    base, tokenizer = model.load(base_folder, spec, machine)
    trainer = trainers.build(work_dir, spec, machine, base, tokenizer)
    counted = SecondStep(getattr(trainer, "ref_model", None))
    trainer.add_callback(counted)
    trainer.train()

    shape = shape_of(json.loads((base_folder / "config.json").read_text()))
    setup = setup_of(spec, shape, Device("cpu", machine.precision))
    setup = replace(setup, repeats_kv=False)  # the rows of this batch have one length
    return counted.live.peak, estimate(shape, setup)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_it_knows_what_an_evaluation_takes(
    wide: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, precision: Precision, tuning: str
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    chosen = {"batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 1}
    work_dir = make_job(tuning, rows=[ROW] * 8, validation=[ROW] * 2, model="wide", **chosen)
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    base, tokenizer = model.load(wide, spec, machine)
    trainer = trainers.build(work_dir, spec, machine, base, tokenizer)
    trainer.train()
    trainer.model.zero_grad()
    live = LiveStorages()
    with live:
        for tensor in (*_held_by(trainer.model), *_states_of(trainer.optimizer)):
            live.count(tensor)
        trainer.evaluate()

    shape = shape_of(json.loads((wide / "config.json").read_text()))
    found = evaluation(shape, setup_of(spec, shape, Device("cpu", machine.precision)))

    assert found == pytest.approx(live.peak, rel=0.06)
