"""What a run's evaluations say: which step was the best, and for how many there was none better.

All from `TrainerState.log_history`, which every checkpoint holds: a run that was stopped goes on with the same answers.
transformers' own `EarlyStoppingCallback` counts for itself and forgets (huggingface/transformers#28544, #10290).
"""

from collections.abc import Iterable, Mapping
from typing import Any

History = Iterable[Mapping[str, Any]]
"""transformers' entries: a step's `loss`, or an evaluation's `eval_loss`, each with its `step`."""


def losses(history: History) -> dict[int, float]:
    """By step, in order."""
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def best_step(history: History) -> int | None:
    """The first with the lowest loss; None where nothing was evaluated."""
    found = losses(history)
    return min(found, key=found.__getitem__, default=None)


def since_best(history: History) -> int:
    """How many came after the best."""
    steps, best = list(losses(history)), best_step(history)
    return len(steps) - 1 - steps.index(best) if best is not None else 0
