"""How many prompts a step of reinforcement has, how many answers to each, and how many of them are computed at a time.

An answer is rewarded by how it compares with the others to its prompt, its group, so groups are never parted:
batch_size × num_generations = per_device_train_batch_size × gradient_accumulation_steps × gpus completions.
"""

import math
from typing import NamedTuple

from app.jobs.methods import LARGEST_BATCH, LARGEST_MICRO_BATCH, MOST_GENERATIONS, ReinforcementHyperparameters


class Problem(NamedTuple):
    """Why there is no such step, and the field that says so."""

    field: str
    message: str


class Groups(NamedTuple):
    """A step, in numbers."""

    prompts: int
    num_generations: int
    per_device: int
    accumulation: int


class Wish(NamedTuple):
    """What a recipe would take where nothing is given."""

    prompts: int
    num_generations: int
    per_device: int
    most_prompts: int
    """There are no more in the data."""


def problem(given: ReinforcementHyperparameters, gpus: int) -> Problem | None:
    """Why no `auto` among the four numbers can make a step of those that are given; None where one can."""
    prompts, generations, per_device, accumulation = _numbers(given)
    at_a_time = (per_device or 1) * (accumulation or 1) * gpus
    said = _said(per_device, accumulation, gpus)
    if prompts is None and generations is None and per_device and accumulation and at_a_time < 2:
        message = "A step has 1 completion, and answers are compared: send more to a device, or more accumulation."
        return Problem("per_device_train_batch_size", message)
    if _chosen_generations(given, gpus, 2) is None:
        if generations is not None and per_device and accumulation and prompts is None:
            message = (
                f"{said} is {at_a_time} completions, which num_generations {generations} does not divide: all answers"
                f" to a prompt belong to one step. Send a multiple of {generations}, or leave one of them 'auto'."
            )
            return Problem("num_generations", message)
        if generations is None:
            message = (
                f"{said} is {at_a_time} completions, which are not batch_size {prompts} times as many for each prompt."
                f" Send batch_size × num_generations = {said}, or leave one of them 'auto'."
            )
            return Problem("batch_size", message)
        message = (
            f"batch_size {prompts} × num_generations {generations} is {(prompts or 1) * generations} completions,"
            + (f" but {said} is {at_a_time}" if per_device and accumulation else f" no multiple of {said}")
            + ". Leave one of them 'auto'."
        )
        return Problem("batch_size", message)
    if _chosen_generations(given, gpus, 2, limited=True) is None:
        message = (
            f"A step has at most {LARGEST_BATCH} completions, and at most {LARGEST_MICRO_BATCH} of them at a time:"
            " batch_size × num_generations = per_device_train_batch_size × gradient_accumulation_steps × gpus."
        )
        return Problem("batch_size", message)
    return None


def chosen(given: ReinforcementHyperparameters, gpus: int, wish: Wish) -> Groups:
    """The four numbers: what is given rules, what is `auto` follows from it. Of numbers without a `problem`."""
    prompts, _, per_device, accumulation = _numbers(given)
    generations = _chosen_generations(given, gpus, wish.num_generations, limited=True)
    assert generations is not None  # noqa: S101  there is no problem
    if prompts is None:
        parts = (per_device or 1) * (accumulation or 1) * gpus
        whole = parts // math.gcd(parts, generations)  # the fewest prompts whose completions are a multiple of parts
        if per_device and accumulation:
            prompts = parts // generations
        else:
            wished = min(wish.prompts, wish.most_prompts, LARGEST_BATCH // generations)
            prompts = whole * max(1, wished // whole)
    here = prompts * generations // gpus
    if per_device is None:
        per_device = here // accumulation if accumulation else divisor(here, wish.per_device)
    return Groups(prompts, generations, per_device, here // per_device)


def _numbers(given: ReinforcementHyperparameters) -> tuple[int | None, int | None, int | None, int | None]:
    numbers = (
        given.batch_size,
        given.num_generations,
        given.per_device_train_batch_size,
        given.gradient_accumulation_steps,
    )
    prompts, generations, per_device, accumulation = (None if number == "auto" else number for number in numbers)
    return prompts, generations, per_device, accumulation


def _chosen_generations(
    given: ReinforcementHyperparameters, gpus: int, wished: int, *, limited: bool = False
) -> int | None:
    """As given, or the nearest to what is wished that goes with the rest; None where none does.

    `limited`: nor makes a step too large.
    """
    prompts, generations, per_device, accumulation = _numbers(given)
    parts = (per_device or 1) * (accumulation or 1) * gpus

    def fits(number: int) -> bool:
        fewest = math.lcm(parts, number) if prompts is None else prompts * number
        if limited and (fewest > LARGEST_BATCH or fewest > (accumulation or fewest) * gpus * LARGEST_MICRO_BATCH):
            return False
        if per_device and accumulation:
            return parts % number == 0 if prompts is None else prompts * number == parts
        return prompts is None or prompts * number % parts == 0

    if generations is not None:
        return generations if fits(generations) else None
    fitting = [number for number in range(2, MOST_GENERATIONS + 1) if fits(number)]
    return min(fitting, key=lambda number: (number > wished, abs(number - wished)), default=None)


def _said(per_device: int | None, accumulation: int | None, gpus: int) -> str:
    parts = [("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", accumulation)]
    named = [f"{name} {number}" for name, number in parts if number]
    return " × ".join([*named, *([f"gpus {gpus}"] if gpus > 1 else [])]) or "1"


def divisor(number: int, wished: int, *, least: int = 1) -> int:
    """The largest that is at most what is wished, else the smallest there is."""
    divisors = [one for one in range(least, number + 1) if number % one == 0]
    return max((one for one in divisors if one <= wished), default=divisors[0])
