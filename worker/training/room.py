"""Whether the disk has room for what is to be saved next."""

# ruff: noqa: ARG002  transformers calls these with its own arguments, needed or not

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from app import disks
from app.planning.artifacts import ALL_BUT_WEIGHTS
from worker import checkpoints


class Room(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Looks before each save; to be called after those who decide that there is one. Raises `NoSpace`."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        """`folder`: of the checkpoints."""
        self._trainer = trainer
        self._folder = folder

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """transformers saves right after."""
        self._look(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Likewise."""
        self._look(control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Likewise: the step may be the best so far."""
        self._look(control)

    def _look(self, control: TrainerControl) -> None:
        if control.should_save:
            size = max(checkpoint_bytes(self._trainer), checkpoints.size_of_newest(self._folder))
            disks.require("scratch", self._folder, size)


def checkpoint_bytes(trainer: Trainer) -> int:
    """Of the checkpoint that would be saved now: weights that are saved, what the optimizer knows, and the rest."""
    remembered = (value for state in trainer.optimizer.state.values() for value in state.values())
    states = sum(_bytes(value) for value in remembered if isinstance(value, Tensor))
    return sum(map(_bytes, _saved(trainer))) + states + ALL_BUT_WEIGHTS


def result_bytes(trainer: Trainer) -> int:
    """Of what is published, at most: a full model is rounded to its base's own dtype."""
    return sum(map(_bytes, _saved(trainer))) + ALL_BUT_WEIGHTS


def _saved(trainer: Trainer) -> list[Tensor]:
    """Of an adapter what is trained; of a full model all."""
    adapter = isinstance(trainer.model, PeftModel)
    return [one for one in trainer.model.parameters() if one.requires_grad or not adapter]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
