"""What a run's evaluations say: which step was the best, and for how many there was none better.

All from `TrainerState.log_history`, which every checkpoint holds: a run that was stopped goes on with the same answers.
transformers' own `EarlyStoppingCallback` counts for itself and forgets (huggingface/transformers#28544, #10290).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

History = Iterable[Mapping[str, Any]]
"""transformers' entries: a step's `loss`, or an evaluation's `eval_loss`, each with its `step`."""
REWARD = "eval_reward"
"""What TRL's GRPO calls the mean reward of an evaluation, which then counts: its loss is near 0 at any step."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one found."""

    loss: float
    reward: float | None

    @property
    def cost(self) -> float:
        """The lower, the better."""
        return self.loss if self.reward is None else -self.reward

    def __str__(self) -> str:
        return f"{self.loss if self.reward is None else self.reward:.4f}"

    @property
    def measure(self) -> str:
        """What is compared."""
        return "a lower validation loss" if self.reward is None else "a higher validation reward"

    @property
    def best(self) -> str:
        """What the best of them has."""
        return "the lowest validation loss" if self.reward is None else "the highest validation reward"


def found(history: History) -> dict[int, Evaluation]:
    """By step, in order."""
    return {
        entry["step"]: Evaluation(entry["eval_loss"], entry.get(REWARD)) for entry in history if "eval_loss" in entry
    }


def best_step(history: History) -> int | None:
    """The first with the lowest loss, or the highest reward; None where nothing was evaluated."""
    evaluated = found(history)
    return min(evaluated, key=lambda step: evaluated[step].cost, default=None)


def since_best(history: History) -> int:
    """How many came after the best."""
    steps, best = list(found(history)), best_step(history)
    return len(steps) - 1 - steps.index(best) if best is not None else 0
