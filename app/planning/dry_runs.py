"""A dry run, which `worker/training/dry_run.py` makes: what it is asked, and what it answers.

The question holds what moves bytes and nothing else, so that one answer serves all specs that differ elsewhere.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import recipes
from app.planning.memory import MemoryEstimate
from app.planning.recipes import Facts
from app.planning.setups import Device, has_reference

VERSION = 3
"""Counts up when the same question comes to another answer: what is kept fits no more."""
COUNTED = ("per_device_train_batch_size", "max_length", "packing", "optim", "gradient_checkpointing")
"""Hyperparameters that move bytes; of the accumulation only whether there is any does, but where answers are generated
for a whole step.
"""
OF_GENERATION = ("batch_size", "num_generations", "max_completion_length", "top_p", "beta")
ANY_GRADER = {
    "type": "string_check",
    "name": "-",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "-",
}


class Asked(BaseModel):
    """The files of a dry run: the base's `config.json`, a resolved `job.json`, `device.json`, perhaps a `parent`."""

    model_config = ConfigDict(frozen=True)

    config: dict[str, Any]
    spec: JobSpec
    device: Device
    goes_on: bool = False
    """See `Facts`; of methods alone whose reference is a copy of the adapter then."""

    @classmethod
    def of(cls, config: dict[str, Any], spec: JobSpec, facts: Facts, device: Device) -> Self:
        """Of a resolved spec, and of what it was resolved by."""
        goes_on = facts.goes_on and has_reference(spec)
        return cls(config=config, spec=_bare(spec, facts), device=device, goes_on=goes_on)

    @property
    def key(self) -> str:
        """Its digest."""
        said = json.dumps([VERSION, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a step takes."""

    train: MemoryEstimate
    by_layer: tuple[int, ...]
    """Activations of each block at that peak, of those that are in `train.activations`."""
    evaluation: float
    """Bytes at the peak of an evaluation's batch, slack and context included."""


def _bare(spec: JobSpec, facts: Facts) -> JobSpec:
    """With its own numbers where they move bytes, and a recipe's elsewhere."""
    given, method = spec.hyperparameters, spec.method.type
    rows, accumulation = resolved(given.per_device_train_batch_size), resolved(given.gradient_accumulation_steps)
    numbers = {name: getattr(given, name) for name in COUNTED}
    block: dict[str, Any] = {"hyperparameters": numbers}
    if isinstance(given, ReinforcementHyperparameters):
        numbers |= {"gradient_accumulation_steps": accumulation}
        numbers |= {name: getattr(given, name) for name in OF_GENERATION}
        block["grader"] = ANY_GRADER
    else:
        accumulation = min(2, accumulation)
        numbers |= {"gradient_accumulation_steps": accumulation, "batch_size": rows * accumulation}
    tuning = spec.tuning.model_dump(mode="json")
    if isinstance(spec.tuning, LoraTuning):
        tuning |= {"loraplus_lr_ratio": None}
    body = {"model": "-", "training_file": "-", "seed": 0, "tuning": tuning}
    bare = JobSpec.model_validate({**body, "method": {"type": method, method: block}})
    length = resolved(given.max_length)
    return recipes.resolve(
        bare,
        Facts(
            longest_row=length,
            hidden_size=facts.hidden_size,
            model_type=facts.model_type,
            context_length=facts.context_length,
            device=facts.device,
        ),
    )
