"""What the memory formula says of our trainer's own steps, against those steps, counted tensor by tensor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import LlamaForCausalLM

from app.jobs.spec import JobSpec
from app.planning.memory import MemoryEstimate, estimate, evaluation
from app.planning.setups import Device, setup_of
from app.planning.shapes import shape_of
from tests import tiny
from tests.worker.training.conftest import MakeJob
from tests.worker.training.counted import count, held_by, labelled, states_of
from worker.training import device, model, trainers
from worker.training.live import LiveStorages

Precision = Literal["fp32", "bf16"]
PAIR = {"prompt": "Which colour? " * 12, "chosen": "Red. " * 9, "rejected": "Tan. " * 9}
ANSWER = {"prompt": "Which colour? " * 12, "completion": "Red. " * 9, "label": True}
ROW = {"messages": [{"role": "user", "content": "Which colour? " * 12}, {"role": "assistant", "content": "Red. " * 9}]}


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


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("tuning", "block", "hyperparameters"),
    [
        ("full", {}, {}),
        ("full", {}, {"gradient_checkpointing": True}),
        ("full", {}, {"gradient_accumulation_steps": 2, "batch_size": 4}),
        ("lora", {}, {}),
        pytest.param("lora", {"lora_dropout": 0.1}, {}, marks=pytest.mark.long),
        pytest.param("lora", {"target_modules": ["q_proj", "v_proj"], "r": 64}, {}, marks=pytest.mark.long),
        pytest.param("lora", {}, {"gradient_checkpointing": True}, marks=pytest.mark.long),
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
        pytest.param("full", "bf16", marks=pytest.mark.long),
        *(pytest.param("qlora", precision, marks=pytest.mark.long) for precision in ("fp32", "bf16")),
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


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_it_knows_what_logits_take_that_are_computed_at_once(
    tall: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, precision: Precision, method: str
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    counted, found = counted_and_found(tall, make_job, "lora", [PAIR] * 8, method=method)
    assert found.total == pytest.approx(counted, rel=0.10), found


@pytest.mark.parametrize(
    ("tuning", "precision", "beta"),
    [
        ("lora", "bf16", 0.0),
        ("full", "fp32", 0.1),
        ("full", "bf16", 0.1),
        ("qlora", "fp32", 0.0),
    ],
)
@pytest.mark.parametrize("at_once", [2, 64])
@pytest.mark.long
def test_it_knows_what_generating_takes(
    wide: Path,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    tuning: str,
    beta: float,
    at_once: int,
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    chosen = {"num_generations": at_once, "batch_size": 1, "max_completion_length": 64, "beta": beta}
    rows = [{"messages": ROW["messages"][:1], "answer": "Red."}] * 8
    counted, found = counted_and_found(wide, make_job, tuning, rows, method="reinforcement", **chosen)
    assert found.total == pytest.approx(counted, rel=0.10), (found, counted)
    assert tuning == "full" or at_once == 2 or found.moment == "generation"


def counted_and_found(
    base_folder: Path, make_job: MakeJob, tuning: str, rows: list[dict[str, Any]], **options: Any
) -> tuple[int, MemoryEstimate]:
    """Bytes at the peak of the second step, and what the formula says of it."""
    chosen = {"batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 2, **options}
    work_dir = make_job(tuning, rows=rows, model=base_folder.name, **chosen)
    live, spec, machine = count(work_dir, base_folder)

    shape = shape_of(json.loads((base_folder / "config.json").read_text()))
    setup = setup_of(spec, shape, Device("cpu", machine.precision))
    # The rows of this batch have one length, and logits are computed where there is a label.
    setup = replace(setup, repeats_kv=False, masked=False)
    if setup.loss_tile is not None:
        setup = replace(setup, loss_rows=labelled(work_dir / "train.arrow"))
    return live.peak, estimate(shape, setup)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.long)])
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_it_knows_what_an_evaluation_takes(
    wide: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, precision: Precision, tuning: str
) -> None:
    monkeypatch.setenv("FINETUNED_PRECISION", precision)
    chosen: dict[str, Any] = {"batch_size": 2, "per_device_train_batch_size": 2, "max_steps": 1}
    work_dir = make_job(tuning, rows=[ROW] * 8, validation=[ROW] * 2, model="wide", **chosen)
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    base, tokenizer = model.load(wide, spec, machine)
    trainer = trainers.build(work_dir, spec, machine, base, tokenizer)
    trainer.train()
    trainer.model.zero_grad()
    live = LiveStorages()
    with live:
        for tensor in (*held_by(trainer.model), *states_of(trainer.optimizer)):
            live.count(tensor)
        trainer.evaluate()

    shape = shape_of(json.loads((wide / "config.json").read_text()))
    setup = setup_of(spec, shape, Device("cpu", machine.precision))
    found = evaluation(shape, replace(setup, loss_rows=labelled(work_dir / "validation.arrow")))
    assert found == pytest.approx(live.peak, rel=0.08)
