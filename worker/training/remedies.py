"""What a job is told that ran out of memory, or what it goes on with instead."""

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec
from app.planning import fitting, recipes, shapes
from app.planning.fitting import Change
from app.planning.hardware import GIB
from app.planning.setups import Device as Planned
from worker import messages
from worker.training.child import Report
from worker.training.device import Device
from worker.training.failures import DoesNotFit
from worker.training.preparation import write_last

SURE = 0.9
"""Of what there is, that a change has to stay below: the formula has its error."""


def shrink(work_dir: Path, spec: JobSpec, report: Report) -> JobSpec | None:
    """Half as many rows at a time, where the spec wishes that and they can be halved: for this attempt and the next."""
    smaller = fitting.shrunk(spec) if spec.resources.on_oom == "shrink" else None
    if smaller is None:
        return None
    before, after = spec.hyperparameters, smaller.hyperparameters
    rows, accumulation = after.per_device_train_batch_size, after.gradient_accumulation_steps
    assert isinstance(rows, int) and isinstance(accumulation, int)  # noqa: S101, PT018  it is resolved
    write_last(work_dir / "job.json", smaller.model_dump_json(indent=2))
    report(messages.Shrunk(rows, accumulation))
    told = (
        f"Out of memory with {before.per_device_train_batch_size} rows at a time: a step now computes {rows} at a time,"
        f" {accumulation} times"
    )
    if spec.method.type == "kto":
        told += ". kto compares the rows of a batch, so its losses are others than they would have been"
    report(messages.Notice("warn", told))
    return smaller


def in_training(
    work_dir: Path, spec: JobSpec, prepared: Prepared, base: Path, machine: Device, report: Report
) -> DoesNotFit | None:
    """What ends an attempt that ran out of memory in its steps, after all; None: what the error itself says.

    On a CPU that is all that is known: whoever else uses the machine's memory may have taken it.
    """
    if shrink(work_dir, spec, report) is not None:
        param = spec.param("per_device_train_batch_size")
        message = "Out of memory in a step: the next attempt computes fewer rows at a time"
        return DoesNotFit(message, param, suggestion="Nothing is to be done.", retryable=True)
    if machine.kind == "cpu":
        return None
    return does_not_fit(spec, prepared, base, machine, "in a step")


def does_not_fit(spec: JobSpec, prepared: Prepared, base: Path, machine: Device, when: str) -> DoesNotFit:
    """Why a job failed that ran out of memory, and the changes after which it would not have."""
    what = "The GPU" if machine.kind == "cuda" else "The worker's machine"
    message = f"{what} ran out of memory {when}."
    if found := _changes(spec, prepared, base, machine):
        helping = "; ".join(f"{one.param} {json.dumps(one.value)} ({one.train_peak / GIB:.1f} GiB)" for one in found)
        return DoesNotFit(message, found[0].param, suggestion=f"What would help: {helping}.{_or_shrink(spec)}")
    larger = "No change of the spec makes it fit: it needs a larger worker."
    return DoesNotFit(message, "resources.gpu_memory_gb", suggestion=larger)


def _or_shrink(spec: JobSpec) -> str:
    if spec.resources.on_oom == "shrink" or fitting.shrunk(spec) is None:
        return ""
    return " Or send resources.on_oom 'shrink', and rows are computed fewer at a time until they fit."


def _changes(spec: JobSpec, prepared: Prepared, base: Path, machine: Device) -> Sequence[Change] | None:
    """By the formula, which was wrong here if it said that the job fits: then it goes by what takes less than that."""
    try:
        shape = shapes.shape_of(json.loads((base / "config.json").read_text()))
    except (OSError, ValueError, shapes.NotPlannable):
        return None
    facts, place = recipes.facts_of(prepared, device=machine.kind), Planned(machine.kind, machine.precision)
    took = fitting.peak(spec, facts, shape, place).total
    return fitting.changes(spec, facts, shape, place, SURE * min(took, _room(machine)))


def _room(machine: Device) -> float:
    """Bytes that this process could have."""
    if machine.kind == "cuda":
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    return float(min([free, *(limit for limit in limits if limit != resource.RLIM_INFINITY)]))
