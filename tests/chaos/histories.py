"""What the database says of a job once all is over: its work, attempts, history and models."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

STARTED = re.compile(r"Fine-tuning job started on .+?(?: \(attempt (\d+)\))?$")
CHECKPOINT = "Checkpoint created at step "
ENDED = re.compile(
    r"Attempt \d+ failed: |The worker is shutting down|The job was (paused|cancelled)|The job failed: "
    r"|New fine-tuned model created|.* It waits for a newer worker$"
)
"""What a move away from running says. (A pause that was taken back in the last moment says nothing.)"""
BY_ATTEMPTS = re.compile(rf"{CHECKPOINT}|Training goes on from the checkpoint|Probed: ")
"""What only an attempt says, beside its steps."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`; times are the database's, in Unix seconds."""

    number: int
    started_at: float
    ended_at: float | None
    outcome: str | None
    resumed_from: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A row of `work`, with its attempts by their numbers."""

    kind: str
    status: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a job's history; `step` where it reports one that was trained."""

    at: float
    message: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A row of the registry: the result, or the checkpoint of a step."""

    name: str
    step: int | None
    steps: int | None
    """That it was trained for."""


@dataclass(frozen=True, slots=True)
class History:
    """A job and all that is left of it. Events are in the order in which they became visible."""

    job_id: str
    key: str | None
    status: str
    max_steps: int
    save_steps: int
    finished_at: float | None = None
    result: str | None = None
    error: str | None = None
    work: tuple[Work, ...] = ()
    events: tuple[Event, ...] = ()
    models: tuple[Model, ...] = ()

    def attempts(self, kind: str = "train") -> list[Attempt]:
        """Of the work of a kind."""
        return [attempt for work in self.work if work.kind == kind for attempt in work.attempts]


@dataclass(slots=True)
class Told:
    """What a job's history has between the start of an attempt and its end, or the start of the next one."""

    attempt: int
    steps: list[int] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)


def told(history: History) -> tuple[list[Told], list[Event]]:
    """What each attempt has told, in their order; and what was told while there was none, which is a zombie's."""
    attempts: list[Told] = []
    strays: list[Event] = []
    live = False
    for event in history.events:
        if started := STARTED.match(event.message):
            attempts.append(Told(int(started[1] or 1)))
            live = True
        elif ENDED.match(event.message):
            live = False
        elif event.step is not None or BY_ATTEMPTS.match(event.message):
            if not live:
                strays.append(event)
            elif event.step is not None:
                attempts[-1].steps.append(event.step)
            elif event.message.startswith(CHECKPOINT):
                attempts[-1].checkpoints.append(int(event.message.removeprefix(CHECKPOINT)))
    return attempts, strays


def read(database: psycopg.Connection[Any]) -> list[History]:
    """All jobs, the oldest first."""
    with database.cursor(row_factory=dict_row) as cursor:
        rows = {name: cursor.execute(query).fetchall() for name, query in QUERIES.items()}
    return [
        History(
            **job,
            work=tuple(
                Work(row["kind"], row["status"], tuple(Attempt(**one) for one in _of(rows["attempts"], work=row["id"])))
                for row in rows["work"]
                if row["subject"] == job["job_id"]
            ),
            events=tuple(Event(**one) for one in _of(rows["events"], job=job["job_id"])),
            models=tuple(Model(**one) for one in _of(rows["models"], job=job["job_id"])),
        )
        for job in rows["jobs"]
    ]


QUERIES = {
    "jobs": """
        SELECT id AS job_id, idempotency_key AS key, status, error->>'message' AS error, fine_tuned_model AS result,
            extract(epoch FROM finished_at)::float AS finished_at,
            (hyperparameters->>'max_steps')::int AS max_steps, (hyperparameters->>'save_steps')::int AS save_steps
        FROM jobs, LATERAL (SELECT spec->'method'->(spec->'method'->>'type')->'hyperparameters' AS hyperparameters)
        ORDER BY seq""",
    "work": "SELECT id, subject, kind, status FROM work ORDER BY id",
    "attempts": """
        SELECT work_id AS work, number, extract(epoch FROM started_at)::float AS started_at,
            extract(epoch FROM ended_at)::float AS ended_at, outcome, resumed_from_step AS resumed_from
        FROM attempts ORDER BY work_id, number""",
    "events": """
        SELECT job_id AS job, extract(epoch FROM created_at)::float AS at, message,
            CASE WHEN data ? 'train_loss' THEN (data->>'step')::int END AS step
        FROM job_events ORDER BY seq""",
    "models": """
        SELECT job_id AS job, id AS name, step, (metrics->>'steps')::int AS steps
        FROM registered_models ORDER BY seq""",
}


def _of(rows: list[dict[str, Any]], **owner: Any) -> Iterator[dict[str, Any]]:
    """The rows of an owner, without its column."""
    ((column, value),) = owner.items()
    for row in rows:
        if row[column] == value:
            yield {name: found for name, found in row.items() if name != column}
