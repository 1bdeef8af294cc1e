"""Whether a training fits a GPU, and if not the changes that would make it fit, the least harmful first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from app.jobs.methods import ReinforcementHyperparameters
from app.jobs.spec import JobSpec, resolved
from app.planning import recipes
from app.planning.memory import MemoryEstimate, estimate
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of
from app.planning.step import ModelShape, TrainingSetup

PROCESS_BYTES = 650 * 1024**2
"""Of a trainer on a CPU before it has loaded anything: Python with torch, transformers, PEFT and TRL."""
LOWEST_RANK = 8
SHORTEST = 512
"""Tokens; a row that is cut shorter has lost what most are there for."""
SHORTEST_ANSWER = 64
"""Tokens; what is broken off sooner is seldom an answer."""


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a spec set to another value."""

    param: str
    value: Any
    cost: str
    """What it takes, in a sentence."""
    train_peak: float
    """Bytes with it and all changes before it."""


def peak(spec: JobSpec, facts: Facts, shape: ModelShape, device: Device) -> MemoryEstimate:
    """What a job would take on such a device, its `auto`s resolved."""
    return peak_of(recipes.resolve(spec, facts), shape, device, goes_on=facts.goes_on)


def peak_of(spec: JobSpec, shape: ModelShape, device: Device, *, goes_on: bool = False) -> MemoryEstimate:
    """The same of a resolved spec."""
    found = estimate(shape, setup_on(spec, shape, device, goes_on=goes_on))
    return found if device.kind == "cuda" else replace(found, context=float(PROCESS_BYTES))


def setup_on(spec: JobSpec, shape: ModelShape, device: Device, *, goes_on: bool = False) -> TrainingSetup:
    """The step of a resolved spec, with what a GPU takes beside its tensors. `goes_on`: see `Facts`."""
    on_gpu = device.kind == "cuda"
    return replace(setup_of(spec, shape, device, goes_on=goes_on), reserved=on_gpu, context=on_gpu)


def changes(spec: JobSpec, facts: Facts, shape: ModelShape, device: Device, room: float) -> list[Change] | None:
    """The changes after which it takes at most `room` bytes; none where it does already, None where nothing helps.

    What turns out not to be needed beside the more harmful ones is left out again.
    """

    def taken(steps: list[Step]) -> float:
        return peak(_with(spec, steps), facts, shape, device).total

    made: list[Step] = []
    now = taken(made)
    for kind in KINDS:
        if now <= room:
            break
        for step in kind(recipes.resolve(_with(spec, made), facts)):
            if (then := taken([*made, step])) < now:
                made, now = [*made, step], then
            if now <= room:
                break
    if now > room:
        return None
    for step in made[:-1]:
        without = [other for other in made if other is not step]
        if taken(without) <= room:
            made = without
    return _fields(made, taken)


def shrunk(spec: JobSpec) -> JobSpec | None:
    """A resolved spec with half as many rows at a time and as many a step; None where there is no half.

    An odd number is divided by what divides it. KTO compares the rows of a batch, so it keeps two.
    """
    given = spec.hyperparameters
    rows, accumulation = resolved(given.per_device_train_batch_size), resolved(given.gradient_accumulation_steps)
    for parts in range(2, rows // recipes.least_at_a_time(spec) + 1):
        if rows % parts == 0:
            return regrouped(spec, rows // parts, accumulation * parts)
    return None


def regrouped(spec: JobSpec, per_device: int, accumulation: int) -> JobSpec:
    """A resolved spec with its steps made of other parts."""
    body = spec.model_dump(mode="json")
    numbers = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
    body["method"][spec.method.type]["hyperparameters"] |= numbers
    return type(spec).model_validate(body)


Field = tuple[str, Any, str]
"""A path in the spec, its value, and what that costs."""
Step = tuple[Field, ...]
"""Fields that belong together."""
Kind = Callable[[JobSpec], Iterator[Step]]
"""From a resolved spec to steps that go ever further."""


def _checkpointing(spec: JobSpec) -> Iterator[Step]:
    yield ((spec.param("gradient_checkpointing"), True, "Steps take about a third longer."),)


def _smaller_batches(spec: JobSpec) -> Iterator[Step]:
    given = spec.hyperparameters
    rows, accumulation = given.per_device_train_batch_size, given.gradient_accumulation_steps
    fewest = 2 * recipes.least_at_a_time(spec)
    while isinstance(rows, int) and isinstance(accumulation, int) and rows >= fewest and rows % 2 == 0:
        rows, accumulation = rows // 2, accumulation * 2
        yield (
            (spec.param("per_device_train_batch_size"), rows, "Steps are the same, and a little slower."),
            (spec.param("gradient_accumulation_steps"), accumulation, "So that a step has as many rows."),
        )


def _fewer_answers(spec: JobSpec) -> Iterator[Step]:
    """They are generated side by side, however few of them are trained on at a time."""
    given = spec.hyperparameters
    if not isinstance(given, ReinforcementHyperparameters):
        return
    accumulation = resolved(given.gradient_accumulation_steps)
    per_device, answers = resolved(given.per_device_train_batch_size), resolved(given.num_generations)
    while accumulation % 2 == 0 and per_device * accumulation // 2 % answers == 0:
        accumulation //= 2
        yield (
            (spec.param("per_device_train_batch_size"), per_device, "It is as it was."),
            (spec.param("gradient_accumulation_steps"), accumulation, "Steps have fewer prompts, and are noisier."),
        )


def _eight_bit_optimizer(spec: JobSpec) -> Iterator[Step]:
    yield ((spec.param("optim"), "adamw_bnb_8bit", "The optimizer's states are rounded."),)


def _adapter(spec: JobSpec) -> Iterator[Step]:
    if spec.tuning.type == "full":
        yield (("tuning.type", "lora", "An adapter moves instead of every weight: less room for new knowledge."),)


def _four_bits(_: JobSpec) -> Iterator[Step]:
    yield (("tuning.type", "qlora", "The base is rounded to 4 bits, and steps take longer."),)


def _lower_rank(spec: JobSpec) -> Iterator[Step]:
    rank = getattr(spec.tuning, "r", None)
    while isinstance(rank, int) and rank > LOWEST_RANK:
        rank = max(LOWEST_RANK, rank // 2)
        yield (("tuning.r", rank, "An adapter of a lower rank holds less."),)


def _shorter_rows(spec: JobSpec) -> Iterator[Step]:
    length = spec.hyperparameters.max_length
    given = spec.hyperparameters
    if isinstance(given, ReinforcementHyperparameters):  # whose prompts cannot be cut
        answer, length = resolved(given.max_completion_length), resolved(given.max_length)
        while answer > SHORTEST_ANSWER:
            length, answer = length - answer // 2, answer - answer // 2
            yield (
                (spec.param("max_completion_length"), answer, "Answers are broken off earlier."),
                (spec.param("max_length"), length, "So that prompts have as much room."),
            )
        return
    while isinstance(length, int) and length > SHORTEST:
        length = max(SHORTEST, length // 2)
        yield (
            (spec.param("max_length"), length, "Longer rows lose their end."),
            (spec.param("truncate"), True, "So that longer rows are cut, not refused."),
        )


KINDS: tuple[Kind, ...] = (
    _checkpointing,
    _smaller_batches,
    _eight_bit_optimizer,
    _fewer_answers,
    _adapter,
    _four_bits,
    _lower_rank,
    _shorter_rows,
)
"""In order of harm."""


def _with(spec: JobSpec, steps: list[Step]) -> JobSpec:
    """The spec with some fields set. Where a full tuning becomes an adapter, all else of the adapter is `auto`."""
    body = spec.model_dump(mode="json")
    for param, value, _ in (field for step in steps for field in step):
        if param == "tuning.type" and body["tuning"]["type"] == "full":
            body["tuning"] = {}
        *path, name = param.split(".")
        place = body
        for part in path:
            place = place[part]
        place[name] = value
        if name == "per_device_train_batch_size":
            place["batch_size"] = "auto"  # it is what the two numbers make
    return type(spec).model_validate(body)


def _fields(steps: list[Step], taken: Callable[[list[Step]], float]) -> list[Change]:
    """Field by field, the last value of each."""
    last = {param: (param, value, cost) for step in steps for param, value, cost in step}
    fields: list[Step] = [(field,) for field in last.values()]
    return [Change(*field[0], taken(fields[: number + 1])) for number, field in enumerate(fields)]
