"""Which weights a run publishes: those of its best step by validation loss or reward, where there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer

from worker import checkpoints, messages
from worker.training import evaluations
from worker.training.child import Report
from worker.training.evaluations import Evaluation


@dataclass(frozen=True, slots=True)
class Choice:
    """What was published, and what there was, as `metrics.json` says it: `TrainingReport` has the fields."""

    published: Literal["best", "last"]
    best: dict[str, Any] | None
    last: dict[str, Any]

    def as_metrics(self) -> dict[str, Any]:
        """What an evaluation found is of the weights that are published; of ones that none saw the run's last stays."""
        chosen = {"published": self.published, "best": self.best, "last": self.last}
        of_these = self.best if self.published == "best" and self.best else self.last
        measured = {name: of_these.get(name) for name in ("eval_loss", "eval_reward")}
        return chosen | {name: value for name, value in measured.items() if value is not None}


def choose(trainer: Trainer, folder: Path, report: Report) -> Choice:
    """Load the best step's weights into the trainer's model, from its checkpoint in `folder`.

    The last step's stay where that is the best, where nothing was evaluated, and where the best's checkpoint is gone,
    which is said: another worker may have had it.
    """
    step = trainer.state.global_step
    evaluated = evaluations.found(trainer.state.log_history)
    best_step = evaluations.best_step(trainer.state.log_history)
    last = _as_metrics(step, evaluated.get(step))
    if best_step is None:
        return Choice("last", None, last)
    found = evaluated[best_step]
    best = _as_metrics(best_step, found)
    if best_step == step:
        return Choice("best", best, last)
    kept = checkpoints.verified(folder, best_step)
    lowest = f"step {best_step}, which has {found.best} ({found})"
    of_last = str(evaluated[step]) if step in evaluated else "not evaluated"
    if kept is None:
        gone = f"The checkpoint of {lowest}, is not on this worker: the result has the weights of step {step}"
        report(messages.Notice("warn", f"{gone} ({of_last})"))
        return Choice("last", best, last)
    trainer._load_from_checkpoint(str(kept.path))
    rest = f"those of the last step, {step} ({of_last}), are kept as its checkpoint"
    report(messages.Notice("info", f"The result has the weights of {lowest}; {rest}"))
    return Choice("best", best, last)


def _as_metrics(step: int, found: Evaluation | None) -> dict[str, Any]:
    measured = {"step": step, "eval_loss": found.loss if found else None}
    return measured if found is None or found.reward is None else {**measured, "eval_reward": found.reward}
