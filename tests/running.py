"""The whole service as processes, for tests that kill, wait and watch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil

SHORT = {
    "FINETUNED_LEASE_TIMEOUT": "3",
    "FINETUNED_HEARTBEAT_INTERVAL": "0.5",
    "FINETUNED_SWEEP_INTERVAL": "0.5",
    "FINETUNED_RETRY_DELAYS": "[0.5, 1]",
    "FINETUNED_STOP_GRACE": "15",
}

T = TypeVar("T")


@dataclass
class Service:
    """A running `finetuned up`."""

    home: Path
    process: subprocess.Popen[str]
    url: str
    first_line: str

    @property
    def key(self) -> str:
        return (self.home / "api-key").read_text().strip()

    def client(self) -> openai.OpenAI:
        """The stock client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key)

    def upload(self, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        """Rows as a fine-tune file; returns its id."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return self.client().files.create(file=(name, content), purpose="fine-tune").id

    def finished(self, job_id: str, seconds: float = 120) -> Any:
        """The job once its status is final."""
        client = self.client()

        def ended() -> Any:
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ("succeeded", "failed", "cancelled") else None

        return wait_for(ended, seconds)

    def events(self, job_id: str) -> list[Any]:
        """All of a job's events, oldest first."""
        return list(reversed(list(self.client().fine_tuning.jobs.list_events(job_id, limit=100))))

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
        yield Service(home, process, first_line.split()[-1], first_line)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        process.stdout.close()


def wait_for(look: Callable[[], T | None], seconds: float = 30.0) -> T:
    """What `look` returns once it is not None or False; fails after so long."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {look}"
        time.sleep(0.02)


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
