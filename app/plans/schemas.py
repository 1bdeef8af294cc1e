"""How a plan looks in a response."""

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from app.planning.dry_runs import DryRun
from app.planning.fitting import Change
from app.planning.guardrails import Guardrail
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
    basis: Literal["formula", "dry_run"] = Field(
        "formula", description="A closed formula, or a step on tensors without numbers, counted one by one."
    )

    @classmethod
    def of(
        cls, found: MemoryEstimate, train_peak: float, eval_peak: float, basis: Literal["formula", "dry_run"]
    ) -> Self:
        """In GiB, from bytes; the peaks are corrected by what was measured there."""
        parts = {
            "weights": found.weights,
            "reference_model": found.reference,
            "quantization_constants": found.quantization,
            "adapter": found.adapter,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            "logits_and_loss": found.loss,
            "generation_cache": found.cache,
            "temporary": found.temporary,
            "fragmentation": found.slack,
            "context": found.context,
            "correction": train_peak - found.total,
        }
        return cls(
            train_peak_gib=_gib(train_peak),
            eval_peak_gib=_gib(eval_peak),
            breakdown_gib={name: _gib(size) for name, size in parts.items()},
            at=found.moment,
            basis=basis,
        )


class DryRunRead(BaseModel):
    """Where the dry run is, which the memory comes from once it has succeeded."""

    status: Literal["in_progress", "succeeded", "failed", "unavailable"] = Field(
        description="unavailable: none is made of such a job; `reason` says why."
    )
    reason: str | None = None


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

    def taking(self, peak: float) -> Self:
        """The same place with another peak, bytes."""
        taken = _gib(peak)
        room = round(self.gib - taken, 4)
        return self.model_copy(update={"peak_gib": taken, "headroom_gib": room, "fits": room >= 0})


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
    id: str | None = Field(None, description="For GET /v1/fine_tuning/plans/{id}; null of a job's own plan.")
    device: str = Field(description="Where the job would go: the smallest place here with room, else the largest.")
    fits: bool
    trainable_params: int
    adapter_bytes: int | None = Field(description="Of adapter_model.safetensors; null of full fine-tuning.")
    steps: int
    memory: MemoryRead = Field(description="By the dry run once there is one; until then by the formula.")
    formula: MemoryRead | None = Field(None, description="What the formula says, where the memory is a dry run's.")
    dry_run: DryRunRead
    devices: list[DeviceRead]
    duration: DurationRead
    disk_bytes: int = Field(description="On the worker while it trains, and in the storage, together.")
    disk: dict[str, int] = Field(
        description="Bytes: of the worker and the `storage`, at their most; of one `checkpoint`, and of the `result`."
    )
    changes: list[ChangeRead] = Field(description="That make it fit its device, the least harmful first.")
    warnings: list[dict[str, Any]]
    data: DataRead
    resolved: dict[str, Any] = Field(description="The spec with every `auto` replaced by its number.")
    reasons: dict[str, dict[str, str]] = Field(description="Why those numbers: by field, a reason and its source.")

    @classmethod
    def of(cls, found: Planned, dry_run: DryRunRead, *, plan_id: str | None = None) -> Self:
        """From what was planned, by the formula."""
        plan, data = found.plan, found.data
        return cls(
            id=plan_id,
            device=plan.chosen.place.name,
            fits=plan.chosen.fits,
            trainable_params=plan.trained_params,
            adapter_bytes=plan.adapter_bytes,
            steps=plan.steps,
            memory=MemoryRead.of(plan.memory, plan.chosen.train_peak, plan.chosen.eval_peak, "formula"),
            dry_run=dry_run,
            devices=[DeviceRead.of(fit) for fit in plan.fits],
            duration=DurationRead(
                seconds=round(plan.duration.seconds, 1),
                low=round(plan.duration.low, 1),
                high=round(plan.duration.high, 1),
                basis=plan.duration.basis,
            ),
            disk_bytes=plan.worker_disk + plan.stored,
            disk={
                "worker": plan.worker_disk,
                "storage": plan.stored,
                "checkpoint": plan.checkpoint,
                "result": plan.result,
            },
            changes=[ChangeRead.of(change) for change in plan.changes or []],
            warnings=[asdict(one) for one in found.warnings],
            data=DataRead(rows=data.rows, tokens=data.tokens, longest_row=data.longest_row, basis=data.basis),
            resolved=plan.resolved.model_dump(mode="json"),
            reasons={path: asdict(why) for path, why in found.reasons.items()},
        )

    def by(self, found: DryRun, correction: float) -> Self:
        """The same plan by its dry run, which was made for the device that the formula chose and for no other."""
        train_peak, eval_peak = found.train.total * correction, found.evaluation * correction
        memory = MemoryRead.of(found.train, train_peak, eval_peak, "dry_run")
        devices = [one.taking(max(train_peak, eval_peak)) if one.name == self.device else one for one in self.devices]
        fits = next(one.fits for one in devices if one.name == self.device)
        warnings = [*self.warnings, asdict(self._too_close(memory))] if self.fits and not fits else self.warnings
        return self.model_copy(
            update={
                "memory": memory,
                "formula": self.memory,
                "dry_run": DryRunRead(status="succeeded"),
                "devices": devices,
                "fits": fits,
                "changes": [] if fits else self.changes,
                "warnings": warnings,
            }
        )

    def _too_close(self, memory: MemoryRead) -> Guardrail:
        """What the formula has room for, and the dry run has not."""
        return Guardrail(
            "dry_run_does_not_fit",
            f"It fits '{self.device}' by the formula, and by the dry run takes"
            f" {max(memory.train_peak_gib, memory.eval_peak_gib):.1f} GiB, which is more than there is.",
            f"method.{self.resolved['method']['type']}.hyperparameters.per_device_train_batch_size",
            "Send a smaller one, with as much more gradient_accumulation_steps.",
        )


def _gib(size: float) -> float:
    return round(size / GIB, 4)
