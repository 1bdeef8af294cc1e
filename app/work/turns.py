"""Whose turn it is in a queue: one statement, which takes the first work, enters the attempt at it, and moves what the
work is about.

By priority, then the project with the fewest pieces running in this queue, then the one that was served least recently,
then the work that waits longest. Each project that has work there is one step through an index, however much its work
is. Nobody waits for another claimer: whoever claims at the same moment as others, and cannot see what they take, goes
to another project, as long as there is one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import CTE, ColumnElement, Select, bindparam, insert, select, text, true

from app.work.models import Attempt, Work

COUNTED = 100
"""Running pieces of a project's in a queue; beyond that its turn comes by when it was served."""

# Statuses are literals, so that a prepared plan can use the indexes that hold one status alone. Of each priority the
# projects are looked at twice: first those of which nobody else claims just now, then all. No more is locked than it
# takes to find one row: with nothing but LATERAL to join by, these are nested loops in the order of the turns, which
# end with the first row. An ORDER BY outside would have all of them run before it sorts.
_TAKE = f"""
WITH RECURSIVE waiting AS (
    (
        SELECT priority, project_id, available_at FROM work WHERE queue = :of_queue AND status = 'queued'
        ORDER BY priority, project_id, available_at, id LIMIT 1
    )
    UNION ALL
    SELECT later.*
    FROM waiting CROSS JOIN LATERAL (
        SELECT priority, project_id, available_at FROM work
        WHERE queue = :of_queue AND status = 'queued'
            AND (priority, project_id) > (waiting.priority, waiting.project_id)
        ORDER BY priority, project_id, available_at, id LIMIT 1
    ) AS later
),
turns AS (
    SELECT priority, project_id, look
    FROM waiting
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM (
            SELECT FROM work WHERE queue = :of_queue AND project_id = waiting.project_id AND status = 'running'
            LIMIT {COUNTED}
        ) AS counted
    ) AS busy
    CROSS JOIN LATERAL (
        SELECT max(claimed_at) AS served_at FROM work
        WHERE queue = :of_queue AND project_id = waiting.project_id AND claimed_at IS NOT NULL
    ) AS served
    CROSS JOIN (VALUES (1), (2)) AS looks (look)
    WHERE available_at <= now() AND __may_have_more__
    ORDER BY priority, look, running, served_at NULLS FIRST, available_at, project_id
)
UPDATE work
SET status = 'running', attempt = attempt + 1, claimed_at = now(), lease_until = now() + :lease, room_bytes = NULL
WHERE id = (
    SELECT first.id
    FROM turns
    CROSS JOIN LATERAL (
        SELECT look = 2 OR pg_try_advisory_xact_lock(
            hashtextextended(CAST(:of_queue AS text) || ' ' || turns.project_id, 0)
        ) AS alone
        OFFSET 0
    ) AS mine
    CROSS JOIN LATERAL (
        SELECT id FROM work
        WHERE mine.alone AND queue = :of_queue AND priority = turns.priority AND project_id = turns.project_id
            AND status = 'queued' AND available_at <= now() AND coalesce(room_bytes, 0) <= :free
        ORDER BY available_at, id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS first
    LIMIT 1
)
RETURNING id, kind, subject, attempt, failed_attempts
"""  # noqa: S608  a number from above
_BELOW_LIMIT = """
    :most > (SELECT count(*) FROM work WHERE project_id = waiting.project_id AND status = 'running' AND kind = 'train')
"""


@dataclass(frozen=True, slots=True)
class Take:
    """The statement in two forms: or the planner would take a prepared plan that counts for dear, and plan each time,
    which takes twice as long as the claim.

    Its rows are of `id`, `kind`, `subject`, `attempt`, `failed_attempts` and `moved`.
    """

    any: Select[tuple[int, str, str, int, int, bool]]
    below_limit: Select[tuple[int, str, str, int, int, bool]]
    """Of projects alone that have fewer than `most` pieces of training running, in all queues together."""


def taking(move: Callable[[CTE], ColumnElement[bool]] = lambda _: true()) -> Take:
    """Take what comes first. `move`: what else the statement does with what was taken, and whether that came true."""
    return Take(_taking("true", move), _taking(_BELOW_LIMIT, move))


def _taking(
    may_have_more: str, move: Callable[[CTE], ColumnElement[bool]]
) -> Select[tuple[int, str, str, int, int, bool]]:
    of_work = (Work.id, Work.kind, Work.subject, Work.attempt, Work.failed_attempts)
    taken = text(_TAKE.replace("__may_have_more__", may_have_more)).columns(*of_work).cte("taken")
    found = taken.c
    # Bound by other names than those of columns, which INSERT and UPDATE would take for values of theirs.
    claimer = {
        name: bindparam(f"by_{name}", type_=Attempt.__table__.c[name].type) for name in ("worker_id", "host", "device")
    }
    entered = insert(Attempt).from_select(
        ["work_id", "number", *claimer], select(found.id, found.attempt, *claimer.values())
    )
    answer = select(
        found.id, found.kind, found.subject, found.attempt, found.failed_attempts, move(taken).label("moved")
    )
    return answer.add_cte(entered.cte("entered"))
