"""How long earlier jobs took, and how much memory, on which class of worker: what later plans go by."""

import statistics
from collections import defaultdict
from typing import Any, Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.jobs.models import Job
from app.jobs.parts import OF_ANY_VERSION
from app.jobs.spec import JobSpec
from app.planning.duration import Measured, Work
from app.planning.hardware import GIB
from app.planning.plan import work_of_job
from app.queue import CPU
from app.registry.models import RegisteredModel

Basis = Literal["formula", "dry_run"]
LATEST = 200
"""Jobs that are looked at, of all classes together."""
ENOUGH = 3
"""Jobs of a class before its plans are corrected by them."""
ROWS = "per_device_train_batch_size"
MOST_CORRECTED = 2.0
"""Up and down: what is further off is another thing than a device's habit."""


def _peaks(basis: Basis) -> Select[Any]:
    """Of jobs of which both is known, what was said and what was measured."""
    # A plan's memory is the formula's until there is a dry run; then that of the formula lies beside it.
    memory = Job.plan["memory"]["breakdown_gib"]
    parts_of = func.coalesce(Job.plan["formula"]["breakdown_gib"], memory) if basis == "formula" else memory
    at_its_end = RegisteredModel.metrics["peak_memory_bytes"].as_float()
    peak_of = func.coalesce(Job.probe["memory_bytes"].as_float(), at_its_end)
    rows = (
        select(Job.queue, parts_of, peak_of, Job.plan["resolved"]["method"], Job.probe)
        .outerjoin(RegisteredModel, (RegisteredModel.job_id == Job.id) & RegisteredModel.step.is_(None))
        .where(Job.plan["device"].astext == Job.queue, peak_of.is_not(None))
        .order_by(Job.seq.desc())
        .limit(LATEST)
    )
    return rows.where(Job.plan["memory"]["basis"].astext == basis) if basis == "dry_run" else rows


_PEAKS: dict[Basis, Select[Any]] = {"formula": _peaks("formula"), "dry_run": _peaks("dry_run")}
"""Made once: to make one takes longer than its answer."""


def measured(session: Session) -> dict[str, list[Measured]]:
    """The latest jobs that succeeded, by their worker class; of all projects, for time is nobody's secret."""
    saves = Job.prepared["train"]["packing_saves"].as_float()
    rows = (
        select(Job.queue, Job.resolved, saves, RegisteredModel)
        .join(RegisteredModel, (RegisteredModel.job_id == Job.id) & RegisteredModel.step.is_(None))
        .where(Job.resolved.is_not(None), Job.prepared.is_not(None))
        .order_by(RegisteredModel.seq.desc())
        .limit(LATEST)
    )
    found = defaultdict[str, list[Measured]](list)
    for queue, numbers, packing_saves, model in session.execute(rows):
        if (seconds := _seconds(model.metrics)) > 0:
            work = _work(JobSpec.model_validate(numbers, context=OF_ANY_VERSION), packing_saves or 0.0, model)
            found[queue].append(Measured(work, seconds))
    return found


def corrections(session: Session, basis: Basis = "formula") -> dict[str, float]:
    """What jobs took at their peak over what was said by the formula, or by a dry run: by worker class, medians of
    three jobs or more.

    By their probe, which is there as soon as they begin to train; of those without one by what their result says.
    """
    ratios = defaultdict[str, list[float]](list)
    for queue, parts, peak, planned, probe in session.execute(_PEAKS[basis]):
        if probe is not None and probe[ROWS] != planned[planned["type"]]["hyperparameters"][ROWS]:
            continue  # it has shrunk, and is not what was planned
        # What torch counts of a GPU has neither the context nor what the allocator cannot use.
        apart = ("correction",) if queue == CPU else ("correction", "fragmentation", "context")
        said = sum(size for name, size in parts.items() if name not in apart) * GIB
        if said > 0:
            ratios[queue].append(peak / said)
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


def _work(spec: JobSpec, packing_saves: float, model: RegisteredModel) -> Work:
    params = model.all_parameters - (model.trained_parameters if model.kind == "adapter" else 0)
    return work_of_job(
        spec,
        params=params,
        trained=model.trained_parameters,
        tokens=model.metrics["tokens"],
        steps=model.metrics["steps"],
        packing_saves=packing_saves,
        moved_bytes=2.0 * params + model.bytes,
        positions=model.metrics.get("generated_positions", 0.0),
    )
