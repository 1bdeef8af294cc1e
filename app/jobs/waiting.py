"""Why a job waits, where it stands, and when it may start: one statement for all jobs of an answer.

What it looks at is bounded: so many jobs of each project that waits in the same queue, however many there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, cast

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from app import disks
from app.jobs.models import Job
from app.jobs.space import lack_of
from app.jobs.status import JobStatus
from app.queue import PREPARE
from app.reads import ONE_PLAN, Reads, question
from app.settings import get_settings
from app.work.service import HEARD_WITHIN

COUNTED = 100
"""Pieces of work that are counted ahead of a job, of each project."""
ROUNDED = 10
"""Seconds: a forecast is no better than that, and an answer that stays the same is a 304."""
WAITING = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED)

Reason = Literal["files", "retry", "worker", "quota", "turn", "resume", "no_space"]


@dataclass(frozen=True, slots=True)
class Wait:
    """What keeps a job from running; `None`s where nothing does."""

    reason: Reason | None = None
    message: str | None = None
    position: int | None = None
    """1: next. None: not in a queue, or behind more than are counted."""
    retry_at: int | None = None
    starts: tuple[int, int] | None = None
    """Unix seconds between which it should start, unless more urgent work comes."""
    no_forecast: str | None = None
    """Why nobody knows when it starts."""


# Statuses are literals for the sake of the indexes, as in app/work/turns.py. A piece of work waits in a line: those of
# its queue, priority and project.
_LOOK = text(f"""
WITH RECURSIVE asked AS MATERIALIZED (
    SELECT id, subject, kind, queue, priority, project_id, status, available_at, available_at > now() AS is_early,
        room_bytes
    FROM work WHERE subject = ANY(:ids) AND finished_at IS NULL AND kind IN ('prepare', 'train')
),
lines AS MATERIALIZED (
    SELECT DISTINCT queue, priority, project_id FROM asked WHERE status = 'queued' AND NOT is_early
),
placed AS (
    SELECT place.* FROM lines CROSS JOIN LATERAL (
        SELECT id, row_number() OVER line - 1 AS ahead, sum(seconds_low) OVER line - coalesce(seconds_low, 0) AS low,
            sum(seconds_high) OVER line - coalesce(seconds_high, 0) AS high,
            count(*) OVER line - count(seconds_high) OVER line - (seconds_high IS NULL)::int AS unknown
        FROM work
        WHERE queue = lines.queue AND priority = lines.priority AND project_id = lines.project_id
            AND status = 'queued' AND available_at <= now()
        WINDOW line AS (ORDER BY available_at, id ROWS UNBOUNDED PRECEDING)
        ORDER BY available_at, id LIMIT {COUNTED + 1}
    ) AS place
    JOIN asked USING (id)
),
waiting AS (
    SELECT first.* FROM (SELECT DISTINCT queue FROM lines) AS asked_for CROSS JOIN LATERAL (
        SELECT queue, priority, project_id FROM work WHERE queue = asked_for.queue AND status = 'queued'
        ORDER BY priority, project_id LIMIT 1
    ) AS first
    UNION ALL
    SELECT later.* FROM waiting CROSS JOIN LATERAL (
        SELECT queue, priority, project_id FROM work
        WHERE queue = waiting.queue AND status = 'queued'
            AND (priority, project_id) > (waiting.priority, waiting.project_id)
        ORDER BY priority, project_id LIMIT 1
    ) AS later
),
projects AS (
    SELECT waiting.queue, waiting.priority, waiting.project_id, running, served_at, oldest, waits, low, high, unknown
    FROM waiting
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM work
        WHERE queue = waiting.queue AND project_id = waiting.project_id AND status = 'running'
    ) AS busy
    CROSS JOIN LATERAL (
        SELECT extract(epoch FROM max(claimed_at)) AS served_at FROM work
        WHERE queue = waiting.queue AND project_id = waiting.project_id AND claimed_at IS NOT NULL
    ) AS served
    CROSS JOIN LATERAL (
        SELECT extract(epoch FROM min(available_at)) AS oldest, count(*) AS waits, avg(seconds_low) AS low,
            avg(seconds_high) AS high, count(*) - count(seconds_high) AS unknown
        FROM (
            SELECT available_at, seconds_low, seconds_high FROM work
            WHERE queue = waiting.queue AND priority = waiting.priority AND project_id = waiting.project_id
                AND status = 'queued' AND available_at <= now()
            ORDER BY available_at, id LIMIT {COUNTED + 1}
        ) AS head
    ) AS line
    WHERE waits > 0
),
running AS (
    SELECT work.queue, extract(epoch FROM claimed_at) AS since, seconds_low AS low, seconds_high AS high,
        (jobs.progress ->> 'estimated_finish')::float AS finish
    FROM work LEFT JOIN jobs ON jobs.id = work.subject
    WHERE work.status = 'running' AND work.queue IN (SELECT queue FROM lines)
    LIMIT {COUNTED}
),
training AS (
    SELECT project_id, count(*) AS running FROM work
    WHERE status = 'running' AND kind = 'train' AND project_id IN (SELECT project_id FROM asked) GROUP BY project_id
)
SELECT jsonb_build_object(
    'now', extract(epoch FROM now()),
    'asked', (
        SELECT jsonb_agg(jsonb_build_object(
            'subject', subject, 'kind', kind, 'queue', queue, 'priority', priority, 'project_id', project_id,
            'status', status, 'available_at', extract(epoch FROM available_at), 'is_early', is_early,
            'room_bytes', room_bytes,
            'ahead', ahead, 'low', low, 'high', high, 'unknown', unknown
        )) FROM asked LEFT JOIN placed USING (id)
    ),
    'projects', (SELECT coalesce(jsonb_agg(projects), '[]') FROM projects),
    'running', (SELECT coalesce(jsonb_agg(running), '[]') FROM running),
    'training', (SELECT coalesce(jsonb_object_agg(project_id, running), '{{}}') FROM training),
    'roomiest', (
        SELECT coalesce(jsonb_object_agg(queue, free), '{{}}') FROM (
            SELECT queue, max((usage ->> 'scratch_free_bytes')::float) AS free FROM workers
            WHERE heard_at > now() - interval '{HEARD_WITHIN.total_seconds()} s' AND usage ? 'scratch_free_bytes'
            GROUP BY queue
        ) AS told
    ),
    'alive', (
        SELECT coalesce(jsonb_object_agg(queue, count), '{{}}') FROM (
            SELECT queue, count(*) FROM workers WHERE heard_at > now() - interval '{HEARD_WITHIN.total_seconds()} s'
            GROUP BY queue
        ) AS heard
    ),
    'blocked', (
        SELECT coalesce(jsonb_object_agg(queue, why), '{{}}') FROM (
            SELECT queue, jsonb_agg(usage ->> 'blocked' ORDER BY id) AS why FROM workers
            WHERE heard_at > now() - interval '{HEARD_WITHIN.total_seconds()} s' AND usage ? 'blocked'
            GROUP BY queue
        ) AS told
    )
) AS found
""")  # noqa: S608  numbers from above
_QUESTION = question(_LOOK)
_ONE_PLAN = text(f"SET LOCAL {ONE_PLAN}")


class _Turn(NamedTuple):
    """The n-th piece of work in the line of a project and a priority."""

    priority: int
    project_id: str
    ahead: int


class Place(msgspec.Struct):
    """Unfinished work of a job."""

    subject: str
    kind: str
    queue: str
    priority: int
    project_id: str
    status: str
    available_at: float
    is_early: bool
    room_bytes: int | None
    """Of a worker's disk, without which none takes it."""
    ahead: int | None
    """In its own line; None: more than is counted."""
    low: float | None
    """Seconds of those, and of how many nobody knows."""
    high: float | None
    unknown: int | None

    @property
    def turn(self) -> _Turn | None:
        """Which of its line it is, as far as that is counted."""
        return _Turn(self.priority, self.project_id, self.ahead) if self.ahead is not None else None


class Share(msgspec.Struct):
    """A project in a queue, with what waits there of one priority. Seconds are means."""

    queue: str
    priority: int
    project_id: str
    running: int
    served_at: float | None
    oldest: float
    """Since when the first of it could be claimed."""
    waits: int
    low: float | None
    high: float | None
    unknown: int


class Running(msgspec.Struct):
    """What a slot is at: since when, how long it should take, when it says itself that it will be done."""

    queue: str
    since: float | None
    low: float | None
    high: float | None
    finish: float | None

    def left(self, now: float) -> tuple[float, float] | None:
        """Seconds; None where nobody knows."""
        if self.finish is not None:
            return (max(0.0, self.finish - now),) * 2
        if self.since is None or self.low is None or self.high is None:
            return None
        return max(0.0, self.since + self.low - now), max(0.0, self.since + self.high - now)


class Look(msgspec.Struct):
    """All that the statement saw."""

    now: float
    projects: list[Share]
    running: list[Running]
    training: dict[str, int]
    """Pieces of training that run, by project."""
    alive: dict[str, int]
    """Slots heard of lately, by queue."""
    blocked: dict[str, list[str]]
    """Of those, why they take no work just now: whose devices are not free."""
    roomiest: dict[str, float]
    """Bytes free on the disk of that of them which has most."""
    asked: list[Place] | None

    def slots(self, queue: str) -> int:
        """That take work."""
        return self.alive.get(queue, 0) - len(self.blocked.get(queue, []))


class _Load(NamedTuple):
    """Work that comes before some other, and what it should take: of each line the mean, which will do for others'."""

    pieces: int
    low: float
    high: float
    unknown: int
    """Pieces of it of which nobody knows how long they take."""

    def plus(self, share: "Share") -> "_Load":
        """And one more, of this line."""
        low, high = share.low or 0.0, share.high or 0.0
        return _Load(self.pieces + 1, self.low + low, self.high + high, self.unknown + (share.unknown > 0))

    def with_exactly(self, place: "Place", share: "Share") -> "_Load":
        """With what a place's own line takes before it, which is known, in place of as many means."""
        ahead = place.ahead or 0
        low = self.low + (place.low or 0.0) - ahead * (share.low or 0.0)
        high = self.high + (place.high or 0.0) - ahead * (share.high or 0.0)
        return _Load(self.pieces, low, high, self.unknown + (place.unknown or 0) - ahead * (share.unknown > 0))


def of_jobs(session: Session, jobs: Sequence[Job]) -> dict[str, Wait]:
    """Of those that wait, by id."""
    waiting = [job for job in jobs if job.status in WAITING]
    if not waiting:
        return {}
    session.execute(_ONE_PLAN)
    found = session.execute(_LOOK, {"ids": [job.id for job in waiting]}).scalar_one()
    return _waits(waiting, msgspec.convert(found, Look))


async def of_job(reads: Reads, job: Job) -> Wait:
    """Of one job, on the event loop."""
    if job.status not in WAITING:
        return Wait()
    found = await reads.first(_QUESTION, ids=[job.id])
    return _waits([job], msgspec.convert(cast("Any", found).found, Look))[job.id]


def _waits(jobs: Sequence[Job], look: Look) -> dict[str, Wait]:
    places = {place.subject: place for place in look.asked or []}
    loads = {queue: _played(look, queue) for queue in {place.queue for place in places.values()}}
    return {
        job.id: _wait(job, place, loads[place.queue].get(place.turn) if place and place.turn else None, look)
        for job in jobs
        for place in [places.get(job.id)]
    }


def _wait(job: Job, place: Place | None, load: _Load | None, look: Look) -> Wait:
    if job.status == JobStatus.PAUSED:
        if (lack := lack_of(job)) is not None:
            return Wait("no_space", f"{lack}. It goes on by itself once there is room.", no_forecast="It is paused.")
        return Wait("resume", "Paused by its owner: resume it to go on.", no_forecast="It is paused.")
    if place is None:
        return Wait(no_forecast="It is being moved just now.")  # between two looks at the database
    preparing = job.status == JobStatus.VALIDATING_FILES
    if place.status == "running":
        if not preparing:
            return Wait()  # claimed between two looks
        return Wait("files", "Its files are being prepared.", no_forecast="Its files are being prepared first.")
    if place.is_early:
        retry_at = math.ceil(place.available_at)
        clock = datetime.fromtimestamp(retry_at, UTC)
        message = f"An attempt failed; the next one begins at {clock:%H:%M:%S} UTC or later."
        return Wait("retry", message, retry_at=retry_at, no_forecast="Its next attempt waits first.")
    position = load.pieces + 1 if load is not None else None
    starts, no_forecast = _forecast(place, load, look)
    reason, message = _reason(place, load, look)
    if preparing:
        starts, no_forecast = None, "Its files are to be prepared first."
    elif reason == "quota":
        starts, no_forecast = None, "Another job of its project has to end first."
    elif reason == "no_space":
        starts, no_forecast = None, "There has to be room first."
    return Wait(
        "files" if preparing and reason == "turn" else reason,
        f"Its files are to be prepared: {message[0].lower()}{message[1:]}" if preparing else message,
        position,
        starts=starts,
        no_forecast=no_forecast,
    )


def _reason(place: Place, load: _Load | None, look: Look) -> tuple[Reason, str]:
    if not look.alive.get(place.queue):
        up = ", ".join(f"{queue} ({count})" for queue, count in sorted(look.alive.items()) if queue != PREPARE)
        return "worker", f"No worker of its class, {place.queue}, is up. {f'Up are: {up}.' if up else 'None is up.'}"
    if look.slots(place.queue) <= 0:
        return "worker", f"No slot of {place.queue} takes work just now. {look.blocked[place.queue][0]}"
    most = get_settings().max_running_per_project
    running = look.training.get(place.project_id, 0)
    if place.queue != PREPARE and most is not None and running >= most:
        return "quota", f"Its project has {running} in training already, and may have {most} at once."
    if place.room_bytes is not None and look.roomiest.get(place.queue, math.inf) < place.room_bytes:
        free = disks.as_text(int(look.roomiest[place.queue]))
        needed = disks.as_text(place.room_bytes)
        return "no_space", f"It needs {needed} of a worker's disk, and the roomiest of {place.queue} has {free} free."
    if load is None:
        return "turn", f"More than {COUNTED} are ahead of it."
    if load.pieces:
        return "turn", f"{load.pieces} {'is' if load.pieces == 1 else 'are'} ahead of it in the queue {place.queue}."
    busy = sum(one.queue == place.queue for one in look.running)
    slots = look.slots(place.queue)
    if busy >= slots:
        return "turn", f"It is next; {busy} of {slots} {'slot' if slots == 1 else 'slots'} of {place.queue} are busy."
    return "turn", "It is next, and a slot is free: a worker is about to take it."


def _played(look: Look, queue: str) -> dict[_Turn, _Load]:
    """What is claimed before each of those asked for, if nothing new comes: the turns of app/work/turns.py.

    Those that are behind more than is counted are missing.
    """
    wanted = {place.turn: place for place in look.asked or [] if place.queue == queue and place.turn is not None}
    shares = [share for share in look.projects if share.queue == queue]
    running = {share.project_id: share.running for share in shares}
    served = {share.project_id: share.served_at or 0.0 for share in shares}
    found: dict[_Turn, _Load] = {}
    load = _Load(0, 0.0, 0.0, 0)
    for priority in sorted({share.priority for share in shares}):
        waits = {share.project_id: share for share in shares if share.priority == priority}
        taken = dict.fromkeys(waits, 0)
        while waits and load.pieces <= COUNTED and len(found) < len(wanted):
            turn = min(
                waits.values(),
                key=lambda one: (running[one.project_id], served[one.project_id], one.oldest, one.project_id),
            )
            project_id = turn.project_id
            at = _Turn(priority, project_id, taken[project_id])
            if at in wanted:
                found[at] = load.with_exactly(wanted[at], turn)
            load = load.plus(turn)
            taken[project_id] += 1
            running[project_id] += 1
            served[project_id] = look.now + load.pieces
            if taken[project_id] == turn.waits:
                del waits[project_id]
    return found


def _forecast(place: Place, load: _Load | None, look: Look) -> tuple[tuple[int, int] | None, str | None]:
    """Unix seconds between which it starts, or why nobody knows.

    All slots are busy until then, so what is ahead takes its sum divided by them at most, and the longest of what still
    runs less at least.
    """
    if not look.alive.get(place.queue):
        return None, "No worker of its class is up."
    slots = look.slots(place.queue)
    if slots <= 0:
        return None, "A device of its class has to be free first."
    if load is None:
        return None, f"More than {COUNTED} are ahead of it."
    busy = [one for one in look.running if one.queue == place.queue]
    if load.pieces < slots - len(busy):
        return _rounded(look.now, look.now), None
    left = [one.left(look.now) for one in busy]
    known = [one for one in left if one is not None]
    unknown = len(left) - len(known) + load.unknown
    if unknown:
        are = "piece of work" if unknown == 1 else "pieces of work"
        return None, f"Nobody knows yet how long {unknown} {are} before it will take."
    low = load.low + sum(one for one, _ in known)
    high = load.high + sum(one for _, one in known)
    longest = max([one for _, one in known], default=0.0)
    earliest = look.now + max(0.0, low - (slots - 1) * longest) / slots
    latest = look.now + high / slots
    return _rounded(earliest, latest), None


def _rounded(earliest: float, latest: float) -> tuple[int, int]:
    return int(earliest // ROUNDED) * ROUNDED, math.ceil(latest / ROUNDED) * ROUNDED
