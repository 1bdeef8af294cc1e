"""How long earlier jobs took, and how much memory, on which class of worker: what later plans go by."""

import statistics
from collections import defaultdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.models import Job
from app.jobs.prepared import Prepared
from app.jobs.spec import JobSpec, resolved
from app.planning.duration import Measured, work_of
from app.planning.hardware import GIB
from app.planning.plan import REFERENCED
from app.registry.models import RegisteredModel
from app.work.service import CPU

LATEST = 200
"""Jobs that are looked at, of all classes together."""
ENOUGH = 3
"""Jobs of a class before its plans are corrected by them."""
MOST_CORRECTED = 2.0
"""Up and down: what is further off is another thing than a device's habit."""


def measured(session: Session) -> dict[str, list[Measured]]:
    """The latest jobs that succeeded, by their worker class; of all projects, for time is nobody's secret."""
    rows = session.execute(
        select(Job.queue, Job.resolved, Job.prepared, RegisteredModel)
        .join(RegisteredModel, (RegisteredModel.job_id == Job.id) & RegisteredModel.step.is_(None))
        .order_by(RegisteredModel.seq.desc())
        .limit(LATEST)
    )
    found = defaultdict[str, list[Measured]](list)
    for queue, numbers, prepared, model in rows:
        seconds = _seconds(model.metrics)
        if numbers and prepared and seconds > 0:
            spec, rows_of = JobSpec.model_validate(numbers), Prepared.model_validate(prepared)
            found[queue].append(Measured(_work(spec, rows_of, model), seconds))
    return found


def corrections(session: Session) -> dict[str, float]:
    """What jobs took at their peak over what the formula said, by worker class: medians of three jobs or more."""
    rows = session.execute(
        select(Job.queue, Job.plan, RegisteredModel.metrics)
        .join(RegisteredModel, (RegisteredModel.job_id == Job.id) & RegisteredModel.step.is_(None))
        .where(Job.plan.is_not(None))
        .order_by(RegisteredModel.seq.desc())
        .limit(LATEST)
    )
    ratios = defaultdict[str, list[float]](list)
    for queue, plan, metrics in rows:
        parts = dict(plan["memory"]["breakdown_gib"])
        # What torch counts of a GPU has neither the context nor what the allocator cannot use.
        apart = ("correction",) if queue == CPU else ("correction", "fragmentation", "context")
        said = sum(size for name, size in parts.items() if name not in apart) * GIB
        if said > 0 and plan["device"] == queue:
            ratios[queue].append(metrics["peak_memory_bytes"] / said)
    return {
        queue: min(MOST_CORRECTED, max(1 / MOST_CORRECTED, statistics.median(found)))
        for queue, found in ratios.items()
        if len(found) >= ENOUGH
    }


def _seconds(metrics: dict[str, Any]) -> float:
    """From the start of loading to the end of saving; of a job of several attempts all their steps."""
    phases = metrics.get("phases") or {}
    training = max(float(metrics.get("train_seconds", 0)), float(phases.get("train", 0)))
    return float(phases.get("load", 0)) + training + float(phases.get("save", 0))


def _work(spec: JobSpec, prepared: Prepared, model: RegisteredModel) -> Any:
    given = spec.hyperparameters
    is_adapter = model.kind == "adapter"
    params = model.all_parameters - (model.trained_parameters if is_adapter else 0)
    padding = 1.0 if given.packing else 1 / (1 - min(prepared.train.packing_saves, 0.9))
    return work_of(
        params=params,
        trained=model.trained_parameters,
        tokens=model.metrics["tokens"] * padding,
        micro_steps=model.metrics["steps"] * resolved(given.gradient_accumulation_steps),
        checkpointing=bool(given.gradient_checkpointing),
        passes_of_reference=1 if spec.method.type in REFERENCED else 0,
        moved_bytes=2.0 * params + model.bytes,
    )
