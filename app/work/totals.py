"""What all attempts came to, since the tables count. Each is counted once, by a sweeper, so that a million of them cost
no more to show than ten; those that ended since its last round are added when they are asked for.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 259_200)
"""Seconds, the upper bounds of a phase's histogram. Totals are kept by their index: another list needs a migration."""
AT_ONCE = 5_000
"""Attempts that a sweeper's round counts, and that are added to what it has counted; beyond that they wait."""

_ENDED = f"FROM attempts WHERE ended_at IS NOT NULL AND NOT counted ORDER BY work_id, number LIMIT {AT_ONCE}"
_MEASURED = f"""
SELECT kind, queue, measure, label,
       CASE measure WHEN 'phase' THEN width_bucket(seconds, ARRAY{list(BUCKETS)}::float[]) ELSE 0 END AS bucket,
       count(*) AS count, sum(seconds) AS seconds
FROM waiting JOIN work ON work.id = work_id CROSS JOIN LATERAL (
    SELECT 'outcome', outcome, extract(epoch FROM ended_at - started_at)::float
    UNION ALL SELECT 'phase', key, value::float FROM jsonb_each_text(phases)
    UNION ALL SELECT 'error', coalesce(error->>'code', ''), 0 WHERE error IS NOT NULL
    UNION ALL SELECT 'retry', outcome, 0
        WHERE outcome IN ('failed', 'lease_expired') AND NOT (work.status = 'failed' AND work.attempt = number)
) AS measured (measure, label, seconds)
GROUP BY 1, 2, 3, 4, 5
"""  # noqa: S608  numbers from above
_COUNT = text(
    f"""
WITH waiting AS (
    UPDATE attempts SET counted = true
    WHERE (work_id, number) IN (SELECT work_id, number {_ENDED})
    RETURNING *
)
INSERT INTO attempt_totals AS total (kind, queue, measure, label, bucket, count, seconds) {_MEASURED}
ON CONFLICT (kind, queue, measure, label, bucket)
DO UPDATE SET count = total.count + excluded.count, seconds = total.seconds + excluded.seconds
"""  # noqa: S608  statements from above
)

ALL = f"""
WITH waiting AS (SELECT * {_ENDED})
SELECT kind, queue, measure, label, bucket, sum(count)::bigint AS count, sum(seconds)::float AS seconds
FROM (SELECT * FROM attempt_totals UNION ALL {_MEASURED}) AS every
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
"""  # noqa: S608  statements from above
"""By kind of work and queue; `measure` says what `label` is and what is counted:

`outcome`  attempts, and how long they took
`error`    attempts that ended with an error, by its code
`retry`    attempts that failed or lost their lease, and after which there is another
`phase`    phases of attempts, and how long they took; `bucket` is the index of the first of `BUCKETS` above that
"""


def count(session: Session) -> None:
    """Count attempts that have ended since the last time. One caller at a time: who has the sweepers' lock."""
    session.execute(_COUNT)
