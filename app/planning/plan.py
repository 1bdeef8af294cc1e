"""What a job will take, before it is trained: memory on every device, time, disk, and what would make it fit. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, LoraTuning, resolved
from app.planning import artifacts, fitting, guardrails, recipes
from app.planning.artifacts import Retention
from app.planning.bases import Base
from app.planning.duration import SHORTEST_SHARE, Duration, Measured, Work, duration, work_of
from app.planning.fitting import Change, setup_on
from app.planning.guardrails import Guardrail
from app.planning.hardware import COMMON, Hardware
from app.planning.memory import MemoryEstimate, evaluation
from app.planning.recipes import Facts
from app.planning.setups import generated_at_once, has_reference, setup_of
from app.planning.step import trained_params

ROOM_LEFT = 0.1
"""Of a device, that must be left for activations to be kept rather than computed twice: the formula's own error."""
OVER = 0.15
"""More than the formula was ever off a published peak of the core rows, 13 % (`benchmarks/memory.py`)."""


@dataclass(frozen=True, slots=True)
class Data:
    """The rows that will be trained on, as far as they are known."""

    rows: int
    """Of one pass."""
    tokens: int
    """Of one pass, all of them."""
    longest_row: int
    basis: Literal["assumed", "estimated", "counted"]
    packs: int | None = None
    packing_saves: float = 0.0
    """Share of what is computed without packing that is padding."""
    holdout: float = 0.0
    wanted: int | None = None
    """Of unpaired rows those whose answer is wanted; None: not counted yet."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether it fits a place, and by how much."""

    place: Hardware
    train_peak: float
    """Bytes."""
    eval_peak: float

    @property
    def peak(self) -> float:
        """The larger of the two."""
        return max(self.train_peak, self.eval_peak)

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.peak <= self.place.room

    @property
    def is_hopeless(self) -> bool:
        """Whether it would not fit even if the formula were over by as much as it was ever found to be."""
        return self.peak * (1 - OVER) > self.place.room


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it, for the place that the job would go to."""

    chosen: Fit
    """That place, and the peaks there."""
    facts: Facts
    resolved: JobSpec
    memory: MemoryEstimate
    """By the formula; `chosen.train_peak` is corrected by what was measured there."""
    trained_params: int
    adapter_bytes: int | None
    """None of full fine-tuning."""
    fits: list[Fit]
    duration: Duration
    steps: int
    checkpoint: int
    """Bytes of one."""
    result: int
    worker_disk: int
    stored: int
    changes: list[Change] | None
    """After which it fits its place; none where it does, None where nothing helps."""
    warnings: list[Guardrail]


def make(
    spec: JobSpec,
    base: Base,
    data: Data,
    here: Sequence[Hardware],
    measured: Mapping[str, Sequence[Measured]],
    *,
    retention: Retention,
) -> Plan:
    """Plan for the smallest place of this service that has the room, else for its largest; without any for a GPU.

    `measured`: earlier jobs by the name of the place. Raises `TypeError` for a spec that cannot be resolved.
    """
    places = [*here, *COMMON]
    fits = [fit_of(spec, base, data, place) for place in places]
    candidates = [fit for fit in fits if fit.place.is_here] or fits
    largest_last = sorted(candidates, key=lambda fit: fit.place.room)
    chosen = next((fit for fit in largest_last if fit.fits), largest_last[-1])
    place = chosen.place
    facts, numbers, _ = _resolved_on(spec, base, data, place)
    setup = setup_of(numbers, base.known_shape, place.device, goes_on=base.goes_on)
    adapter = None
    if isinstance(numbers.tuning, LoraTuning):
        adapter = artifacts.adapter_bytes(numbers, base.known_shape, setup, base.tensors, base.model_type)
    result = artifacts.result_bytes(base.known_shape, setup, adapter)
    trained, steps = trained_params(base.known_shape, setup), steps_of(numbers, data)
    evaluates = spec.validation_file is not None or data.holdout > 0
    published = artifacts.checkpoints(numbers, steps, evaluates=evaluates)
    changed: list[Change] | None = []
    if not chosen.fits:
        changed = fitting.changes(spec, facts, base.known_shape, place.device, place.room / place.correction)
        changed = changed or _larger_gpu(fits, place)
    return Plan(
        chosen=chosen,
        facts=facts,
        resolved=numbers,
        memory=fitting.peak_of(numbers, base.known_shape, place.device, goes_on=base.goes_on),
        trained_params=trained,
        adapter_bytes=adapter,
        fits=fits,
        duration=_duration(numbers, base, data, place, trained, steps, result, measured.get(place.name, ())),
        steps=steps,
        checkpoint=artifacts.checkpoint_bytes(base.known_shape, setup),
        result=result,
        worker_disk=artifacts.scratch_bytes(base.known_shape, setup, result),
        stored=artifacts.stored_bytes(numbers, base.known_shape, setup, result, min(published, retention.most(steps))),
        changes=changed,
        warnings=guardrails.warnings(spec, facts),
    )


def _larger_gpu(fits: Sequence[Fit], place: Hardware) -> list[Change] | None:
    """The last resort."""
    larger = [fit for fit in fits if fit.fits and fit.place.gigabytes and fit.place != place]
    if not larger:
        return None
    least = min(larger, key=lambda fit: fit.place.room)
    cost = "It needs such a GPU." if least.place.is_here else "This service has no such GPU."
    return [Change("resources.gpu_memory_gb", least.place.gigabytes, cost, least.train_peak)]


def fit_of(spec: JobSpec, base: Base, data: Data, place: Hardware) -> Fit:
    """What it would take there."""
    _, numbers, train_peak = _resolved_on(spec, base, data, place)
    return Fit(place, train_peak, _eval_peak(numbers, base, place) * place.correction)


def _resolved_on(spec: JobSpec, base: Base, data: Data, place: Hardware) -> tuple[Facts, JobSpec, float]:
    """What a recipe needs to know, there: also whether all activations have room. With the spec by it, and its peak."""
    tight = Facts(
        longest_row=data.longest_row,
        hidden_size=base.hidden_size,
        model_type=base.model_type,
        context_length=base.context_length,
        device=place.device.kind,
        rows_per_pack=data.rows / data.packs if data.packs else None,
        packing_saves=data.packing_saves,
        holdout=data.holdout,
        rows=data.rows,
        tokens=data.tokens,
        wanted=data.wanted,
        goes_on=base.goes_on,
    )

    def taken_by(facts: Facts) -> tuple[Facts, JobSpec, float]:
        numbers = recipes.resolve(spec, facts)
        found = fitting.peak_of(numbers, base.known_shape, place.device, goes_on=base.goes_on)
        return facts, numbers, found.total * place.correction

    roomy = taken_by(replace(tight, memory_is_tight=False))
    return roomy if roomy[2] <= (1 - ROOM_LEFT) * place.room else taken_by(tight)


def steps_of(spec: JobSpec, data: Data) -> int:
    """Optimizer steps of a resolved spec."""
    given = spec.hyperparameters
    if given.max_steps is not None:
        return given.max_steps
    if spec.method.type == "reinforcement":  # what fills no whole step is left for the next pass
        return resolved(given.n_epochs) * max(1, data.rows // resolved(given.batch_size))
    return resolved(given.n_epochs) * math.ceil(_sequences(spec, data) / resolved(given.batch_size))


def _sequences(spec: JobSpec, data: Data) -> float:
    """Rows, or packs, of one pass."""
    if not spec.hyperparameters.packing:
        return data.rows
    return data.packs or max(1.0, data.tokens / resolved(spec.hyperparameters.max_length))


def _eval_peak(numbers: JobSpec, base: Base, place: Hardware) -> float:
    setup = setup_on(numbers, base.known_shape, place.device, goes_on=base.goes_on)
    rows = (
        recipes.rows_at_a_time(numbers)
        * setup.micro_batch
        // resolved(numbers.hyperparameters.per_device_train_batch_size)
    )
    process = 0 if place.device.kind == "cuda" else fitting.PROCESS_BYTES
    return evaluation(base.known_shape, replace(setup, micro_batch=max(1, rows))) + process


def _duration(
    spec: JobSpec,
    base: Base,
    data: Data,
    place: Hardware,
    trained: int,
    steps: int,
    result: int,
    measured: Sequence[Measured],
) -> Duration:
    params = base.known_shape.params
    tokens = steps * resolved(spec.hyperparameters.batch_size) / _sequences(spec, data) * data.tokens

    def taking(share: float) -> Duration:
        """With answers as long as this share of the longest there may be."""
        said = share * recipes.completion_length(spec, base.context_length)
        work = work_of_job(
            spec,
            params=params,
            trained=trained,
            tokens=tokens * _answers(spec) + steps * generated_at_once(spec) * said,
            steps=steps,
            packing_saves=data.packing_saves,
            moved_bytes=2.0 * params + result,
            positions=steps * said,
        )
        return duration(work, place.device.kind, place.gigabytes, measured)

    longest = taking(1.0)
    if spec.method.type != "reinforcement":
        return longest
    said = f"{longest.basis}; answers of a quarter of max_completion_length to all of it, of which half was taken"
    return replace(taking(0.5), low=taking(SHORTEST_SHARE).low, high=longest.high, basis=said)


def _answers(spec: JobSpec) -> int:
    """Sequences that a row is trained as."""
    own = spec.hyperparameters
    return resolved(own.num_generations) if isinstance(own, ReinforcementHyperparameters) else 1


def work_of_job(
    spec: JobSpec,
    *,
    params: int,
    trained: int,
    tokens: float,
    steps: int,
    packing_saves: float,
    moved_bytes: float,
    positions: float = 0.0,
) -> Work:
    """What a resolved spec has to compute, planned or done. `tokens`: of all steps, without padding.

    `positions`: tokens that were generated one after the other.
    """
    given = spec.hyperparameters
    padding = 1 if given.packing else 1 / (1 - min(packing_saves, 0.9))
    return work_of(
        params=params,
        trained=trained,
        tokens=tokens * padding,
        micro_steps=steps * resolved(given.gradient_accumulation_steps),
        checkpointing=bool(given.gradient_checkpointing),
        passes_of_reference=1 if has_reference(spec) else 0,
        moved_bytes=moved_bytes,
        positions=positions,
    )
