"""Progress out, wishes in: what the trainer's loop calls at its steps."""

# ruff: noqa: ARG002  transformers calls these with its own arguments, needed or not

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app.jobs.methods import Hyperparameters
from worker import checkpoints, messages
from worker.checkpoints import Checkpoint, Course
from worker.training import evaluations, initial
from worker.training.child import Report, StopNow, StopRequest
from worker.training.device import Device, peak_memory_bytes
from worker.training.failures import LossNotFinite

SAVE_INTERVAL = 600.0
"""Seconds between checkpoints where the spec leaves it to us: what a crash may cost at most."""
SAYING_INTERVAL = 5.0
"""Seconds between two words during an evaluation."""

UNREAD = "training_args.bin"
"""A pickle that transformers writes into each checkpoint, and that nobody reads."""


class NoLongerImproving(Exception):
    """A run that goes on from a checkpoint at which it had ended early."""


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Reports every step, and counts what must go on counting after a resume."""

    def __init__(self, report: Report, device: Device, checkpoint: Checkpoint | None) -> None:
        self._report = report
        self._device = device
        self._checkpoint = checkpoint
        self._tokens_before = checkpoint.tokens if checkpoint else 0
        self._seconds_before = checkpoint.seconds if checkpoint else 0.0
        self._began_at = self._step_began_at = self._said_at = time.monotonic()
        self._trained_for = 0.0
        self.tokens = self._tokens_before

    @property
    def seconds(self) -> float:
        """Spent in training, evaluations and checkpoints included, by all attempts that led here."""
        return self._seconds_before + self._trained_for

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """How far there is to go, and from where."""
        resumed = self._checkpoint.step if self._checkpoint else None
        self._report(messages.Phase(phase="training", total_steps=state.max_steps, resumed_from_step=resumed))
        self._began_at = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step's speed leaves out the evaluation and the checkpoint before it."""
        self._step_began_at = time.monotonic()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An evaluation can take longer than any step."""
        if time.monotonic() - self._said_at >= SAYING_INTERVAL:
            self._said_at = time.monotonic()
            self._report(messages.Evaluating())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """A step's numbers, or an evaluation's. Raises `LossNotFinite`, before the step could be saved."""
        self._trained_for = time.monotonic() - self._began_at
        if "loss" in logs:
            self._step(state, logs)
        elif "eval_loss" in logs:
            loss = float(logs["eval_loss"])
            _require_finite(f"validation loss at step {state.global_step}", loss)
            self._report(messages.Eval(state.global_step, loss, **_beside_the_loss(logs, "eval_")))

    def _step(self, state: TrainerState, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])  # transformers rounds what it prints, not what it logs
        grad_norm = float(logs["grad_norm"]) if "grad_norm" in logs else None
        _require_finite(f"loss of step {state.global_step}", loss)
        if grad_norm is not None:  # one that is not has spoilt every weight
            _require_finite(f"gradient's norm at step {state.global_step}", grad_norm)
        tokens = self._tokens_before + int(logs["num_tokens"])
        rate = (tokens - self.tokens) / max(time.monotonic() - self._step_began_at, 1e-9)
        self.tokens = tokens
        self._report(
            messages.Metrics(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0.0),
                loss=loss,
                learning_rate=float(logs["learning_rate"]),
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=rate,
                seconds=self.seconds,
                memory_bytes=peak_memory_bytes(self._device),
                **_beside_the_loss(logs, ""),
            )
        )


class Pace(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Says when to save, to evaluate and to stop, and commits what was saved."""

    def __init__(
        self,
        report: Report,
        stop: StopRequest,
        given: Hyperparameters,
        progress: Progress,
        course: Course,
        offer: Callable[[Checkpoint], None],
        evaluate: Callable[[], object] | None,
    ) -> None:
        """`evaluate` does so at once; None where there are no validation rows."""
        self._report = report
        self._stop = stop
        self._save_steps = given.save_steps
        self._eval_steps = given.eval_steps
        self._patience = given.early_stopping_patience
        self._progress = progress
        self._course = course
        self._offer = offer
        self._evaluate = evaluate
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._random: torch.Tensor | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The weights are those of the checkpoint that training goes on from. Raises `NoLongerImproving`."""
        if state.global_step:
            self.catch_up(state)

    def catch_up(self, state: TrainerState) -> None:
        """What the step of the checkpoint still lacks, because its run was told to stop there: the evaluation.

        Raises `NoLongerImproving` where the run has ended early there, and `StopNow` in the middle of the evaluation.
        """
        self._saved_step = state.global_step
        if self._is_to_evaluate(state) and state.global_step not in evaluations.found(state.log_history):
            assert self._evaluate is not None  # noqa: S101  asked in the line above
            self._evaluate()
        if self._is_spent(state):
            raise NoLongerImproving

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Half a step is worth nothing to a job that is cancelled."""
        control.should_training_stop |= self._stop.wish == "stop"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Every so many steps, or when the last save is long ago."""
        last = state.global_step >= state.max_steps
        if self._save_steps == "auto":
            control.should_save |= time.monotonic() - self._saved_at > SAVE_INTERVAL
        else:
            control.should_save |= last or state.global_step % self._save_steps == 0
        if self._eval_steps != "auto":
            control.should_evaluate |= self._is_to_evaluate(state)
        self._follow_wish(state, control)
        self._before_evaluation(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The other half of `auto`. Called as well where a stop has cut the epoch short."""
        control.should_save |= self._save_steps == "auto" and self._saved_step != state.global_step
        if self._eval_steps == "auto":
            control.should_evaluate |= self._is_to_evaluate(state)
        self._follow_wish(state, control)
        self._before_evaluation(control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The middle of an evaluation. Raises `StopNow` for a cancelled job; one that goes on elsewhere finishes it,
        because transformers saves what the step has learnt only afterwards."""
        if self._stop.wish == "stop":
            raise StopNow

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save the step if it is the best so far; end where none has been for so long.

        transformers saves after it has evaluated, so the checkpoint's history has this evaluation. The random numbers
        that its loader has drawn are put back: a run that makes up for it later goes on with the same ones.
        """
        if self._random is not None:
            torch.set_rng_state(self._random)
        best = evaluations.best_step(state.log_history)
        spent = self._is_spent(state)
        if spent and best is not None:
            found = evaluations.found(state.log_history)[best]
            after = f"Training ends early after step {state.global_step}"
            waited = f"{evaluations.since_best(state.log_history)} evaluations in a row without {found.measure}"
            self._report(messages.Notice("info", f"{after}: {waited}; step {best} has {found.best}, {found}"))
        control.should_training_stop |= spent
        control.should_save |= (spent or best == state.global_step) and self._saved_step != state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """transformers has written the folder; from here on it counts, and older ones may go."""
        folder = Path(args.output_dir)
        saved = Checkpoint(
            path=checkpoints.path_of(folder, state.global_step),
            step=state.global_step,
            total_steps=state.max_steps,
            tokens=self._progress.tokens,
            seconds=self._progress.seconds,
            best=evaluations.best_step(state.log_history),
            course=self._course,
        )
        (saved.path / UNREAD).unlink(missing_ok=True)
        initial.keep_with(saved.path, folder)
        checkpoints.commit(saved)
        self._offer(saved)
        checkpoints.prune(folder, best=saved.best)
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        self._report(messages.Checkpoint(state.global_step, saved.path.name))

    def _is_to_evaluate(self, state: TrainerState) -> bool:
        last = state.global_step >= state.max_steps
        if self._eval_steps == "auto":
            at = float(state.epoch or 0.0).is_integer()  # the end of one
        else:
            at = state.global_step % self._eval_steps == 0
        return self._evaluate is not None and (last or at)

    def _is_spent(self, state: TrainerState) -> bool:
        return self._patience is not None and evaluations.since_best(state.log_history) >= self._patience

    def _follow_wish(self, state: TrainerState, control: TrainerControl) -> None:
        """Stop: with a checkpoint of this step for a job that goes on elsewhere, without for a cancelled one."""
        if self._stop.wish is not None:
            control.should_training_stop = True
            control.should_save = self._stop.wish == "save" and self._saved_step != state.global_step
            control.should_evaluate = False

    def _before_evaluation(self, control: TrainerControl) -> None:
        self._random = torch.get_rng_state() if control.should_evaluate else None


LOGGED = {
    "mean_token_accuracy": ("mean_token_accuracy",),
    "reward_accuracy": ("rewards/accuracies", "accuracy"),
    "reward_margin": ("rewards/margins", "margin"),
    "mean_reward": ("reward",),
    "reward_std": ("reward_std",),
    "equal_rewards": ("frac_reward_zero_std",),
    "kl": ("kl",),
    "entropy": ("entropy",),
    "completion_length": ("completions/mean_length",),
    "completions_cut": ("completions/clipped_ratio",),
    "ungraded": ("ungraded",),
}
"""Our names, and what TRL's trainers call it: those on preferences, that of reward models, and GRPO's."""


def _beside_the_loss(logs: dict[str, Any], prefix: str) -> dict[str, float]:
    """What this method measures of it."""
    return {
        name: float(logs[prefix + theirs])
        for name, candidates in LOGGED.items()
        for theirs in candidates
        # An evaluation answers each prompt once, so every group has one reward.
        if logs.get(prefix + theirs) is not None and not (prefix and name == "equal_rewards")
    }


def _require_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise LossNotFinite(f"The {what} is {value}.")
