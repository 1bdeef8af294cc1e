"""How long a job takes: from the arithmetic it needs, and the speed of earlier jobs on such a device. Pure.

Jobs differ by orders of magnitude, so speeds are compared by their logarithms: what an earlier job took over what the
arithmetic says of it, the more like this one the more it counts. Until there is one, the device's prior stands alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

CPU_FLOPS = 5e10
"""A second, of two cores while they train; they multiply matrices twice as fast."""
GPU_FLOPS = {16: 65e12, 24: 121e12, 40: 312e12, 48: 362e12, 80: 989e12, 141: 989e12}
"""A second, dense, in 16 bits, by the GB that GPUs are sold with: the makers' data sheets (T4, L4, A100, L40S, H100,
H200)."""
UTILISATION = 0.35
"""Of that which trainings reach: 30 to 40 % in PaLM's and Llama's reports."""
SECONDS_A_MICRO_STEP = {"cpu": 0.03, "cuda": 0.08}
"""What Python and the launching of kernels take for each, whatever its size."""
GENERATING_SHARE = 0.4
"""Of that for each token of an answer, which all answers side by side are given at once: forward alone."""
READ_A_SECOND = {"cpu": 2e10, "cuda": 3e11}
"""Bytes of weights, which each of these tokens takes all of: memory of two channels, and of a T4, the slowest GPU."""
SHORTEST_SHARE = 0.25
"""Of the longest that answers may be, where nobody has seen any: how short they are taken to be at the low end."""
FIXED_SECONDS = {"cpu": 12.0, "cuda": 25.0}
"""Imports, and the device's own start."""
BYTES_A_SECOND = 5e8
"""Of weights read and hashed, and of results written."""
PRIOR_FACTOR = 4.0
"""Up and down, as long as nothing was measured: the device is known by its class alone."""
PRIOR_WEIGHT = 0.25
"""Of the prior beside one earlier job that is quite like this one."""
LEAST_SPREAD = 0.14
"""Of a logarithm: that of the same job on the same device from one time to another, where other work goes on."""
COVERAGE = 0.9
"""Share of the jobs whose time the interval shall contain."""
ALIKE = 1.2
"""Of the logarithm of a micro-step's arithmetic: within which two jobs are taken to be alike."""

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Work:
    """What a training has to compute and to move."""

    flops: float
    micro_steps: float
    moved_bytes: float
    """Weights that are loaded, and the result."""
    positions: float = 0.0
    """Tokens that are generated one after the other, however many answers there are side by side."""
    read_bytes: float = 0.0
    """Weights that are read for each."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An earlier job on such a device."""

    work: Work
    seconds: float


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds from the start of a training to its result, and where they are from."""

    seconds: float
    low: float
    high: float
    basis: str


def work_of(
    *,
    params: int,
    trained: int,
    tokens: float,
    micro_steps: float,
    checkpointing: bool,
    passes_of_reference: int,
    moved_bytes: float,
    positions: float = 0.0,
) -> Work:
    """Of a training that sees so many tokens, padding included. `positions`: see `Work`.

    Two operations a parameter and token forward, two for the gradients of activations, two for those of what is
    trained (Kaplan et al. 2020, section 2.1); with checkpointing forward twice; a reference model forward too, and what
    is generated once more.
    """
    passes = 2 * params + 2 * params + 2 * trained
    passes += 2 * params * (1 if checkpointing else 0) + 2 * params * passes_of_reference
    passes += 2 * params * (1 if positions else 0)
    return Work(tokens * passes, micro_steps, moved_bytes, positions, read_bytes=2.0 * params)


def by_arithmetic(work: Work, kind: Kind, gigabytes: int | None) -> float:
    """Seconds by the device's class alone."""
    speed = CPU_FLOPS
    if kind == "cuda":
        sizes = [size for size in GPU_FLOPS if size <= (gigabytes or 0)]
        speed = UTILISATION * GPU_FLOPS[max(sizes, default=min(GPU_FLOPS))]
    computing = work.flops / speed + work.micro_steps * SECONDS_A_MICRO_STEP[kind]
    each = GENERATING_SHARE * SECONDS_A_MICRO_STEP[kind] + work.read_bytes / READ_A_SECOND[kind]
    return FIXED_SECONDS[kind] + work.moved_bytes / BYTES_A_SECOND + computing + work.positions * each


def duration(work: Work, kind: Kind, gigabytes: int | None, measured: Sequence[Measured]) -> Duration:
    """An interval that holds the time of nine jobs in ten."""
    prior = by_arithmetic(work, kind, gigabytes)
    if not measured:
        basis = "the device's class alone: no job has been trained on one yet"
        return Duration(prior, prior / PRIOR_FACTOR, prior * PRIOR_FACTOR, basis)
    ratios = [math.log(one.seconds / by_arithmetic(one.work, kind, gigabytes)) for one in measured]
    weights = [math.exp(-(((_size(one.work) - _size(work)) / ALIKE) ** 2) / 2) + 0.02 for one in measured]
    total = sum(weights)
    mean = sum(weight * ratio for weight, ratio in zip(weights, ratios, strict=True)) / (total + PRIOR_WEIGHT)
    around = sum(weight * (ratio - mean) ** 2 for weight, ratio in zip(weights, ratios, strict=True))
    # The prior counts as one more observation, as far off as its own factor allows.
    doubt = PRIOR_WEIGHT * (math.log(PRIOR_FACTOR) / 1.645) ** 2
    spread = math.sqrt(LEAST_SPREAD**2 + (around + doubt) / (total + PRIOR_WEIGHT))
    reach = _student(0.5 + COVERAGE / 2, len(measured) + 1) * spread  # the prior is one more
    seconds = prior * math.exp(mean)
    basis = f"{len(measured)} earlier job{'' if len(measured) == 1 else 's'} on such a device"
    return Duration(seconds, seconds * math.exp(-reach), seconds * math.exp(reach), basis)


def _student(share: float, degrees: int) -> float:
    """The quantile of Student's t: of few observations the spread is itself a guess.

    By the first terms of its expansion around the normal distribution's (Abramowitz and Stegun 26.7.5): within 2 % at 2
    degrees, at the shares that intervals are made of.
    """
    z = NormalDist().inv_cdf(share)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / float(degrees) ** power for power, term in enumerate(terms))


def _size(work: Work) -> float:
    return math.log(max(work.flops, 1.0) / max(work.micro_steps, 1.0))
