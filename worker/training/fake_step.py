"""A training step without weights and without a GPU: what it holds at its peak, counted tensor by tensor.

The model, the adapter, the loss and the optimizer are those that the trainer uses, in the order in which it uses
them, on fake tensors, which have shapes and storages but no numbers (`torch._subclasses.fake_tensor`). They are fake
tensors of a CPU, because a build of torch without CUDA cannot differentiate others; what a GPU does otherwise is
in `like_cuda`.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.optim import GlobalOptimManager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, PreTrainedConfig, Trainer

from app.jobs.spec import JobSpec, resolved
from app.planning import recipes, setups
from app.planning.dry_runs import DryRun
from worker.training import fake_losses, fake_model, like_cuda, moments
from worker.training.device import Device
from worker.training.fake_generation import generate
from worker.training.fake_losses import Objective
from worker.training.fake_model import OURS, Habits
from worker.training.live import LiveStorages
from worker.training.logits import spare_logits
from worker.training.moments import Moments, go_on, watched

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of a batch beside its size."""

    padded: bool | None = None
    """Whether they differ in length, so that SDPA is handed a mask; by default where there is more than one."""
    labelled: float = 1.0
    """Share of the tokens that are trained on."""


def dry_run(
    base: PreTrainedConfig | Path,
    spec: JobSpec,
    device: setups.Device,
    *,
    rows: Rows | None = None,
    habits: Habits = OURS,
    goes_on: bool = False,
) -> DryRun:
    """Take the second step of a resolved spec, when the optimizer has its states, and evaluate a batch.

    `base`: a config, or a folder with a `config.json`. `rows`: by default every token of them is trained on, of those
    that the model wrote itself every one that it wrote. `goes_on`: see `Facts`. Raises `TypeError` for a spec that is
    not resolved, what the trainer raises for a spec that it cannot train, and what transformers raises for a config
    that it cannot read.
    """
    config = AutoConfig.from_pretrained(base, trust_remote_code=False) if isinstance(base, Path) else base
    machine = Device(device.kind, device.kind, device.precision, "sdpa")
    known = rows or Rows(labelled=setups.written(spec))
    depth = config.get_text_config().num_hidden_layers
    take = partial(_take, spec=spec, machine=machine, habits=habits, known=known, goes_on=goes_on)
    with FakeTensorMode(allow_non_fake_inputs=True), _like(machine, config):
        if depth > max(moments.DEPTHS) and fake_model.blocks_are_alike(config):
            fewer, more = (take(fake_model.of_depth(config, few)) for few in moments.DEPTHS)
            train, evaluation = (moments.deepened(few, many, depth) for few, many in zip(fewer, more, strict=True))
        else:
            train, evaluation = take(config)
    found, by_layer = moments.estimate(train, machine)
    return DryRun(train=found, by_layer=by_layer, evaluation=round(moments.estimate(evaluation, machine)[0].total))


@contextmanager
def _like(machine: Device, config: PreTrainedConfig) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(fake_model.unpacked_for_dora())
        if machine.kind == "cuda":
            text = config.get_text_config()
            heads = getattr(text, "num_attention_heads", None)
            grouped = getattr(text, "num_key_value_heads", None) not in (None, heads)
            stack.enter_context(like_cuda.like_cuda(machine.compute_dtype, grouped_queries=grouped))
        spare_logits(machine)
        yield


def _take(
    config: PreTrainedConfig, spec: JobSpec, machine: Device, habits: Habits, known: Rows, *, goes_on: bool
) -> tuple[Moments, Moments]:
    """Of a step, and of an evaluation's batch."""
    objective = fake_losses.of(config, spec, machine, habits, goes_on=goes_on)
    trained, reference = objective.trained.train(), objective.reference
    with _Answers():
        optimizer = _optimizer(objective, machine)
    answers = _Answers(known.labelled)
    packed = bool(spec.hyperparameters.packing)
    at_a_time = resolved(spec.hyperparameters.per_device_train_batch_size)
    with watched(trained, optimizer, machine, reference) as live, answers:
        _step(objective, optimizer, spec, live, at_a_time, known, packed=packed)
    trained.eval()
    at_a_time = recipes.rows_at_a_time(spec)
    with watched(trained, optimizer, machine, reference) as evaluating, answers, torch.no_grad():
        _loss(objective, spec, at_a_time, known)
    train, evaluation = live.highest, evaluating.highest
    for of, sequences in ((train, setups.generated_at_once(spec)), (evaluation, at_a_time)):
        if setups.generated_at_once(spec):
            with watched(trained, optimizer, machine, reference) as generating, answers, torch.no_grad():
                generate(trained, spec, sequences, generating, padded=_are_padded(known, sequences))
            of |= {moments.GENERATING + moment: parts for moment, parts in generating.highest.items()}
    return train, evaluation


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no such hook
    """Answers what can only be known from numbers: no question is answered yes, and so many tokens have a label."""

    def __init__(self, labelled: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self._labelled = labelled

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and the guard against it takes longer than the answers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked twice for each operation, and known at once
            return args[0].fake_device
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return False if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype is torch.bool:
            mask = args[1][0]
            return args[0].new_empty((round(self._labelled * mask.numel()), *args[0].shape[mask.dim() :]))
        if func is aten.nonzero.default:  # of what is wanted, and of what is not: all of it
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
        if func is aten._grouped_mm.default:  # of which torch 2.13 knows the shape in bf16 alone
            return _grouped_product(*args[:3])
        return func(*args, **(kwargs or {}))


def _grouped_product(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Of rows with their group's matrix, or, of two of two dimensions, a matrix for each group."""
    groups = (len(ends),) if left.dim() == right.dim() == 2 else left.shape[:-2]
    return left.new_empty((*groups, left.shape[-2], right.shape[-1]))


def _optimizer(objective: Objective, machine: Device) -> torch.optim.Optimizer:
    """The trainer's, with its states: it has stepped once."""
    trained = objective.trained
    kind, options = Trainer.get_optimizer_cls_and_kwargs(objective.arguments, trained)
    if kind is torch.optim.AdamW and machine.kind == "cuda" and not options.get("fused"):
        options["foreach"] = True  # torch's default there
    moving = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = kind(moving, **options)
    embeddings = [part.weight for part in trained.modules() if isinstance(part, torch.nn.Embedding)]
    eight_bit = options.get("optim_bits") == 8
    manager = GlobalOptimManager.get_instance()
    manager.index2config.clear()  # by place: an earlier optimizer's would be taken for this one's
    exceptions = manager.pid2config
    for weight in embeddings if eight_bit else ():  # as transformers' trainer has it
        exceptions[id(weight)] = {"optim_bits": 32}
    for parameter in moving:
        parameter.grad = torch.empty_like(parameter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # which it is not
        optimizer.step()
    optimizer.zero_grad()
    for weight in embeddings if eight_bit else ():
        del exceptions[id(weight)]
    return optimizer


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    spec: JobSpec,
    live: LiveStorages,
    rows: int,
    known: Rows,
    *,
    packed: bool,
) -> None:
    """As transformers' trainer steps. Of several micro-batches the last is taken, to which there are gradients."""
    trained = objective.trained
    if resolved(spec.hyperparameters.gradient_accumulation_steps) > 1:
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                live.count(parameter.grad, "gradients")
    loss: Any  # whose backward torch does not type
    loss, held = _loss(objective, spec, rows, known, packed=packed)
    go_on(live, "loss again", "loss")
    loss.backward()
    del held
    del loss  # whose graph holds the embeddings, and their gradient, where checkpointing asks for one
    go_on(live, "optimizer", "temporary")
    torch.nn.utils.clip_grad_norm_(trained.parameters(), float(spec.hyperparameters.max_grad_norm))
    optimizer.step()
    optimizer.zero_grad()


def _loss(objective: Objective, spec: JobSpec, rows: int, known: Rows, *, packed: bool = False) -> fake_losses.Loss:
    length = resolved(spec.hyperparameters.max_length)
    sequences = 2 * rows if spec.method.type in setups.PAIRS else rows
    padded = _are_padded(known, sequences)
    batch = fake_losses.batch(spec, rows, length, packed=packed, padded=padded)
    if padded and not packed:
        return objective.loss(batch)
    with fake_losses.rows_alike(objective, packed=packed):
        return objective.loss(batch)


def _are_padded(known: Rows, sequences: int) -> bool:
    return sequences > 1 if known.padded is None else known.padded
