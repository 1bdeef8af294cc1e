"""What a fake step holds at each of its moments: watched while it is taken, and grown to a model of more blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from app.planning.memory import CONTEXT_BYTES, SLACK, MemoryEstimate, Moment
from worker.training import like_cuda
from worker.training.device import Device
from worker.training.fake_model import base_of, blocks_of, constants_of
from worker.training.live import LiveStorages

SMALLEST_PAGED = 100_000
"""Numbers of a state that bitsandbytes pages; smaller ones stay on the device."""
OF_REFERENCE = ".ref."
"""In the names of what belongs to TRL's copy of an adapter."""
DEPTHS = (3, 4)
"""Blocks of two models that stand for a deeper one of blocks that are alike: a first, a last, and some in between."""
Moments = dict[str, dict[str, int]]
"""Bytes by part at the peak of each moment of a step. A block's have its number: `forward 0`, `backward 0`."""
MOMENTS: dict[str, Moment] = {
    "start": "forward",
    "forward": "forward",
    "end": "forward",
    "loss": "loss",
    "loss again": "loss",
    "turn": "backward",
    "backward": "backward",
    "optimizer": "optimizer",
}
"""What each is called outside. `start` is before the blocks, `turn` between the loss's backward and the blocks'."""
GENERATING = "generating "
"""Begins the names of all moments in which answers are generated."""


@contextmanager
def watched(
    trained: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    machine: Device,
    reference: torch.nn.Module | None = None,
) -> Iterator[LiveStorages]:
    """Count what lies there, and what is made while it is entered, by what makes it."""
    live = LiveStorages(like_cuda.inside if machine.kind == "cuda" else None)
    go_on(live, "start", "ends")
    with live:
        _count_held(trained, live)
        _count_states(optimizer, live, machine)
        hooks = list(_follow(trained, live))
        if reference is not None:
            for tensor in (*reference.parameters(), *reference.buffers()):
                live.count(tensor, "reference")
            hooks += _follow(reference, live)
        yield live
    for hook in hooks:
        hook.remove()


def _count_held(trained: torch.nn.Module, live: LiveStorages) -> None:
    whole = trained is base_of(trained)
    for name, parameter in trained.named_parameters():
        kept = "reference" if OF_REFERENCE in name else "weights"
        live.count(parameter, kept if whole or not parameter.requires_grad else "adapter")
        for constant in constants_of(parameter):
            live.count(constant, "quantization")
    for buffer in trained.buffers():
        live.count(buffer, "weights")


def _count_states(optimizer: torch.optim.Optimizer, live: LiveStorages, machine: Device) -> None:
    paged = getattr(optimizer, "is_paged", False) and machine.kind == "cuda"
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value) and not (paged and value.numel() >= SMALLEST_PAGED):
                live.count(value, "optimizer")


def go_on(live: LiveStorages, moment: str, part: str) -> None:
    """From now on it is another moment, and what is made another part."""
    live.moment, live.part = moment, part


def _follow(trained: torch.nn.Module, live: LiveStorages) -> Iterator[Any]:
    """Have it told what is at work: a block, what lies around the blocks, the loss; and forward or backward."""
    base = base_of(trained)

    def after_backbone(_: object, __: object, made: Any) -> None:
        go_on(live, "loss", "loss")
        if made.last_hidden_state.requires_grad:
            made.last_hidden_state.register_hook(lambda _: go_on(live, "turn", "temporary"))

    yield base.base_model.register_forward_pre_hook(lambda *_: go_on(live, "start", "ends"))
    yield base.base_model.register_forward_hook(after_backbone)
    for number, block in enumerate(blocks_of(base)):
        enter, leave = _around(number, live)
        yield block.register_forward_pre_hook(enter)
        yield block.register_forward_hook(leave, always_call=True)  # checkpointing breaks off where it has enough
    for parameter in trained.parameters():
        if parameter.requires_grad:
            hooked: Any = parameter  # torch types no such hook
            yield hooked.register_post_accumulate_grad_hook(lambda its: live.count(its.grad, "gradients"))


def _around(number: int, live: LiveStorages) -> tuple[Callable[..., None], Callable[..., None]]:
    """For before and for after a block computes, be it for the first time or again."""
    backward = False

    def enter(*_: object) -> None:
        nonlocal backward
        backward = live.part == "temporary"
        go_on(live, live.moment if backward else f"forward {number}", f"block {number}")

    def leave(_: object, __: object, made: Any) -> None:
        if backward:
            go_on(live, live.moment, "temporary")
            return
        go_on(live, "end", "ends")
        output = made[0] if isinstance(made, tuple) else made
        if output.requires_grad:
            output.register_hook(lambda _: go_on(live, f"backward {number}", "temporary"))

    return enter, leave


def deepened(fewer: Moments, more: Moments, depth: int) -> Moments:
    """What a model of so many blocks takes, from two of `DEPTHS`: each block beyond adds what one more has added.

    From block to block a moment's sum goes straight up or down, so that the highest is the first or the last.
    """
    few, many = DEPTHS
    deepened = {}
    for moment, parts in more.items():
        kind, number = _split(moment)
        last = number == many - 1
        if number not in (None, 0) and not last:
            continue
        before = fewer[f"{kind} {few - 1}" if last else moment]
        grown = {
            part: size + (size - before.get(part, 0)) * (depth - many)
            for part, size in parts.items()
            if not part.startswith("block ")
        }
        blocks = [parts.get(f"block {place}", 0) for place in range(many)]
        blocks[1:1] = blocks[1:2] * (depth - many)
        deepened[f"{kind} {depth - 1}" if last else moment] = grown | {
            f"block {place}": size for place, size in enumerate(blocks)
        }
    return deepened


def _split(moment: str) -> tuple[str, int | None]:
    """The kind, and the number of a block's."""
    kind, _, number = moment.rpartition(" ")
    return (kind, int(number)) if number.isdigit() else (moment, None)


def _outside(moment: str) -> Moment:
    return "generation" if moment.startswith(GENERATING) else MOMENTS[_split(moment)[0]]


def estimate(moments: Moments, machine: Device) -> tuple[MemoryEstimate, tuple[int, ...]]:
    """The highest of the moments; and its activations, block by block."""
    sums = {moment: sum(parts.values()) for moment, parts in moments.items()}
    highest = max(sums, key=lambda moment: sums[moment])
    parts = moments[highest]
    by_number = {int(part.split()[1]): size for part, size in parts.items() if part.startswith("block ")}
    by_layer = tuple(by_number[number] for number in sorted(by_number))
    found = MemoryEstimate(
        moment=_outside(highest),
        weights=parts.get("weights", 0),
        quantization=parts.get("quantization", 0),
        adapter=parts.get("adapter", 0),
        gradients=parts.get("gradients", 0),
        optimizer=parts.get("optimizer", 0),
        activations=parts.get("ends", 0) + sum(by_layer),
        loss=parts.get("loss", 0),
        temporary=parts.get("temporary", 0),
        reference=parts.get("reference", 0),
        cache=parts.get("cache", 0),
        by_moment=_by_moment(sums),
    )
    if machine.kind == "cpu":
        return found, by_layer
    comes_and_goes = found.activations + found.loss + found.temporary + found.gradients + found.cache
    return replace(found, slack=SLACK * comes_and_goes, context=float(CONTEXT_BYTES)), by_layer


def _by_moment(sums: dict[str, int]) -> dict[str, float]:
    highest: dict[str, float] = {}
    for said, height in sums.items():
        moment = _outside(said)
        highest[moment] = max(highest.get(moment, 0), height)
    return highest
