"""What a job measured, step by step: as a series for a chart, and as the file beside its result.

A long job has hundreds of thousands of steps. Which of them a chart shows is chosen in the database, and the file is
written as the rows come, so that neither needs the memory for all of them.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
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
BATCH = 1000
"""Events that the database sends at a time for the file."""

_STEP = JobEvent.data["step"].as_integer()


class Series(NamedTuple):
    """A job's numbers, thinned or not."""

    entries: list[dict[str, Any]]
    """One a step, in order. A step that an attempt did again after a crash has its last numbers."""
    steps: int
    """How many there were before thinning."""


class Sink(Protocol):
    """Takes bytes, as a blob does on its way."""

    def write(self, chunk: bytes, /) -> object:
        """Take some more."""


def series(session: Session, job_id: str, *, after_step: int = 0, most: int) -> Series:
    """At most so many steps (4 or more): the first, the last, and others at even distances.

    Evaluations are few beside steps: they have up to half of the places.
    """
    chosen = session.execute(_chosen(job_id, after_step, most)).all()
    if not chosen:
        return Series([], 0)
    # A query of its own: the planner cannot know how few they are, and a join would read the job's events for each.
    seqs = [seq for step in chosen for seq in step.seqs]
    told = session.scalars(select(JobEvent.data).where(JobEvent.seq == func.any(seqs)).order_by(_STEP, JobEvent.seq))
    return Series(list(_merged(told)), chosen[0].steps)


def write_csv(session: Session, job_id: str, sink: Sink) -> None:
    """The file of metrics, with OpenAI's columns; its header alone where nothing was measured."""
    told = session.scalars(
        select(JobEvent.data)
        .where(JobEvent.job_id == job_id, JobEvent.type == "metrics")
        .order_by(_STEP, JobEvent.seq)
        .execution_options(yield_per=BATCH)
    )
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in _merged(told):
        writer.writerow("" if (value := entry.get(name)) is None else value for name in CSV_COLUMNS.values())
        if line.tell() > 64 * 1024:
            sink.write(line.getvalue().encode())
            line.seek(0)
            line.truncate()
    sink.write(line.getvalue().encode())


def _chosen(job_id: str, after_step: int, most: int) -> Select[Any]:
    """The steps of a thinned series: each with its events, and with how many there are in all.

    The ends and the evaluations first, then the others in the places that are left. All windows go by step, so that
    the database sorts once.
    """
    told = (
        select(_STEP.label("step"), JobEvent.seq, JobEvent.data["valid_loss"].astext.is_not(None).label("evaluated"))
        .where(JobEvent.job_id == job_id, JobEvent.type == "metrics", after_step < _STEP)
        .cte()
        .prefix_with("MATERIALIZED")  # else the sort carries the whole of `data`
    )
    evaluated = func.bool_or(told.c.evaluated).label("evaluated")
    measured = select(told.c.step, func.array_agg(told.c.seq).label("seqs"), evaluated).group_by(told.c.step).subquery()
    evaluations = func.count().filter(measured.c.evaluated)
    placed = select(
        measured,
        func.row_number().over(order_by=measured.c.step).label("place"),
        func.count().over().label("steps"),
        evaluations.over(order_by=measured.c.step, rows=(None, 0)).label("evaluations_so_far"),
        evaluations.over().label("evaluations"),
    ).subquery()
    of_evaluations = _is_spread(placed.c.evaluations_so_far, placed.c.evaluations, most // 2)
    is_kept = or_(placed.c.place.in_((1, placed.c.steps)), and_(placed.c.evaluated, of_evaluations))
    kept = select(placed, is_kept.label("is_kept")).subquery()
    count = func.count().filter(kept.c.is_kept)
    counted = select(
        kept, count.over(order_by=kept.c.step, rows=(None, 0)).label("kept_so_far"), count.over().label("kept")
    ).subquery()
    of_the_rest = _is_spread(
        counted.c.place - counted.c.kept_so_far, counted.c.steps - counted.c.kept, most - counted.c.kept
    )
    return select(counted.c.step, counted.c.seqs, counted.c.steps).where(or_(counted.c.is_kept, of_the_rest))


def _is_spread(nth: Any, of: Any, count: Any) -> ColumnElement[bool]:
    """Whether the nth, from 1, is one of `count` at even distances: all are, where there are no more than that.

    It is where the next whole share begins: ceil((nth - 1) * count / of) < ceil(nth * count / of).
    """
    share = func.nullif(of, 0)
    spread: ColumnElement[bool] = ((nth - 1) * count + of - 1) // share < (nth * count + of - 1) // share
    return spread


def _merged(told: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """One entry a step, of events that come in the order of steps, and of their birth within a step."""
    for _, events in itertools.groupby(told, key=lambda data: int(data["step"])):
        entry: dict[str, Any] = {}
        for data in events:
            entry |= data
        yield entry
