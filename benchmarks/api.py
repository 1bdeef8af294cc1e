"""How fast the API answers: requests a second, latencies, listeners, and memory, in one run on one machine.

`python -m benchmarks.api [--seconds 5] [--upload-mb 2048] [--train]`: one api process with its key check and project
filter, beside an async route that does nothing, against tables of 10 and of 10,000 jobs. The client is another process
on the same cores, so that rates are low and ratios fair. Prints tables, and the ratios that the service promises.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httpx
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from tests import running, tiny
from tests.running import Service

CONNECTIONS = 8
SIZES = (10, 10_000)
POLLERS_RATE = 333
"""10,000 pollers, each every 30 s."""
LISTENERS = 1000
NEWS = 40

console = Console(width=120)


@dataclass(frozen=True)
class Measured:
    """Some seconds of one kind of request."""

    rate: float
    p50: float
    p99: float
    failed: int
    """Answers that were none of what was expected."""

    def row(self) -> list[str]:
        """As the tables show it."""
        return [f"{self.rate:,.0f}", f"{1000 * self.p50:.1f}", f"{1000 * self.p99:.1f}", str(self.failed)]


class Connection:
    """One keep-alive connection, as fast as Python can ask."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, url: str) -> "Connection":
        """A new one."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20))

    async def ask(self, request: bytes) -> int:
        """The status of the answer, its body read."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if (at := head.lower().find(b"content-length:")) >= 0:
            await self._reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
        return int(head[9:12])

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def request_of(url: str, method: str, path: str, key: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def closed_loop(url: str, requests: list[bytes], expected: int, seconds: float) -> Measured:
    """A few connections, each asking again as soon as it is answered."""
    latencies: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        nonlocal failed
        connection = await Connection.to(url)
        while (began := time.perf_counter()) < end:
            status = await connection.ask(requests[number % len(requests)])
            latencies.append(time.perf_counter() - began)
            failed += status != expected
            number += CONNECTIONS
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask(number) for number in range(CONNECTIONS)))
    return _measured(latencies, failed, time.perf_counter() - began)


async def open_loop(url: str, requests: list[bytes], rate: float, seconds: float) -> Measured:
    """Requests at a rate whatever the answers do, each on a connection of its own, as pollers come."""
    latencies: list[float] = []
    failed = 0

    async def ask(request: bytes) -> None:
        nonlocal failed
        began = time.perf_counter()
        try:
            connection = await Connection.to(url)
            failed += await connection.ask(request) != 200
            connection.close()
        except OSError:
            failed += 1
        latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    asked = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask(requests[number % len(requests)])))
    await asyncio.gather(*asked)
    return _measured(latencies, failed, time.perf_counter() - began)


def _measured(latencies: list[float], failed: int, seconds: float) -> Measured:
    cuts = statistics.quantiles(latencies, n=100)
    return Measured(len(latencies) / seconds, cuts[49], cuts[98], failed)


class Listener(asyncio.Protocol):
    """One who follows a stream, and takes as little of the cores as Python can: it reads what comes when it comes."""

    def __init__(self, request: bytes, heard: Callable[[bytes], None]) -> None:
        self._request = request
        self._heard = heard
        self._rest = b""
        self.opened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        """Hear each whole event."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if b"retry: " in event:
                self.opened.set()
            elif b"data: " in event:
                self._heard(event)


@asynccontextmanager
async def listeners(url: str, path: str, key: str, heard: Callable[[int, bytes], None]) -> AsyncIterator[None]:
    """So many streams of a job's events; `heard` gets each event as it comes."""
    request = request_of(url, "GET", path, key, Accept="text/event-stream")
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    made = []
    for number in range(LISTENERS):
        make = partial(Listener, request, partial(heard, number))
        made.append(await asyncio.get_running_loop().create_connection(make, parts.hostname, parts.port))
        if number % 50 == 49:
            await asyncio.sleep(0.1)
    await asyncio.gather(*(listener.opened.wait() for _, listener in made))
    yield
    for transport, _ in made:
        transport.close()


def fill(service: Service, job_id: str, count: int) -> list[str]:
    """Copies of a job, until the table has so many; returns ids of some."""
    with service.database() as database:
        database.execute(
            """
            INSERT INTO jobs (id, project_id, spec, resolved, prepared, status, queue, fine_tuned_model, finished_at)
            SELECT 'ftjob-' || md5(random()::text || n), project_id, spec, resolved, prepared, 'cancelled', queue,
                   NULL, now()
            FROM jobs, generate_series(1, %s - (SELECT count(*) FROM jobs)) AS n WHERE jobs.id = %s
            """,
            [count, job_id],
        )
        database.execute("ANALYZE jobs")
        return [row[0] for row in database.execute("SELECT id FROM jobs ORDER BY random() LIMIT 200")]


def tell(service: Service, job_id: str, number: int) -> None:
    """An event of a job, stamped, as a worker tells it."""
    with service.database() as database, database.transaction():
        database.execute("SELECT pg_notify('job_news', %s) FROM jobs WHERE id = %s FOR NO KEY UPDATE", [job_id, job_id])
        database.execute(
            "INSERT INTO job_events (id, job_id, level, type, message) VALUES (%s, %s, 'info', 'message', %s)",
            [f"ftevent-{time.time_ns()}", job_id, f"@{number}@{time.time()}@"],
        )


@contextmanager
def api_of(service: Service) -> Iterator[tuple[str, psutil.Process]]:
    """One more api process on a service's database, with the route that does nothing."""
    model = running.wait_for(lambda: service.part("app.cli.api"))
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        fd = listener.fileno()
        command = [sys.executable, "-m", "benchmarks.api_server", str(fd)]
        process = psutil.Popen(command, env=model.environ(), pass_fds=[fd])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        running.wait_for(lambda: _answers(url), 30)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/noop", trust_env=False).is_success
    except httpx.TransportError:
        return False


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of request")
    parser.add_argument("--upload-mb", type=int, default=2048)
    parser.add_argument("--train", action="store_true", help="poll beside a training on all cores too")
    parser.add_argument("--only", choices=["rates", "pollers", "streams", "memory"], help="one part of it")
    arguments = parser.parse_args()
    uvloop.install()
    with tempfile.TemporaryDirectory(prefix="ft-") as scratch:
        home = Path(scratch, "a")
        tiny.make_base(home / "models" / "tiny")
        tiny.make_base(home / "models" / "small", hidden_size=384, layers=12)
        threads = str(len(os.sched_getaffinity(0)))
        with running.up(home, FINETUNED_TORCH_THREADS=threads) as service:
            file_id = service.upload(tiny.chat_rows(40))
            job_id = service.submit(file_id, max_steps=2)
            service.finished(job_id)
            with api_of(service) as (url, process):
                parts: dict[str, Callable[[], None]] = {
                    "rates": lambda: rates(service, url, job_id, file_id, arguments.seconds),
                    "pollers": lambda: pollers(service, url, job_id, arguments.seconds, train=arguments.train),
                    "streams": lambda: streams(service, url, file_id),
                    "memory": lambda: memory(service, url, process, arguments.upload_mb, Path(scratch)),
                }
                for name, part in parts.items():
                    if arguments.only in (None, name):
                        part()
                        console.print(f"the api's memory after that: {process.memory_info().rss >> 20} MiB")


def rates(service: Service, url: str, job_id: str, file_id: str, seconds: float) -> None:
    """As fast as it goes, with few jobs and with many."""
    found: dict[tuple[str, int], Measured] = {}
    for size in SIZES:
        ids = fill(service, job_id, size)
        etag = httpx.get(f"{url}/v1/fine_tuning/jobs/{job_id}", headers=_auth(service), trust_env=False).headers["etag"]
        specs = [
            json.dumps({"model": "tiny", "training_file": file_id, "metadata": {"n": str(number)}}).encode()
            for number in range(200)
        ]
        jobs = "/v1/fine_tuning/jobs"

        def get(path: str, **headers: str) -> bytes:
            return request_of(url, "GET", path, service.key, b"", **headers)

        kinds = {
            "no-op": ([get("/noop")], 200),
            "retrieve": ([get(f"{jobs}/{one}") for one in ids], 200),
            "retrieve, 304": ([get(f"{jobs}/{job_id}", **{"If-None-Match": etag})], 304),
            "list of 10": ([get(f"{jobs}?limit=10")], 200),
            "20 events": ([get(f"{jobs}/{job_id}/events")], 200),
            "create": ([request_of(url, "POST", jobs, service.key, spec) for spec in specs], 200),
        }
        for kind, (requests, expected) in kinds.items():
            found[kind, size] = asyncio.run(closed_loop(url, requests, expected, seconds))
            _cancel_all(service)
    table = Table(title=f"{CONNECTIONS} connections, one api process")
    for column in ("", "jobs", "requests/s", "p50 ms", "p99 ms", "failed", "of the no-op"):
        table.add_column(column, justify="right" if column else "left")
    for (kind, size), measured in found.items():
        share = measured.rate / found["no-op", size].rate
        table.add_row(kind, f"{size:,}", *measured.row(), f"{share:.3f}")
    console.print(table)
    small, large = SIZES
    for kind, wanted in (("retrieve", 0.10), ("create", 0.03)):
        shares = [found[kind, size].rate / found["no-op", size].rate for size in SIZES]
        console.print(f"{kind} / no-op: {shares[0]:.3f} and {shares[1]:.3f} (at least {wanted})")
    for kind in ("retrieve", "list of 10", "20 events", "create"):
        growth = found[kind, large].p50 / found[kind, small].p50
        console.print(f"{kind}, p50 with {large:,} jobs / with {small}: {growth:.2f} (at most 1.2)")


def pollers(service: Service, url: str, job_id: str, seconds: float, *, train: bool) -> None:
    """At the rate of 10,000 pollers, alone and beside a training."""
    requests = [request_of(url, "GET", f"/v1/fine_tuning/jobs/{job_id}", service.key, Connection="close")]
    table = Table(title=f"retrieve at {POLLERS_RATE} requests/s, each on a new connection")
    for column in ("", "requests/s", "p50 ms", "p99 ms", "failed"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("alone", *asyncio.run(open_loop(url, requests, POLLERS_RATE, 2 * seconds)).row())
    if train:
        rows = service.upload(tiny.chat_rows(400), "small.jsonl")
        job = service.client().fine_tuning.jobs.create(
            model="small",
            training_file=rows,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 8}}},
        )
        running.wait_for(lambda: service.steps(job.id), 120)
        table.add_row("beside a training", *asyncio.run(open_loop(url, requests, POLLERS_RATE, 2 * seconds)).row())
        steps = len(service.steps(job.id))
        service.client().fine_tuning.jobs.cancel(job.id)
        service.finished(job.id)
        console.print(f"the training went on meanwhile: {steps} steps")
    console.print(table)


def streams(service: Service, url: str, file_id: str) -> None:
    """Many who follow one job: what each hears, and how late."""
    job_id = service.submit(file_id, max_steps=1)
    service.client().fine_tuning.jobs.pause(job_id)
    running.wait_for(lambda: service.status(job_id) == "paused", 60)
    late: list[float] = []
    heard: list[list[int]] = [[] for _ in range(LISTENERS)]

    def hear(number: int, event: bytes) -> None:
        if b"@" in event:
            _, which, told_at, _ = event.split(b"@")
            late.append(time.time() - float(told_at))
            heard[number].append(int(which))

    async def follow() -> None:
        path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
        async with listeners(url, path, service.key, hear):
            await asyncio.sleep(3)
            for number in range(NEWS):
                await asyncio.to_thread(tell, service, job_id, number)
                await asyncio.sleep(0.25)
            await asyncio.sleep(2)

    asyncio.run(follow())
    complete = sum(one == list(range(NEWS)) for one in heard)
    cuts = statistics.quantiles(late, n=100)
    console.print(
        f"{LISTENERS} listeners, {NEWS} events: {complete} heard all of them once in order; p50"
        f" {1000 * cuts[49]:.0f} ms, p99 {1000 * cuts[98]:.0f} ms (at most 150)"
    )
    service.client().fine_tuning.jobs.cancel(job_id)


def memory(service: Service, url: str, process: psutil.Process, megabytes: int, scratch: Path) -> None:
    """What an upload takes of the api's memory."""
    big = scratch / "big.bin"
    with big.open("wb") as file:
        file.truncate(megabytes << 20)
    before = peak = process.memory_info().rss
    command = [
        *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {service.key}"),
        *("-F", "purpose=user_data", "-F", f"file=@{big}", f"{url}/v1/files"),
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sending:
        while sending.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
        assert sending.stdout is not None
        status = sending.stdout.read()
    seconds = time.perf_counter() - began
    console.print(
        f"upload of {megabytes} MB: {status} in {seconds:.1f} s; the api's memory {before >> 20} MiB before,"
        f" {peak >> 20} MiB at most"
    )


def _cancel_all(service: Service) -> None:
    """What was created is not to be trained; the sweeper and the workers get nothing to do."""
    with service.database() as database, database.transaction():
        database.execute(
            "UPDATE work SET status = 'cancelled', finished_at = now(), lease_until = NULL WHERE finished_at IS NULL"
        )
        database.execute("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE finished_at IS NULL")


def _auth(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.key}"}


if __name__ == "__main__":
    main()
