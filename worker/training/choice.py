"""Which weights a run publishes: those of its best step by validation loss, where there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer

from worker import messages
from worker.training import checkpoints, evaluations
from worker.training.child import Report


@dataclass(frozen=True, slots=True)
class Choice:
    """What was published, and what there was, as `metrics.json` says it: `TrainingReport` has the fields."""

    published: Literal["best", "last"]
    best: dict[str, Any] | None
    last: dict[str, Any]

    def as_metrics(self) -> dict[str, Any]:
        """`eval_loss` is of the weights that are published; where they were not evaluated, the run's last stays."""
        chosen = {"published": self.published, "best": self.best, "last": self.last}
        loss = (self.best if self.published == "best" and self.best else self.last)["eval_loss"]
        return chosen if loss is None else {**chosen, "eval_loss": loss}


def choose(trainer: Trainer, folder: Path, report: Report) -> Choice:
    """Load the best step's weights into the trainer's model, from its checkpoint in `folder`.

    The last step's stay where that is the best, where nothing was evaluated, and where the best's checkpoint is gone,
    which is said: another worker may have had it.
    """
    step = trainer.state.global_step
    losses, best_step = evaluations.losses(trainer.state.log_history), evaluations.best_step(trainer.state.log_history)
    last = {"step": step, "eval_loss": losses.get(step)}
    if best_step is None:
        return Choice("last", None, last)
    best = {"step": best_step, "eval_loss": losses[best_step]}
    if best_step == step:
        return Choice("best", best, last)
    kept = checkpoints.verified(folder, best_step)
    lowest = f"step {best_step}, which has the lowest validation loss ({losses[best_step]:.4f})"
    of_last = f"{losses[step]:.4f}" if step in losses else "not evaluated"
    if kept is None:
        gone = f"The checkpoint of {lowest}, is not on this worker: the result has the weights of step {step}"
        report(messages.Notice("warn", f"{gone} ({of_last})"))
        return Choice("last", best, last)
    trainer._load_from_checkpoint(str(kept.path))
    rest = f"those of the last step, {step} ({of_last}), are kept as its checkpoint"
    report(messages.Notice("info", f"The result has the weights of {lowest}; {rest}"))
    return Choice("best", best, last)
