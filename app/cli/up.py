"""`finetuned up`: the whole service on one machine, supervised by one process."""

import fcntl
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import httpx
import typer
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from app.cli import keys, migrate
from app.cli.api import listen
from app.cli.embedded import CannotStart, Postgres, RunFolder, Valkey
from app.cli.process import Child, last_lines
from app.settings import get_settings

READY_WITHIN = 90.0
STOP_WITHIN = 12.0
"""Seconds for api, workers and sweeper; the two servers have the rest of the 20."""
SERVERS_STOP_WITHIN = 6.0


def up(
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept; FINETUNED_HOME, or ~/.finetuned.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Training slots.")] = 1,
) -> None:
    """Run the whole service here: database, broker, api, workers, sweeper. Ctrl-C ends it."""
    if home is not None:
        os.environ["FINETUNED_HOME"] = str(home.expanduser().absolute())
        get_settings.cache_clear()
    folder = get_settings().home.absolute()
    try:
        with ExitStack() as stack:
            Service(folder, host, port, workers, stack).run()
    except CannotStart as error:
        print(error, file=sys.stderr, flush=True)
        raise typer.Exit(1) from error


class Service:
    """All parts of one home, from the first to the last."""

    def __init__(self, home: Path, host: str, port: int, workers: int, stack: ExitStack) -> None:
        self._home = home
        self._workers = workers
        self._stack = stack
        self._told_to_end = threading.Event()
        self._servers: list[Child] = []
        self._parts: list[Child] = []
        self._lock = _only_one(home, stack)
        self._listener = stack.enter_context(listen(host, port))
        name = f"[{host}]" if ":" in host else host
        self._url = f"http://{name}:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Start, say so, watch, end in order."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._end)
        self._stack.callback(self._stop)
        self._start_servers()
        if self._told_to_end.is_set():
            return
        key = self._key_of_migrated_database()
        self._start_parts()
        self._wait_until_ready(key)
        url_file = self._home / "url"
        url_file.write_text(self._url)
        self._stack.callback(url_file.unlink, missing_ok=True)
        if not self._told_to_end.is_set():
            print(f"finetuned is ready at {self._url}", flush=True)
        while not self._told_to_end.wait(0.2):
            self._tend()

    def _start_servers(self) -> None:
        """Those that no setting replaces; their URLs go to the other parts by environment."""
        settings = get_settings()
        run = RunFolder(self._home)
        self._stack.callback(run.close)
        if not settings.database_url:
            postgres = Postgres(self._home, run.path, (self._lock,))
            postgres.initialise()
            server = self._start(self._servers, postgres.child())
            postgres.wait_until_ready(server, over=self._told_to_end)
            os.environ["FINETUNED_DATABASE_URL"] = postgres.url
        if not settings.broker_url:
            valkey = Valkey(self._home, run.path, (self._lock,))
            self._start(self._servers, valkey.child())
            os.environ["FINETUNED_BROKER_URL"] = valkey.url
        os.environ["FINETUNED_HOME"] = str(self._home)
        get_settings.cache_clear()

    def _key_of_migrated_database(self) -> str:
        try:
            migrate.upgrade()
            return keys.of_home(self._home)
        except (SQLAlchemyError, CommandError) as error:
            raise CannotStart(f"The database cannot be used: {str(error).splitlines()[0]}") from error

    def _start_parts(self) -> None:
        python = [sys.executable, "-m"]
        fd = self._listener.fileno()
        self._part("api", [*python, "app.cli.api", "--fd", str(fd)], fd)
        self._part("prepare", [*python, "worker.main", "--queue", "prepare"])
        for slot in range(self._workers):
            self._part(f"worker-{slot}", [*python, "worker.main", "--slot", str(slot)])
        self._part("sweeper", [*python, "worker.sweeper"])

    def _part(self, name: str, program: list[str], *inherited: int) -> None:
        log = self._home / "logs" / f"{name}.log"
        child = Child(name, program, dict(os.environ), log, inherited=(self._lock, *inherited))
        self._start(self._parts, child)

    def _start(self, among: list[Child], child: Child) -> Child:
        child.start()
        among.append(child)
        return child

    def _wait_until_ready(self, key: str) -> None:
        deadline = time.monotonic() + READY_WITHIN
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=5, trust_env=False) as client:
            while not self._told_to_end.wait(0.1):
                self._tend()
                missing = self._missing(client)
                if not missing:
                    return
                if time.monotonic() > deadline:
                    raise CannotStart(f"Not ready after {READY_WITHIN:g} s: {missing}.\n{self._last_words()}")

    def _missing(self, client: httpx.Client) -> str | None:
        try:
            response = client.get("/v1/workers")
        except httpx.TransportError:
            return "the api does not answer"
        if response.status_code != 200:
            return f"the api answers {response.status_code}: {response.text[:200]}"
        # The list may name workers of other machines, and those of an `up` that was killed a moment ago.
        groups = {child.process.pid for child in self._parts if child.process is not None}
        alive = sum(_group(worker["pid"]) in groups for worker in response.json()["data"])
        wanted = self._workers + 1
        return None if alive >= wanted else f"{alive} of {wanted} workers are there"

    def _tend(self) -> None:
        for child in (*self._servers, *self._parts):
            line = child.tend()
            if line is not None and not self._told_to_end.is_set():
                print(line, flush=True)

    def _last_words(self) -> str:
        logs = [child.log for child in self._parts]
        return "\n".join(f"  {log.name}: {' | '.join(last_lines(log, 3))}" for log in logs)

    def _end(self, *_: object) -> None:
        if self._told_to_end.is_set():  # a second Ctrl-C
            for child in (*self._parts, *self._servers):
                child.kill()
        self._told_to_end.set()

    def _stop(self) -> None:
        """First what takes and does work, so that running jobs are handed back; then the broker, the database last."""
        for group, seconds in ((self._parts, STOP_WITHIN), (self._servers[::-1], SERVERS_STOP_WITHIN)):
            deadline = time.monotonic() + seconds
            for child in group:
                child.ask_to_end()
            for child in group:
                child.end_by(deadline)


def _only_one(home: Path, stack: ExitStack) -> int:
    """Take the home's two locks. Returns the descriptor of the second, which every child inherits.

    The first says that an `up` runs; the second is free once no child of any `up` is left, so that after a kill -9
    of everything the next one waits for the leftovers. Raises `CannotStart`.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        own = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotStart(f"Cannot use {home} as home: {error.strerror}. Choose another with --home.") from error
    stack.callback(os.close, own)
    if not _locked(own, seconds=0):
        pid = os.pread(own, 20, 0).decode().strip()
        url = (home / "url").read_text() if (home / "url").exists() else "an address it has not got yet"
        raise CannotStart(f"finetuned is already running on {home} (pid {pid}) at {url}")
    (home / "url").unlink(missing_ok=True)  # of one that was killed
    os.ftruncate(own, 0)
    os.pwrite(own, str(os.getpid()).encode(), 0)
    children = os.open(home / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, children)
    if not _locked(children, seconds=20):
        raise CannotStart(f"Processes of an earlier finetuned on {home} are still ending. Try again in a moment.")
    return children


def _locked(descriptor: int, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)  # a lock can be waited for only for ever


def _group(pid: int) -> int | None:
    """The process group of a process of this machine; None where there is none."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
