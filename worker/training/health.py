"""Stops a run that has gone wrong, by what its steps' numbers show, before the step is saved.

Each rule asks for several steps in a row: one bad batch is no reason, and a run that recovers is left alone. What
counts is read from `TrainerState.log_history`, so that a run that was stopped goes on with the same answers.
"""

# ruff: noqa: ARG002  transformers calls these with its own arguments, needed or not

from collections.abc import Iterator, Mapping
from itertools import islice
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.files.spec import Method
from worker.training.failures import GradientExploded, LossDiverged, LossIsZero

ZERO_FOR = 5
"""Steps. A loss of exactly 0 moves no weight, and nothing that is left to learn has it: a batch of rows without a label
can come once by chance, five not."""
ZERO_IS_WRONG: frozenset[Method] = frozenset({"supervised", "continued_pretraining", "orpo", "reward"})
"""The others may come to 0 because everything is learnt: `hinge` once each pair is far enough apart, `apo_zero`, KTO
and SimPO where a sigmoid rounds."""

EXPLODED_FOR = 5
EXPLODED_NORM = 1000.0
EXPLODED_TIMES = 100.0
"""Above both, five steps in a row. Spikes are usual and clipped: ZClip (Kumar et al. 2025) takes some standard
deviations for one, and clips. Here a run is ended, so it takes a hundred times what was usual before; and because norms
go to 0 where all is learnt, a thousand as well, where fine-tuning has 0.1 to 100."""
USUAL = 200
"""Steps before those that say what is usual."""

DIVERGED_FOR = 20
DIVERGED_TIMES = 1.5
DIVERGED_BY = 0.5
"""Each of 20 steps in a row half as much again as the base's own loss, and by 0.5 nat. All of them, because losses of
small batches are noisy: one as low as the base's says that it is noise. A rate that is too high lifts all."""
LIKELIHOODS: frozenset[Method] = frozenset({"supervised", "continued_pretraining", "orpo"})
"""Methods whose loss at the start says what the base knew. The others begin at a constant, such as ln 2 for DPO, from
which a rate that is too high leads down as well; KTO's rows come in order, with weights of their own."""


class Health(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Looks at each step once it is reported. Raises `LossIsZero`, `GradientExploded` or `LossDiverged`."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Called before transformers saves the step."""
        if "loss" in logs:
            require(state.log_history, self._method)


def require(history: list[dict[str, Any]], method: Method) -> None:
    """Raises `LossIsZero`, `GradientExploded` or `LossDiverged` for what the last steps of a history show."""
    last = list(islice(_steps(reversed(history)), USUAL + EXPLODED_FOR))  # newest first
    step = last[0]["step"]
    if method in ZERO_IS_WRONG and len(last) >= ZERO_FOR and not any(one["loss"] for one in last[:ZERO_FOR]):
        raise LossIsZero(
            f"The loss has been exactly 0 for {ZERO_FOR} steps, up to step {step}: nothing is learnt any more."
        )
    norms = [float(one.get("grad_norm") or 0.0) for one in last]
    usual = median(norms[EXPLODED_FOR:]) if len(norms) > EXPLODED_FOR else None
    if usual is not None and min(norms[:EXPLODED_FOR]) > max(EXPLODED_NORM, EXPLODED_TIMES * usual):
        raise GradientExploded(
            f"The gradient's norm has been above {min(norms[:EXPLODED_FOR]):.4g} for {EXPLODED_FOR} steps, up to step"
            f" {step}; before, it was {usual:.4g} in the median."
        )
    start = max(_before_any_update(history))
    lowest = min(one["loss"] for one in last[:DIVERGED_FOR])
    limit = max(DIVERGED_TIMES * start, start + DIVERGED_BY)
    if method in LIKELIHOODS and len(last) >= DIVERGED_FOR and lowest > limit:
        raise LossDiverged(
            f"The loss has been {lowest:.4g} or more for {DIVERGED_FOR} steps, up to step {step}; it began at"
            f" {start:.4g}. The training unlearns what the base knew."
        )


def _steps(history: Iterator[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in history if "loss" in entry)


def _before_any_update(history: list[dict[str, Any]]) -> Iterator[float]:
    """Losses of the base itself: the first step's, and those after steps that had a rate of 0, as a warm-up begins."""
    for entry in _steps(iter(history)):
        yield float(entry["loss"])
        if entry["learning_rate"] > 0:
            return
