"""Whose turn it is in a queue: one statement, which takes the first work and enters the attempt at it.

By priority, then the project with the fewest pieces running in this queue, then the one that was served least recently,
then the work that waits longest. Each project that has work there is one step through an index, however much its work
is. Nobody waits for another claimer: whoever claims at the same moment as others, and cannot see what they take, goes
to another project, as long as there is one.
"""

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

COUNTED = 100
"""Running pieces of a project's in a queue; beyond that its turn comes by when it was served."""

# Statuses are literals, so that a prepared plan can use the indexes that hold one status alone. Of each priority the
# projects are looked at twice: first those of which nobody else claims just now, then all. No more is locked than it
# takes to find one row: with nothing but LATERAL to join by, these are nested loops in the order of the turns, which
# end with the first row. An ORDER BY outside would have all of them run before it sorts.
_TAKE = f"""
WITH RECURSIVE waiting AS (
    (
        SELECT priority, project_id, available_at FROM work WHERE queue = :queue AND status = 'queued'
        ORDER BY priority, project_id, available_at, id LIMIT 1
    )
    UNION ALL
    SELECT later.*
    FROM waiting CROSS JOIN LATERAL (
        SELECT priority, project_id, available_at FROM work
        WHERE queue = :queue AND status = 'queued'
            AND (priority, project_id) > (waiting.priority, waiting.project_id)
        ORDER BY priority, project_id, available_at, id LIMIT 1
    ) AS later
),
turns AS (
    SELECT priority, project_id, look
    FROM waiting
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM (
            SELECT FROM work WHERE queue = :queue AND project_id = waiting.project_id AND status = 'running'
            LIMIT {COUNTED}
        ) AS counted
    ) AS busy
    CROSS JOIN LATERAL (
        SELECT max(claimed_at) AS served_at FROM work
        WHERE queue = :queue AND project_id = waiting.project_id AND claimed_at IS NOT NULL
    ) AS served
    CROSS JOIN (VALUES (1), (2)) AS looks (look)
    WHERE available_at <= now() AND __may_have_more__
    ORDER BY priority, look, running, served_at NULLS FIRST, available_at, project_id
),
taken AS (
    UPDATE work
    SET status = 'running', attempt = attempt + 1, claimed_at = now(), lease_until = now() + :lease, room_bytes = NULL
    WHERE id = (
        SELECT first.id
        FROM turns
        CROSS JOIN LATERAL (
            SELECT look = 2 OR pg_try_advisory_xact_lock(
                hashtextextended(CAST(:queue AS text) || ' ' || turns.project_id, 0)
            ) AS alone
            OFFSET 0
        ) AS mine
        CROSS JOIN LATERAL (
            SELECT id FROM work
            WHERE mine.alone AND queue = :queue AND priority = turns.priority AND project_id = turns.project_id
                AND status = 'queued' AND available_at <= now() AND coalesce(room_bytes, 0) <= :free
            ORDER BY available_at, id LIMIT 1
            FOR UPDATE SKIP LOCKED
        ) AS first
        LIMIT 1
    )
    RETURNING id, kind, subject, attempt, failed_attempts
),
entered AS (
    INSERT INTO attempts (work_id, number, worker_id, host, device)
    SELECT id, attempt, :worker_id, :host, :device FROM taken
)
SELECT id, kind, subject, attempt, failed_attempts FROM taken
"""  # noqa: S608  a number from above
_BELOW_LIMIT = """
    :most > (SELECT count(*) FROM work WHERE project_id = waiting.project_id AND status = 'running' AND kind = 'train')
"""


def _statement(may_have_more: str) -> TextClause:
    return text(_TAKE.replace("__may_have_more__", may_have_more)).bindparams(bindparam("device", type_=JSONB))


# Two, or the planner would take the prepared plan for dear, and plan each time, which takes twice as long as the claim.
TAKE = _statement("true")
TAKE_BELOW_LIMIT = _statement(_BELOW_LIMIT)
"""Likewise, of projects alone that have fewer than `most` pieces of training running, in all queues together."""
