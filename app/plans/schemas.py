"""How a plan looks in a response."""

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app.planning.fitting import Change
from app.planning.hardware import GIB
from app.planning.memory import MemoryEstimate
from app.planning.plan import Fit
from app.plans.service import Planned


class MemoryRead(BaseModel):
    """Device memory, GiB."""

    train_peak_gib: float
    eval_peak_gib: float
    breakdown_gib: dict[str, float] = Field(description="What lies there at the peak of training; they sum up to it.")
    at: str = Field(description="The moment of a step that is the peak.")
    basis: Literal["formula"] = "formula"

    @classmethod
    def of(cls, found: MemoryEstimate, chosen: Fit) -> Self:
        """In GiB."""
        parts = {
            "weights": found.weights,
            "reference_model": found.reference,
            "quantization_constants": found.quantization,
            "adapter": found.adapter,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            "logits_and_loss": found.loss,
            "temporary": found.temporary,
            "fragmentation": found.slack,
            "context": found.context,
            "correction": chosen.train_peak - found.total,
        }
        return cls(
            train_peak_gib=_gib(chosen.train_peak),
            eval_peak_gib=_gib(chosen.eval_peak),
            breakdown_gib={name: _gib(size) for name, size in parts.items()},
            at=found.moment,
        )


class DeviceRead(BaseModel):
    """A place to train, and whether there is room."""

    name: str = Field(description="A worker class of this service, or a size of GPU.")
    here: bool = Field(description="Whether this service has heard of such a worker within a day.")
    gib: float
    fits: bool
    peak_gib: float
    headroom_gib: float = Field(description="Below 0: as much is missing.")

    @classmethod
    def of(cls, fit: Fit) -> Self:
        """In GiB."""
        return cls(
            name=fit.place.name,
            here=fit.place.is_here,
            gib=_gib(fit.place.room),
            fits=fit.fits,
            peak_gib=_gib(fit.peak),
            headroom_gib=_gib(fit.place.room - fit.peak),
        )


class DurationRead(BaseModel):
    """Seconds from the start of the training to its result."""

    seconds: float
    low: float
    high: float
    basis: str


class ChangeRead(BaseModel):
    """A field to change, what it costs, and the peak with it and all changes before it."""

    param: str
    value: Any
    cost: str
    train_peak_gib: float

    @classmethod
    def of(cls, change: Change) -> Self:
        """In GiB."""
        return cls(param=change.param, value=change.value, cost=change.cost, train_peak_gib=_gib(change.train_peak))


class DataRead(BaseModel):
    """The rows that were planned for."""

    rows: int
    tokens: int
    longest_row: int
    basis: Literal["assumed", "estimated", "counted"]


class PlanRead(BaseModel):
    """What a job would take, before there is one."""

    object: Literal["fine_tuning.plan"] = "fine_tuning.plan"
    device: str = Field(description="Where the job would go: the smallest place here with room, else the largest.")
    fits: bool
    trainable_params: int
    adapter_bytes: int | None = Field(description="Of adapter_model.safetensors; null of full fine-tuning.")
    steps: int
    memory: MemoryRead
    devices: list[DeviceRead]
    duration: DurationRead
    disk_bytes: int = Field(description="On the worker while it trains, and in the storage, together.")
    disk: dict[str, int]
    changes: list[ChangeRead] = Field(description="That make it fit its device, the least harmful first.")
    warnings: list[dict[str, Any]]
    data: DataRead
    resolved: dict[str, Any] = Field(description="The spec with every `auto` replaced by its number.")
    reasons: dict[str, dict[str, str]] = Field(description="Why those numbers: by field, a reason and its source.")

    @classmethod
    def of(cls, found: Planned) -> Self:
        """From what was planned."""
        plan, data = found.plan, found.data
        return cls(
            device=plan.chosen.place.name,
            fits=plan.chosen.fits,
            trainable_params=plan.trained_params,
            adapter_bytes=plan.adapter_bytes,
            steps=plan.steps,
            memory=MemoryRead.of(plan.memory, plan.chosen),
            devices=[DeviceRead.of(fit) for fit in plan.fits],
            duration=DurationRead(
                seconds=round(plan.duration.seconds, 1),
                low=round(plan.duration.low, 1),
                high=round(plan.duration.high, 1),
                basis=plan.duration.basis,
            ),
            disk_bytes=plan.worker_disk + plan.stored,
            disk={"worker": plan.worker_disk, "storage": plan.stored},
            changes=[ChangeRead.of(change) for change in plan.changes or []],
            warnings=[asdict(one) for one in found.warnings],
            data=DataRead(rows=data.rows, tokens=data.tokens, longest_row=data.longest_row, basis=data.basis),
            resolved=plan.resolved.model_dump(mode="json"),
            reasons={path: asdict(why) for path, why in found.reasons.items()},
        )


def _gib(size: float) -> float:
    return round(size / GIB, 4)
