"""What a job measured, step by step: as a series for a chart, and as the file beside its result."""

import csv
import io
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.models import JobEvent

CSV_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
"""OpenAI's header, and where a step's numbers stand in its event."""


def series(session: Session, job_id: str, *, after_step: int = 0) -> list[dict[str, Any]]:
    """One entry a step, in order. A step that an attempt did again after a crash has its last numbers."""
    told = session.scalars(
        select(JobEvent.data)
        .where(
            JobEvent.job_id == job_id,
            JobEvent.type == "metrics",
            JobEvent.data["step"].as_integer() > after_step,
        )
        .order_by(JobEvent.seq)
    )
    steps: dict[int, dict[str, Any]] = {}
    for data in told:
        if data is not None:
            steps.setdefault(int(data["step"]), {}).update(data)
    return [steps[step] for step in sorted(steps)]


def thinned(entries: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many (4 or more): the first, the last, and others at even distances.

    Evaluations are few beside steps: they have up to half of the places.
    """
    if len(entries) <= most:
        return entries
    evaluated = [index for index, entry in enumerate(entries) if entry.get("valid_loss") is not None]
    kept = {0, len(entries) - 1, *_spread(evaluated, most // 2)}
    rest = [index for index in range(len(entries)) if index not in kept]
    kept.update(_spread(rest, most - len(kept)))
    return [entries[index] for index in sorted(kept)]


def as_csv(entries: list[dict[str, Any]]) -> str:
    """The file of metrics, with OpenAI's columns; empty where nothing was measured."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in entries:
        writer.writerow("" if (value := entry.get(name)) is None else value for name in CSV_COLUMNS.values())
    return table.getvalue()


def _spread(indices: list[int], count: int) -> list[int]:
    if count <= 0:
        return []
    if len(indices) <= count:
        return indices
    return [indices[number * len(indices) // count] for number in range(count)]
