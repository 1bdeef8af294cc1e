"""What fits which GPU, and what would make it fit."""

from dataclasses import replace
from typing import Any

import pytest

from app.jobs.spec import JobSpec
from app.planning.fitting import changes, peak, shrunk
from app.planning.hardware import GIB, GPUS
from app.planning.recipes import Facts
from app.planning.setups import Device
from app.planning.step import ModelShape

LLAMA_3_8B = ModelShape(4096, 32, 32, 8, 128, 14336, 128256)
LLAMA_3_70B = ModelShape(8192, 80, 64, 8, 128, 28672, 128256)
SMOLLM2_135M = ModelShape(576, 30, 9, 3, 64, 1536, 49152, tied_embeddings=True)
FACTS = Facts(longest_row=2048, hidden_size=4096, model_type="llama", context_length=8192, device="cuda")
GPU = Device("cuda", "bf16")


def spec(tuning: str, block: dict[str, Any] | None = None, **hyperparameters: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": "m",
            "training_file": "f",
            "tuning": {"type": tuning, **(block or {})},
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        }
    )


def needed(
    given: JobSpec, gpu: str, shape: ModelShape = LLAMA_3_8B, facts: Facts = FACTS
) -> list[tuple[str, Any]] | None:
    found = changes(given, facts, shape, GPU, GPUS[gpu] * GIB)
    return None if found is None else [(change.param.rsplit(".", 1)[-1], change.value) for change in found]


@pytest.mark.parametrize(
    ("given", "gpu", "wanted"),
    [
        (spec("lora"), "24 GB", []),
        (spec("qlora"), "16 GB", []),
        (spec("lora"), "16 GB", [("type", "qlora")]),
        (spec("full"), "24 GB", [("type", "lora")]),
        (spec("full"), "16 GB", [("type", "qlora")]),
        (spec("full"), "141 GB", []),
        (spec("lora", gradient_checkpointing=False), "24 GB", [("gradient_checkpointing", True)]),
    ],
    ids=lambda given: "" if isinstance(given, JobSpec) else str(given),
)
def test_the_smallest_changes_that_make_it_fit_are_named(
    given: JobSpec, gpu: str, wanted: list[tuple[str, Any]]
) -> None:
    assert needed(given, gpu) == wanted


@pytest.mark.parametrize(
    ("method", "rows", "parts"),
    [
        ("supervised", 8, [4, 2, 1]),
        ("supervised", 6, [3, 1]),
        ("kto", 8, [4, 2]),
        ("kto", 6, [3]),
        ("kto", 9, [3]),
    ],
)
def test_fewer_rows_at_a_time_are_as_many_a_step(method: str, rows: int, parts: list[int]) -> None:
    numbers = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 2, "batch_size": 2 * rows}
    block = {"type": method, method: {"hyperparameters": numbers}}
    given: JobSpec | None = JobSpec.model_validate({"model": "m", "training_file": "f", "method": block})
    found = []
    while given is not None and (given := shrunk(given)) is not None:
        of = given.hyperparameters
        found.append(of.per_device_train_batch_size)
        assert of.per_device_train_batch_size != "auto"
        assert of.gradient_accumulation_steps != "auto"
        assert (of.per_device_train_batch_size * of.gradient_accumulation_steps, of.batch_size) == (2 * rows, 2 * rows)
    assert found == parts


def test_a_large_batch_is_made_of_smaller_ones_before_anything_is_lost() -> None:
    given = spec("lora", per_device_train_batch_size=16, gradient_accumulation_steps=2)
    found = needed(given, "24 GB")
    assert found is not None
    rows, accumulation = dict(found)["per_device_train_batch_size"], dict(found)["gradient_accumulation_steps"]
    assert rows * accumulation == 32
    assert rows < 16
    assert [name for name, _ in found] == ["per_device_train_batch_size", "gradient_accumulation_steps"]


def test_what_nothing_helps_is_said_so() -> None:
    assert needed(spec("full"), "24 GB", LLAMA_3_70B) is None
    assert needed(spec("full"), "80 GB", LLAMA_3_70B) == [("type", "qlora")]


def test_a_small_model_fits_everywhere_as_it_is() -> None:
    facts = replace(FACTS, hidden_size=576, longest_row=512)
    for gpu in GPUS:
        for tuning in ("full", "lora", "qlora"):
            assert needed(spec(tuning), gpu, SMOLLM2_135M, facts) == []


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
@pytest.mark.parametrize("rows", [1, 4, 32])
def test_with_the_changes_it_fits_and_each_saves_or_is_needed_by_the_next(gpu: str, tuning: str, rows: int) -> None:
    given = spec(tuning, per_device_train_batch_size=rows, gradient_checkpointing=False)
    room = GPUS[gpu] * GIB
    found = changes(given, FACTS, LLAMA_3_8B, GPU, room)
    assert found is not None
    if not found:
        assert peak(given, FACTS, LLAMA_3_8B, GPU).total <= room
        return
    assert peak(given, FACTS, LLAMA_3_8B, GPU).total > room
    assert found[-1].train_peak <= room
    assert len({change.param for change in found}) == len(found)
