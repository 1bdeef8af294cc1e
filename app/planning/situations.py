"""What a recommendation is asked for with, the ways of training it chooses from, and what each of them would take."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from app.files.spec import Method
from app.jobs.spec import JobSpec
from app.planning import recipes, step
from app.planning.bases import Base
from app.planning.fitting import Change, changes, peak
from app.planning.guardrails import RSLORA_FROM
from app.planning.hardware import COMMON, ON_GPU, Hardware
from app.planning.recipes import Facts
from app.planning.setups import Device, setup_of

Goal = Literal["style", "task", "new_knowledge", "preference", "reasoning"]
Priority = Literal["balanced", "quality", "cost", "memory", "forgetting"]
Rows = Literal["answers", "text", "preferences", "judged", "prompts"]

RANKS = (16, 32, 64, 128, 256)
"""To choose from. Beyond them an adapter is hardly smaller than what it saves."""
ASSUMED_LENGTH = 2048
"""Tokens of the longest row, where nobody knows: at most this, so the memory of usual rows is not underestimated."""


ANY_GRADER = {
    "type": "string_check",
    "name": "any",
    "input": "{{sample.output_text}}",
    "reference": "",
    "operation": "eq",
}
"""In place of one that is not known yet: what it is takes no memory."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known before a choice."""

    goal: Goal
    priority: Priority = "balanced"
    rows: int | None = None
    tokens: int | None = None
    """That are learnt in one pass; more than these where they are an estimate."""
    longest_row: int | None = None
    """Tokens."""
    rows_are: Rows | None = None
    has_grader: bool = False
    base: Base | None = None
    hardware: tuple[Hardware, ...] = ()
    """None: nothing is known, and all that follows from memory is left out."""
    method: Method | None = None
    """Where it has been chosen already."""

    @property
    def length(self) -> int:
        """Tokens of the longest row, known or assumed."""
        mean = self.tokens // self.rows if self.tokens and self.rows else 0
        longest = self.longest_row or max(ASSUMED_LENGTH, mean)
        return min(longest, self.base.context_length) if self.base else longest


class Option(NamedTuple):
    """Which weights move."""

    tuning: Literal["full", "lora", "qlora"]
    r: int | None = None
    """None where all of them do."""

    @property
    def block(self) -> dict[str, Any]:
        """As a spec has it; what is left out is the recipe's."""
        if self.r is None:
            return {"type": self.tuning}
        return {"type": self.tuning, "r": self.r} | ({"use_rslora": True} if self.use_rslora else {})

    @property
    def use_rslora(self) -> bool:
        """Whether alpha / √r scales the adapter instead of alpha / r, as the guardrail `rslora_advised` has it."""
        return self.r is not None and self.r >= RSLORA_FROM

    def __str__(self) -> str:
        return self.tuning if self.r is None else f"{self.tuning} of rank {self.r}"


class Fit(NamedTuple):
    """What a step would take at its peak, on a device. Bytes."""

    hardware: Hardware
    train_peak: float

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.train_peak <= self.hardware.room


def fits(s: Situation, method: Method, option: Option) -> tuple[Fit, ...]:
    """By device, or by common GPUs where none is known; empty for a base whose shape is not known."""
    if s.base is None or s.base.shape is None:
        return ()
    spec = _spec(method, option)
    peaks = {
        device: peak(spec, _facts(s, s.base, device), s.base.shape, device).total
        for device in {hardware.device for hardware in s.hardware or COMMON}
    }
    return tuple(Fit(hardware, peaks[hardware.device]) for hardware in s.hardware or COMMON)


def is_possible(s: Situation, method: Method, option: Option) -> bool:
    """Whether it fits a device that there is; what is not known is not in the way."""
    found = fits(s, method, option)
    return not (s.hardware and found) or any(fit.fits for fit in found)


def changes_for(s: Situation, method: Method, option: Option, hardware: Hardware) -> list[Change] | None:
    """The least harmful changes after which it fits a device; None where nothing helps, or no shape is known."""
    if s.base is None or s.base.shape is None:
        return None
    facts = _facts(s, s.base, hardware.device)
    return changes(_spec(method, option), facts, s.base.shape, hardware.device, hardware.room)


def trained_params(s: Situation, option: Option) -> int | None:
    """How many parameters move."""
    if s.base is None or s.base.shape is None:
        return None
    resolved = recipes.resolve(_spec("supervised", option), _facts(s, s.base, ON_GPU))
    return step.trained_params(s.base.shape, setup_of(resolved, s.base.shape, ON_GPU))


def _spec(method: Method, option: Option) -> JobSpec:
    block: dict[str, Any] = {"type": method}
    if method == "reinforcement":
        block["reinforcement"] = {"grader": ANY_GRADER}
    return JobSpec.model_validate({"model": "-", "training_file": "-", "method": block, "tuning": option.block})


def _facts(s: Situation, base: Base, device: Device) -> Facts:
    return Facts(
        longest_row=s.length,
        hidden_size=base.hidden_size,
        model_type=base.model_type,
        context_length=base.context_length,
        device=device.kind,
    )
