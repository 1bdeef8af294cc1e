"""The whole service as processes, for tests that kill, wait and watch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil
import psycopg
import redis

from app.cli import embedded
from tests import tiny

SHORT = {
    "FINETUNED_LEASE_TIMEOUT": "3",
    "FINETUNED_HEARTBEAT_INTERVAL": "0.5",
    "FINETUNED_SWEEP_INTERVAL": "0.5",
    "FINETUNED_RETRY_DELAYS": "[0.5, 1]",
    "FINETUNED_MAX_RETRIES": "2",
    "FINETUNED_STOP_GRACE": "3",
    "FINETUNED_DRY_RUNS": "false",  # ten seconds of a core after each job; who tests them turns them on
    "FINETUNED_TORCH_THREADS": "1",  # two threads at a tiny model wait for each other, and on a busy machine for long
}

T = TypeVar("T")


@dataclass
class Service:
    """A running `finetuned up`."""

    home: Path
    process: subprocess.Popen[str]
    url: str
    first_line: str
    _client: openai.OpenAI | None = None

    @property
    def key(self) -> str:
        return (self.home / "api-key").read_text().strip()

    def client(self) -> openai.OpenAI:
        """The stock client; one, so that its connections are closed with the service."""
        if self._client is None:
            self._client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key)
        return self._client

    def close(self) -> None:
        """Leave no connection open."""
        if self._client is not None:
            self._client.close()

    def upload(self, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        """Rows as a fine-tune file; returns its id."""
        return self.client().files.create(file=(name, tiny.jsonl(rows)), purpose="fine-tune").id

    def submit(self, training_file: str, **hyperparameters: Any) -> str:
        """Post a LoRA job on the tiny base; returns its id."""
        chosen: Any = hyperparameters  # of which the stock client knows three
        job = self.client().fine_tuning.jobs.create(
            model="tiny",
            training_file=training_file,
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
        )
        return job.id

    def status(self, job_id: str) -> str:
        """A job's status, which may be one that the stock client does not know."""
        return self.client().fine_tuning.jobs.retrieve(job_id).status

    def finished(self, job_id: str, seconds: float = 180, *, every: float = 0.2) -> Any:
        """The job once its status is final; asks every so many seconds."""
        client = self.client()

        def ended() -> Any:
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ("succeeded", "failed", "cancelled") else None

        return wait_for(ended, seconds, every=every, story=lambda: self.story(job_id))

    def story(self, job_id: str) -> str:
        """All that is known of a job and of who could work on it, for whom waits in vain."""
        routes = [f"/v1/fine_tuning/jobs/{job_id}", f"/v1/fine_tuning/jobs/{job_id}/attempts", "/v1/workers"]
        told = [json.dumps(self.get(route), indent=1) for route in routes]
        told += [f"{event.created_at} {event.message}" for event in self.events(job_id)]
        for path in sorted((self.home / "logs").glob("*.log")):
            with path.open(errors="replace") as log:
                told += [f"--- the last of {path.name}", *deque((line.rstrip() for line in log), 20)]
        return "\n".join(told)

    def get(self, path: str) -> Any:
        """What the API answers to this key, beyond what the stock client knows."""
        headers = {"Authorization": f"Bearer {self.key}"}
        response = httpx.get(self.url + path, headers=headers, timeout=30, trust_env=False)
        response.raise_for_status()
        return response.json()

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """The attempts at training a job, oldest first."""
        attempts = self.get(f"/v1/fine_tuning/jobs/{job_id}/attempts")["data"]
        return [attempt for attempt in attempts if attempt["kind"] == "train"]

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """The registry's rows for a job, of the newest hundred."""
        rows = self.get("/v1/registry/models?limit=100")["data"]
        return [row for row in rows if row["job_id"] == job_id]

    def events(self, job_id: str) -> list[Any]:
        """All of a job's events, oldest first."""
        return list(reversed(list(self.client().fine_tuning.jobs.list_events(job_id, limit=1000))))

    def steps(self, job_id: str) -> list[int]:
        """The steps a job has reported, in the order of their arrival."""
        return [event.data["step"] for event in self.events(job_id) if "train_loss" in (event.data or {})]

    def database(self) -> psycopg.Connection[Any]:
        """For what no route shows."""
        return psycopg.connect(host=str(self.home / "run"), user=embedded.USER, dbname=embedded.USER, autocommit=True)

    def broker(self) -> redis.Redis:
        """The doorbell, for who wants to break it."""
        return redis.Redis(unix_socket_path=str(self.home / "run" / "valkey.sock"))

    def part(self, *words: str) -> psutil.Process | None:
        """The child of `up` with these words in its command line, if it runs just now."""
        for child in psutil.Process(self.process.pid).children():
            if " ".join(words) in " ".join(cmdline(child)) and is_alive(child):
                return child
        return None

    def is_heard(self, worker: psutil.Process) -> bool:
        """Whether the slot of this worker has said that it is there."""
        pids = {slot.pid for slot in worker.children()}
        return any(row["pid"] in pids for row in self.get("/v1/workers")["data"])

    @contextmanager
    def another_worker(self, slot: int, **environment: str) -> Iterator[psutil.Process]:
        """One more training slot beside those of `up`; killed at the end."""
        model = wait_for(lambda: self.part("worker.main", "--slot 0"))
        with (self.home / "logs" / f"another-worker-{slot}.log").open("ab") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "worker.main", "--slot", str(slot)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=model.environ() | environment,
                start_new_session=True,
            )
        try:
            wait_for(lambda: self.is_heard(process), 60, every=0.2)
            yield process
        finally:
            process.kill()
            process.wait()

    def trainer_of(self, job_id: str) -> psutil.Process | None:
        """The process that has a job's training log open, if there is one."""
        return next((process for process in self.trainers() if f"/{job_id}-train/" in standard_output(process)), None)

    def trainers(self) -> list[psutil.Process]:
        """Processes that train for this service, those that stand by included."""
        return [process for process in self.processes() if "worker.training" in " ".join(cmdline(process))]

    def processes(self) -> list[psutil.Process]:
        """Every process that has this service's home in its environment."""
        mark = str(self.home)
        return [process for process in psutil.process_iter() if mark in environment(process).get("FINETUNED_HOME", "")]


@contextmanager
def up(home: Path, *options: str, **environment: str) -> Iterator[Service]:
    """`finetuned up` on a port the kernel chooses, ended with SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "up", "--home", str(home), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **SHORT, **environment, "FINETUNED_DATABASE_URL": "", "FINETUNED_BROKER_URL": ""},
    )
    assert process.stdout is not None
    first_line = process.stdout.readline()
    try:
        assert "finetuned is ready at http://" in first_line, first_line + process.stdout.read()
        with closing(Service(home, process, first_line.split()[-1], first_line)) as service:
            yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()


def wait_for(
    look: Callable[[], T | None], seconds: float = 30.0, *, every: float = 0.02, story: Callable[[], str] | None = None
) -> T:
    """What `look` returns once it is not None or False; fails after so long, and tells its `story`.

    `every`: seconds, more for dear looks.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {story() if story is not None else look}"
        time.sleep(every)


def is_alive(process: psutil.Process) -> bool:
    """Not gone, and not merely waiting to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def standard_output(process: psutil.Process) -> str:
    """Where a process that may be gone by now prints to."""
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""


def environment(process: psutil.Process) -> dict[str, str]:
    """Of a process that may be gone by now."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def cmdline(process: psutil.Process) -> list[str]:
    """Of a process that may be gone by now."""
    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []
