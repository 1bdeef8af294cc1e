"""Before a job's first step: its longest batch, a step of the optimizer, an evaluation's batch and a save.

So that what does not fit is known at once, and not after an hour. Afterwards everything is as if it had not been:
weights to the last bit, random numbers, the optimizer, and what the trainer has counted.
"""

import copy
import gc
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.optim import Optimizer
from transformers import Trainer

from app.jobs.spec import JobSpec
from worker import messages
from worker.training import configs, device
from worker.training.child import Report
from worker.training.device import Device
from worker.training.failures import is_out_of_memory

COUNTED = ("_metrics", "_stored_metrics", "_total_train_tokens", "_seen", "current_gradient_accumulation_steps")
"""What trainers count of the steps they make: TRL's, `trl.experimental`'s, ours, transformers'."""
FOLDER = "probe-"


def probe(
    trainer: Trainer, spec: JobSpec, machine: Device, report: Report, smaller: Callable[[JobSpec], JobSpec]
) -> JobSpec:
    """Find out whether a job fits its device, and report what it took. Returns the spec with the numbers in use.

    `smaller`: what to go on with where it does not fit; raises what the job shall fail with where there is nothing.
    """
    if "input_ids" not in trainer.train_dataset.column_names:
        return spec  # rows that come to be in training have no longest yet
    began = time.perf_counter()
    while not fits(trainer):
        spec = smaller(spec)
        regroup(trainer, spec)
        device.forget_peak(machine)
    seconds = time.perf_counter() - began
    report(messages.Probed(memory_bytes=device.peak_memory_bytes(machine), seconds=seconds))
    return spec


def fits(trainer: Trainer) -> bool:
    """Whether there is memory for all of it. Raises whatever else goes wrong, as training would."""
    try:
        with _undone(trainer):
            _run(trainer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    gc.collect()  # tensors in the frames of the error, which is forgotten only here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def regroup(trainer: Trainer, spec: JobSpec) -> None:
    """Give a trainer that has not begun other numbers of rows at a time: those of a spec with as many a step."""
    for name, value in configs.batches(spec).items():
        setattr(trainer.args, name, value)
    trainer._train_batch_size = trainer.args.train_batch_size


def longest(rows: Dataset, count: int) -> list[dict[str, Any]]:
    """The rows, or packs, with the longest sequences: no batch of so many is computed with more tokens."""
    columns = [rows.data.column(name) for name in rows.column_names if name.endswith("input_ids")]
    lengths = np.max([pc.list_value_length(column).to_numpy() for column in columns], axis=0)
    return [rows[int(at)] for at in np.argsort(-lengths, kind="stable")[:count]]


def _run(trainer: Trainer) -> None:
    """A step as the second of a run has it: what the optimizer remembers is there, and so are gradients to add to.

    The optimizer goes first, on gradients that are zeros and at a rate of 0: nothing that a batch could have in it can
    reach a weight, such as a NaN, and adding nothing leaves even the sign of a zero.
    """
    model = trainer.accelerator.prepare_model(trainer.model)  # once: training takes it as it finds it
    optimizer = trainer.create_optimizer()
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.grad = torch.zeros_like(one)
    if not trainer.args.optim.startswith("paged"):  # bitsandbytes never gives its pages in host memory back
        for group in optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        optimizer.step()
    if trainer.args.gradient_accumulation_steps == 1:
        _drop_gradients(trainer)

    batch = trainer.data_collator(longest(trainer.train_dataset, trainer.args.train_batch_size))
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.training_step(model, batch, trainer._get_num_items_in_batch([batch], trainer.args.device))
    if trainer.args.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
    _drop_gradients(trainer)

    if trainer.eval_dataset:  # a file without rows is one too
        model.eval()
        batch = trainer.data_collator(longest(trainer.eval_dataset, trainer.args.eval_batch_size))
        trainer.prediction_step(model, batch, prediction_loss_only=True)
    _save(trainer, optimizer)


def _save(trainer: Trainer, optimizer: Optimizer) -> None:
    """What of a checkpoint takes room, and away again."""
    output = Path(trainer.args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(f"{FOLDER}*"):  # by an attempt that was killed here
        shutil.rmtree(left)
    with TemporaryDirectory(prefix=FOLDER, dir=output) as folder:
        trainer.save_model(folder, _internal_call=True)
        torch.save(optimizer.state_dict(), Path(folder) / "optimizer.pt")


@contextmanager
def _undone(trainer: Trainer) -> Iterator[None]:
    """Take back what is done in between, however it ends."""
    optimizer = trainer.create_optimizer()
    groups = [(group, group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    counted = {name: copy.deepcopy(value) for name, value in vars(trainer).items() if name in COUNTED}
    buffers = [(buffer, buffer.clone()) for buffer in trainer.model.buffers()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            _drop_gradients(trainer)
            optimizer.state.clear()
            for group, rate, decay in groups:
                group["lr"], group["weight_decay"] = rate, decay
            for buffer, before in buffers:
                buffer.copy_(before)
            for name in COUNTED:
                vars(trainer).pop(name, None)
            vars(trainer).update(counted)
            random.setstate(python)
            np.random.set_state(numpy)


def _drop_gradients(trainer: Trainer) -> None:
    for one in trainer.model.parameters():
        one.grad = None
