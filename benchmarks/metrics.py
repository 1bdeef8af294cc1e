"""What a scrape of /metrics costs with many jobs: `python -m benchmarks.metrics [--queued 10000] [--attempts 200000]`.

A database of its own, filled by SQL; one api process's app, called in this process. Prints the round of statements that
Prometheus causes at most every few seconds, each statement alone, and a sweeper's round that counts.
"""

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from sqlalchemy import text
from starlette.testclient import TestClient

from app.auth import create_key
from app.cli import migrate
from app.cli.embedded import Postgres, RunFolder
from app.db import get_engine, new_session
from app.main import create_app
from app.monitoring import figures
from app.monitoring.figures import Figures
from app.work import totals

console = Console(width=120)
FILL = (
    """
    INSERT INTO jobs (id, project_id, spec, status, queue, finished_at)
    SELECT 'ftjob-' || n, (SELECT id FROM projects), jsonb_build_object('filler', repeat('x', 1500)),
           CASE WHEN n <= :queued THEN 'queued' ELSE 'cancelled' END, 'cpu', CASE WHEN n > :queued THEN now() END
    FROM generate_series(1, :queued + :attempts / 2) AS n
    """,
    """
    INSERT INTO work (kind, subject, queue, priority, status, attempt, finished_at)
    SELECT 'train', 'ftjob-' || n, 'gpu-' || 8 * (n % 3 + 1), n % 3,
           CASE WHEN n <= :queued THEN 'queued' ELSE 'succeeded' END, CASE WHEN n > :queued THEN 2 ELSE 0 END,
           CASE WHEN n > :queued THEN now() END
    FROM generate_series(1, :queued + :attempts / 2) AS n
    """,
    """
    INSERT INTO attempts (work_id, number, worker_id, host, device, started_at, ended_at, outcome, error, phases)
    SELECT id, number, 'here:cpu:0', 'here', '{"kind": "cpu"}', now() - interval '1 min', now(),
           CASE number WHEN 1 THEN 'failed' ELSE 'succeeded' END,
           CASE number WHEN 1 THEN '{"code": "worker_lost"}'::jsonb END,
           '{"waiting": 3, "loading": 4, "training": 40, "saving": 1, "publishing": 2}'
    FROM work, generate_series(1, 2) AS number WHERE status = 'succeeded'
    """,
)


def main() -> None:
    """Fill, ask, count, ask again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--attempts", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ft-") as folder, ExitStack() as stack:
        run = RunFolder(Path(folder))
        stack.callback(run.close)
        postgres = Postgres(Path(folder), run.path, ())
        postgres.initialise()
        server = postgres.child()
        server.start()
        stack.callback(server.end_by, 0.0)
        postgres.wait_until_ready(server)
        os.environ |= {
            "FINETUNED_HOME": folder,
            "FINETUNED_DATABASE_URL": postgres.url,
            "FINETUNED_BROKER_URL": "memory://",
        }
        migrate.upgrade()
        with new_session() as session, session.begin():
            key = create_key(session, "default", "benchmark")
            for statement in FILL:
                session.execute(text(statement), {"queued": arguments.queued, "attempts": arguments.attempts})
        with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        console.print(f"{arguments.queued:,} queued, {arguments.attempts:,} attempts")
        measure("before a sweeper has counted any", key)
        rounds = 0
        while count_once():
            rounds += 1
        with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        measure(f"after {rounds} rounds that count", key)
        get_engine().dispose()


def count_once() -> bool:
    """One round of the sweeper's; whether it has found any."""
    began = time.perf_counter()
    with new_session() as session, session.begin():
        totals.count(session)
        left = session.scalar(text("SELECT count(*) FROM attempts WHERE ended_at IS NOT NULL AND NOT counted"))
    if left == 0 or left is None:
        return False
    if left % 50_000 == 0:
        console.print(f"  a round that counts {totals.AT_ONCE:,}: {1000 * (time.perf_counter() - began):.0f} ms")
    return True


def measure(when: str, key: str) -> None:
    """The whole answer, each statement, and an answer out of memory."""
    console.print(when)
    statements = {"workers": figures.WORKERS, "queued": figures.QUEUED, "running": figures.RUNNING}
    statements |= {"jobs": figures.JOBS, "attempts": totals.ALL}
    with get_engine().connect() as connection:
        for name, statement in statements.items():
            plan = connection.execute(text(f"EXPLAIN (ANALYZE, SUMMARY) {statement}"))
            lines = [str(row[0]) for row in plan]
            scan = next((line.split("(cost")[0].strip(" ->") for line in lines if "Scan" in line), "")
            console.print(f"  {name:9} {scan:60} {lines[-1]}")
    with TestClient(create_app(), headers={"Authorization": f"Bearer {key}"}) as client:
        client.get("/metrics")
        for kept, what in ((0.0, "a scrape with its round"), (3600.0, "a scrape out of memory")):
            client.app.state.figures = Figures(kept)  # type: ignore[attr-defined]  # Starlette's
            client.get("/metrics")
            took = []
            for _ in range(10):
                began = time.perf_counter()
                answer = client.get("/metrics")
                took.append(time.perf_counter() - began)
            assert "finetuned_database_up 1" in answer.text
            console.print(f"  {what}: median {1000 * sorted(took)[5]:.1f} ms, {len(answer.content):,} bytes")


if __name__ == "__main__":
    main()
