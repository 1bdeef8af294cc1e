"""How fast work is claimed, how soon a job begins, and how soon it goes on after a kill.

`python -m benchmarks.queue [--only claims|polls|post|recovery] [--leases short|default]`: claims a second by processes
on a real PostgreSQL, with 10,000 and 100,000 jobs queued of ten projects; how long `GET` takes with so many; from
POST to the first step, station by station, on a tiny base; and from a kill to the next step. Prints tables.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from app.cli import migrate
from app.cli.embedded import Postgres, RunFolder
from app.db import get_engine, new_session
from app.jobs import lifecycle
from app.settings import get_settings
from app.work.lifecycle import Who
from benchmarks.api import api_of, closed_loop, request_of
from tests import running, tiny
from tests.running import Service

PROJECTS = 10
SIZES = (10_000, 100_000)
CLAIMERS = (1, 4, 8, 32)
HELD = 4
"""Pieces that a claimer has running at most: no service has more of them than slots."""
ROUNDS = 3
AS_IN_PRODUCTION = {
    "FINETUNED_HEARTBEAT_INTERVAL": "10",
    "FINETUNED_LEASE_TIMEOUT": "60",
    "FINETUNED_SWEEP_INTERVAL": "15",
    "FINETUNED_RETRY_DELAYS": "[30, 120, 600]",
}
IMPORTED = 100 * 1024**2
"""Bytes; a trainer that has not begun its imports has a fifth of that."""
SPEC = '{"model": "tiny", "training_file": "file-none", "resources": {"priority": "normal"}}'
LEASE = timedelta(seconds=60)
_END = text("UPDATE work SET status = 'succeeded', lease_until = NULL, finished_at = now() WHERE id = ANY(:ended)")

console = Console(width=120)


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of claims, for each number of claimers")
    parser.add_argument("--posts", type=int, default=30)
    parser.add_argument("--leases", choices=["short", "default"], default="short", help="of the kills")
    parser.add_argument("--only", choices=["claims", "polls", "post", "recovery"], help="one part of it")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "claims": lambda: claims(arguments.seconds),
        "polls": lambda: polls(arguments.seconds),
        "post": lambda: post(arguments.posts),
        "recovery": lambda: recovery(arguments.leases),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


def claims(seconds: float) -> None:
    """By so many processes at once, each claim with its attempt, its job's move and its event, and a commit.

    The time in which they end some of what they have is in the rate, not in the latencies.
    """
    with tempfile.TemporaryDirectory(prefix="ft-") as folder, ExitStack() as stack:
        home = Path(folder)
        run = RunFolder(home)
        stack.callback(run.close)
        postgres = Postgres(home, run.path, ())
        postgres.initialise()
        child = postgres.child()
        child.start()
        stack.callback(child.end_by, 0.0)
        stack.callback(child.ask_to_end)
        postgres.wait_until_ready(child)
        os.environ |= {"FINETUNED_HOME": folder, "FINETUNED_DATABASE_URL": postgres.url}
        get_settings.cache_clear()
        get_engine.cache_clear()
        migrate.upgrade()
        table = Table(title=f"claims of training jobs, {PROJECTS} projects, {seconds:g} s each")
        for column in ("queued", "claimers", "claims/s", "p50 ms", "p99 ms", "shares, least and most"):
            table.add_column(column, justify="right")
        for size in SIZES:
            for count in CLAIMERS:
                fill(size)  # each time: in 20 s they claim more than the smaller queue has
                table.add_row(f"{size:,}", str(count), *_claimed_by(count, seconds))
        console.print(table)
        get_engine().dispose()


def fill(size: int) -> None:
    """As many jobs queued, in nobody's hands."""
    with new_session() as session, session.begin():
        run = session.connection().exec_driver_sql
        run("TRUNCATE work, jobs, projects CASCADE")
        run(f"INSERT INTO projects (id, name) SELECT 'proj_' || n, n FROM generate_series(1, {PROJECTS}) n")  # noqa: S608
        run(
            f"""
            INSERT INTO jobs (id, project_id, spec, status, queue)
            SELECT 'ftjob-' || n, 'proj_' || 1 + mod(n, {PROJECTS}), '{SPEC}', 'queued', 'cpu'
            FROM generate_series(1, {size}) n
            """  # noqa: S608
        )
        run(
            "INSERT INTO work (kind, subject, project_id, queue, priority)"
            " SELECT 'train', id, project_id, queue, 1 FROM jobs ORDER BY seq"
        )
        run("ANALYZE")


def _claimed_by(count: int, seconds: float) -> list[str]:
    context = multiprocessing.get_context("fork")  # what tests import takes half a minute of a core, times 32
    ready, told = context.Barrier(count + 1), context.Queue()
    claimers = [context.Process(target=_claim, args=(number, seconds, ready, told)) for number in range(count)]
    for claimer in claimers:
        claimer.start()
    ready.wait()
    found = [told.get() for _ in claimers]
    for claimer in claimers:
        claimer.join()
    latencies = [took for one, _ in found for took in one]
    shares: dict[str, int] = {}
    for _, subjects in found:
        for subject in subjects:
            project = str(int(subject.removeprefix("ftjob-")) % PROJECTS)
            shares[project] = shares.get(project, 0) + 1
    cuts = statistics.quantiles(latencies, n=100)
    return [
        f"{len(latencies) / seconds:,.0f}",
        f"{1000 * cuts[49]:.1f}",
        f"{1000 * cuts[98]:.1f}",
        f"{min(shares.values())} – {max(shares.values())}",
    ]


def _claim(number: int, seconds: float, ready: Barrier, told: Any) -> None:
    who = Who(f"claimer-{number}", "here", {"kind": "cpu", "name": "a processor"})
    latencies, subjects, running = [], [], list[int]()
    get_engine().dispose(close=False)  # its connections are those of the process before the fork
    with new_session() as session:
        for _ in range(8):  # connect, and have the statements prepared
            with session.begin():
                claim = lifecycle.claim(session, "cpu", who=who, lease=LEASE)
                session.execute(_END, {"ended": [claim.work_id] if claim else []})
        ready.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            with session.begin():
                claim = lifecycle.claim(session, "cpu", who=who, lease=LEASE)
            if claim is None:
                break
            latencies.append(time.perf_counter() - began)
            subjects.append(claim.subject)
            running.append(claim.work_id)
            if len(running) == HELD:
                with session.begin():
                    session.execute(_END, {"ended": running})
                running.clear()
    told.put((latencies, subjects))


def polls(seconds: float) -> None:
    """Of jobs that wait, with ten of them and with ten thousand."""
    with tempfile.TemporaryDirectory(prefix="ft-") as scratch:
        home = Path(scratch, "a")
        tiny.make_base(home / "models" / "tiny")
        with running.up(home, **AS_IN_PRODUCTION) as service:
            job_id = service.submit(service.upload(tiny.chat_rows(40)), max_steps=1)
            service.finished(job_id)
            table = Table(title=f"GET of waiting jobs, 8 connections, one api process, {ROUNDS} rounds")
            for column in ("", "waiting", "requests/s", "p50 ms", "p99 ms", "failed"):
                table.add_column(column, justify="right" if column else "left")
            p50: dict[str, dict[int, list[float]]] = {}
            with api_of(service) as (url, _):
                for size in (10, 10_000) * ROUNDS:  # by turns: machines are slower at some times than at others
                    ids = _queue_copies(service, job_id, size)
                    jobs = "/v1/fine_tuning/jobs"
                    for kind, paths in {
                        "retrieve": [f"{jobs}/{one}" for one in ids],
                        "list of 10": [f"{jobs}?limit=10"],
                        "list of 10 from the front": [f"{jobs}?limit=10&order=asc&status=queued"],
                    }.items():
                        requests = [request_of(url, "GET", path, service.key) for path in paths]
                        asyncio.run(closed_loop(url, requests, 200, 1.0))
                        measured = asyncio.run(closed_loop(url, requests, 200, seconds))
                        p50.setdefault(kind, {}).setdefault(size, []).append(measured.p50)
                        table.add_row(kind, f"{size:,}", *measured.row())
            console.print(table)
            for kind, of_size in p50.items():
                ratios = [many / few for few, many in zip(of_size[10], of_size[10_000], strict=True)]
                told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                console.print(f"{kind}, p50 with 10,000 waiting / with 10: {statistics.median(ratios):.2f} ({told})")


def _queue_copies(service: Service, job_id: str, size: int) -> list[str]:
    """So many jobs like that one, which wait for a class that nobody serves; returns ids of some."""
    with service.database() as database, database.transaction():
        database.execute("DELETE FROM work WHERE queue = 'gpu-80'")
        database.execute("DELETE FROM jobs WHERE queue = 'gpu-80'")
        database.execute(
            "INSERT INTO jobs (id, project_id, spec, resolved, prepared, status, queue)"
            " SELECT 'ftjob-' || md5(random()::text || n), project_id, spec, resolved, prepared, 'queued', 'gpu-80'"
            " FROM jobs, generate_series(1, %s) AS n WHERE jobs.id = %s",
            [size, job_id],
        )
        database.execute(
            "INSERT INTO work (kind, subject, project_id, queue, priority)"
            " SELECT 'train', id, project_id, queue, 1 FROM jobs WHERE queue = 'gpu-80' ORDER BY seq"
        )
    with service.database() as database:
        database.execute("VACUUM ANALYZE work")
        database.execute("VACUUM ANALYZE jobs")
        found = database.execute("SELECT id FROM jobs WHERE queue = 'gpu-80' ORDER BY random() LIMIT 200")
        return [row[0] for row in found]


def post(count: int) -> None:
    """Jobs posted one at a time to a service that has nothing else to do."""
    stations: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        with running.up(Path(folder), **AS_IN_PRODUCTION) as service:
            file_id = service.upload(tiny.chat_rows(40))
            service.finished(service.submit(file_id, max_steps=1))
            for _ in range(count):
                for name, took in _posted(service, file_id).items():
                    stations.setdefault(name, []).append(took)
    table = Table(title=f"from POST to the first step, {count} jobs, an idle worker")
    for column in ("ms", "p50", "p90", "p99", "most"):
        table.add_column(column, justify="right" if column != "ms" else "left")
    for name, all_of in stations.items():
        cuts = statistics.quantiles(all_of, n=100)
        table.add_row(name, *(f"{1000 * value:,.1f}" for value in (cuts[49], cuts[89], cuts[98], max(all_of))))
    console.print(table)


def _posted(service: Service, file_id: str) -> dict[str, float]:
    """Seconds of one job, from station to station."""
    running.wait_for(lambda: _stand_by(service), 120, every=0.2)
    body = {
        "model": "tiny",
        "training_file": file_id,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"max_steps": 2, "batch_size": 4}}},
    }
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=30) as client:
        client.get("/v1/models")  # connected
        sent = time.time()
        job_id = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
        answered = time.time()
    service.finished(job_id, every=0.05)
    with service.database() as database:
        row = database.execute(
            """
            SELECT extract(epoch FROM p.started_at), extract(epoch FROM p.ended_at), extract(epoch FROM t.started_at),
                (SELECT extract(epoch FROM min(created_at)) FROM job_events WHERE job_id = j.id AND type = 'metrics')
            FROM jobs j
            JOIN work pw ON pw.subject = j.id AND pw.kind = 'prepare' JOIN attempts p ON p.work_id = pw.id
            JOIN work tw ON tw.subject = j.id AND tw.kind = 'train' JOIN attempts t ON t.work_id = tw.id
            WHERE j.id = %s
            """,
            [job_id],
        ).fetchone()
    assert row is not None
    claimed, prepared, taken, stepped = (float(value) for value in row)
    return {
        "POST sent → answered": answered - sent,
        "POST sent → claimed to prepare (p50 at most 20, p99 at most 100)": claimed - sent,
        "claimed → prepared": prepared - claimed,
        "prepared → claimed to train": taken - prepared,
        "claimed → loaded, probed, first step told": stepped - taken,
        "POST sent → first step told": stepped - sent,
    }


def _stand_by(service: Service) -> bool:
    """Whether trainers wait for work, with all imported that they need."""
    trainers = service.trainers()
    used = [sum(trainer.cpu_times()[:2]) for trainer in trainers]
    time.sleep(0.5)
    rest = all(sum(trainer.cpu_times()[:2]) - before < 0.02 for trainer, before in zip(trainers, used, strict=True))
    return rest and len(trainers) >= 2 and all(trainer.memory_info().rss > IMPORTED for trainer in trainers)


def recovery(leases: str) -> None:
    """From a kill until another attempt has begun, and until it has told its first step."""
    given = AS_IN_PRODUCTION if leases == "default" else running.SHORT
    table = Table(title=f"after a kill, {leases} leases ({given['FINETUNED_LEASE_TIMEOUT']} s)")
    for column in ("killed", "seconds to the next attempt", "seconds to its first step"):
        table.add_column(column, justify="right" if column != "killed" else "left")
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        with running.up(Path(folder), **given) as service:
            file_id = service.upload(tiny.chat_rows(40))
            for victim in ("trainer", "pool child", "worker"):
                table.add_row(victim, *(f"{took:.1f}" for took in _killed(service, file_id, victim)))
    console.print(table)


def _killed(service: Service, file_id: str, victim: str) -> tuple[float, float]:
    worker = running.wait_for(lambda: _heard(service), 60, every=0.2)
    job_id = service.submit(file_id, max_steps=100_000, save_steps=5, batch_size=4, per_device_train_batch_size=1)
    running.wait_for(lambda: len(service.steps(job_id)) > 6, 120, every=0.2)
    trainer = service.trainer_of(job_id)
    assert trainer is not None
    {"trainer": trainer, "pool child": worker.children()[0], "worker": worker}[victim].kill()
    killed = time.time()

    def again() -> tuple[float, float] | None:
        with service.database() as database:
            row = database.execute(
                """
                SELECT extract(epoch FROM started_at), (
                    SELECT extract(epoch FROM min(created_at)) FROM job_events
                    WHERE job_id = subject AND type = 'metrics' AND created_at > started_at
                )
                FROM work JOIN attempts ON work_id = id WHERE subject = %s AND kind = 'train' AND number = 2
                """,
                [job_id],
            ).fetchone()
        return (float(row[0]) - killed, float(row[1]) - killed) if row is not None and row[1] is not None else None

    took = running.wait_for(again, 300, every=0.2)
    service.client().fine_tuning.jobs.cancel(job_id)
    service.finished(job_id)
    return took


def _heard(service: Service) -> psutil.Process | None:
    worker = service.part("worker.main", "--slot 0")
    return worker if worker is not None and service.is_heard(worker) else None


if __name__ == "__main__":
    main()
