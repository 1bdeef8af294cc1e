"""The second step of our trainer, counted tensor by tensor."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from app.jobs.spec import JobSpec
from worker.training import data, device, model, trainers
from worker.training.device import Device
from worker.training.labels import IGNORED
from worker.training.live import LiveStorages


class SecondStep(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Counts what is alive in the second step, when the optimizer has its states: in each of its three moments."""

    def __init__(self, reference: torch.nn.Module | None) -> None:
        self.live = LiveStorages()
        self._reference = reference

    def on_step_begin(self, _: Any, state: Any, __: Any, **given: Any) -> None:
        if state.global_step != 1:
            return
        backbone = getattr(given["model"], "get_base_model", lambda: given["model"])().base_model
        backbone.register_forward_pre_hook(lambda *_: self._turn_to("forward and loss"))
        backbone.register_forward_hook(self._await_the_backward)
        self._turn_to("forward and loss")
        self.live.__enter__()  # type: ignore[no-untyped-call]  # torch types no such method
        for tensor in (*held_by(given["model"]), *states_of(given["optimizer"])):
            self.live.count(tensor)
        for tensor in held_by(self._reference) if self._reference is not None else ():
            self.live.count(tensor)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._turn_to("optimizer")
        torch.empty(1)  # a height is noted where something is made, and a fused optimizer makes nothing

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == 2:
            self.live.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # nor this

    def _await_the_backward(self, _: object, __: object, made: Any) -> None:
        if made.last_hidden_state.requires_grad:
            made.last_hidden_state.register_hook(lambda _: self._turn_to("backward"))

    def _turn_to(self, moment: str) -> None:
        self.live.moment = moment


def count(work_dir: Path, base: Path, parent: Path | None = None) -> tuple[LiveStorages, JobSpec, Device]:
    """What a job's second step held, its spec, and the device it was taken on. `parent`: of an adapter that goes on."""
    spec = JobSpec.model_validate_json((work_dir / "job.json").read_text())
    machine = device.find()
    loaded, tokenizer = model.load(base, spec, machine)
    trainer = trainers.build(work_dir, spec, machine, loaded, tokenizer, parent)
    counted = SecondStep(getattr(trainer, "ref_model", None))
    trainer.add_callback(counted)
    trainer.train()
    return counted.live, spec, machine


def held_by(model: torch.nn.Module) -> list[torch.Tensor]:
    """The model's tensors, and the constants of its 4-bit weights."""
    held = [*model.parameters(), *model.buffers()]
    states = [state for parameter in held if (state := getattr(parameter, "quant_state", None)) is not None]
    states += [state.state2 for state in states if state.state2 is not None]
    return held + [value for state in states for value in vars(state).values() if isinstance(value, torch.Tensor)]


def states_of(optimizer: Any) -> list[torch.Tensor]:
    """The optimizer's tensors."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


def labelled(prepared: Path) -> float:
    """Share of the tokens of a batch that have a label, rows filled up to the longest."""
    rows = data.rows_of(prepared)
    names = [name for name in ("labels", "rejected_labels") if name in rows.column_names]
    sequences = [labels for name in names for labels in rows[name]]
    found = sum(label != IGNORED for labels in sequences for label in labels)
    share: float = found / (len(sequences) * max(map(len, sequences)))
    return share
