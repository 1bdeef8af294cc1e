"""`finetuned up` under a hostile user: every part killed, itself killed, started twice, started wrongly."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy.orm import Session

from app.auth import create_key
from tests import running, tiny
from tests.running import Service, wait_for

FINETUNED = [sys.executable, "-m", "app.cli"]
EVERYWHERE = "0.0.0.0"  # noqa: S104  the address that a server without keys must refuse
PARTS = {  # and how to find each among the children
    "postgres": "bin/postgres",
    "valkey": "valkey",
    "api": "app.cli.api",
    "prepare": "--queue prepare",
    "worker-0": "worker.main --slot 0",
    "sweeper": "worker.sweeper",
}


@pytest.fixture(scope="module")
def own_home() -> Iterator[Path]:
    """A home for the whole file, used by one `up` after the other."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        tiny.make_base(Path(folder) / "models" / "tiny")
        yield Path(folder)


class Lines:
    """What a running `up` prints, read by a thread."""

    def __init__(self, service: Service) -> None:
        self._read: list[str] = []
        self._out = service.process.stdout
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._out is not None
        for line in self._out:
            self._read.append(line)

    def has(self, start: str) -> bool:
        """Whether a line began like this."""
        return any(line.startswith(start) for line in self._read)


@contextmanager
def up_to_its_end(home: Path, *options: str, standby: bool = False) -> Iterator[Service]:
    """An `up` that the test itself ends; whatever is left is killed. Standing trainers cost some 10 s of imports."""
    with running.up(home, *options, FINETUNED_STANDBY=str(int(standby))) as service:
        family = descendants(service)
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.process.kill()
            psutil.wait_procs(family, timeout=10)


def descendants(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children(recursive=True)


def left(family: list[psutil.Process]) -> list[str]:
    """Those that still run, for a readable failure."""
    alive = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    return [f"{process} {' '.join(running.cmdline(process))}" for process in alive]


def find(service: Service, part: str) -> psutil.Process | None:
    for child in psutil.Process(service.process.pid).children():
        if PARTS[part] in " ".join(running.cmdline(child)):
            return child
    return None


def submit(service: Service) -> str:
    """Post a job of a few steps: what a test leaves undone, the next `up` does."""
    return service.submit(service.upload(tiny.chat_rows(8)), max_steps=2, batch_size=4)


def refused(*options: str, within: float = 20, **environment: str) -> str:
    """What a start that comes to nothing says; it ends with 1, in words."""
    done = subprocess.run(
        [*FINETUNED, *options],
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
        env=without_servers() | environment,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal by now, as the kernel has it."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def without_servers() -> dict[str, str]:
    """The environment of an `up` that shall start its own, whichever servers other tests of this process have."""
    return {**os.environ, "FINETUNED_DATABASE_URL": "", "FINETUNED_BROKER_URL": ""}


def children_lock_is_free(home: Path) -> bool:
    """Every child of an `up` inherits this lock: free means that none is left, whatever it is called by now."""
    with (home / "children.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_the_first_start_makes_a_key_for_its_owner_and_a_second_leaves_it_alone(own_home: Path) -> None:
    with up_to_its_end(own_home) as service:
        assert stat.S_IMODE((own_home / "api-key").stat().st_mode) == 0o600
        assert service.key.startswith("ft-")
        assert (own_home / "url").read_text() == service.url
        assert service.get("/readyz") == {"status": "ok", "database": "ok", "broker": "ok", "workers": 2}
        assert httpx.get(f"{service.url}/v1/workers", trust_env=False).status_code == 401

        said = refused("up", "--home", str(own_home), "--port", "0")
        assert said == f"finetuned is already running on {own_home} (pid {service.process.pid}) at {service.url}\n"
        assert service.get("/readyz")["status"] == "ok"
        assert (own_home / "url").read_text() == service.url


def kill_and_see_it_back(service: Service, lines: Lines, part: str) -> None:
    victim = find(service, part)
    assert victim is not None, part
    its_own = victim.children(recursive=True)
    victim.kill()
    wait_for(lambda: lines.has(f"{part} ended (killed by SIGKILL); starting it again in 0.5 s"))
    wait_for(lambda: (new := find(service, part)) and new != victim)
    wait_for(lambda: not left(its_own), 10)


@pytest.mark.long
def test_every_part_that_is_killed_is_named_and_started_again_and_requests_wait_for_it(own_home: Path) -> None:
    with up_to_its_end(own_home) as service:
        lines = Lines(service)
        for part in PARTS:
            kill_and_see_it_back(service, lines, part)

        api = find(service, "api")
        assert api is not None
        api.kill()
        api.wait(5)
        assert service.get("/healthz") == {"status": "ok"}  # which waited for the next one
        job = service.finished(submit(service))
        assert job.status == "succeeded", job.error


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.long) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_ends_all_of_it_in_order_and_leaves_nothing(own_home: Path, number: signal.Signals) -> None:
    with (
        up_to_its_end(own_home, standby=True) as service,
        httpx.Client(base_url=service.url, trust_env=False) as open_connection,
    ):
        open_connection.get("/healthz")
        family = descendants(service)
        submit(service)
        asked_at = time.monotonic()
        service.process.send_signal(number)

        assert service.process.wait(timeout=20) == 0
        assert time.monotonic() - asked_at < 20
        assert left(family) == []
        assert running.Service.processes(service) == []
        assert children_lock_is_free(own_home)
        assert not (own_home / "url").exists()
        assert "database system is shut down" in (own_home / "logs" / "postgres.log").read_text().splitlines()[-1]


@pytest.mark.long
def test_a_part_that_hangs_does_not_keep_it_from_ending_within_20_s(own_home: Path) -> None:
    with up_to_its_end(own_home) as service:
        family = descendants(service)
        worker = find(service, "worker-0")
        assert worker is not None
        worker.suspend()
        service.process.send_signal(signal.SIGINT)

        assert service.process.wait(timeout=20) == 0
        assert left(family) == []


@pytest.mark.long
def test_a_second_ctrl_c_kills_at_once(own_home: Path) -> None:
    with up_to_its_end(own_home) as service:
        family = descendants(service)
        worker = find(service, "worker-0")
        assert worker is not None
        worker.suspend()
        service.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGINT)

        service.process.wait(timeout=3)
        psutil.wait_procs(family, timeout=2)
        assert left(family) == []


@pytest.mark.long
def test_a_kill_of_up_or_of_everything_loses_no_key_job_or_model(own_home: Path) -> None:
    with up_to_its_end(own_home) as first:
        key = first.key
        job_id = submit(first)
        before = first.get("/v1/fine_tuning/jobs?limit=100")["data"]
        family = descendants(first)
        first.process.kill()
        # No wait: the next one does that itself.
        with up_to_its_end(own_home) as second:
            # The table of workers still names those that were killed a moment ago as alive: it is not ready by them.
            mine = {process.pid for process in descendants(second)}
            assert {worker["pid"] for worker in second.get("/v1/workers")["data"]} <= mine
            # A trainer that had only just begun may still finish its imports before it looks for its parent.
            wait_for(lambda: not left(family), 10)
            assert second.key == key
            after = second.get("/v1/fine_tuning/jobs?limit=100")["data"]
            assert [job["id"] for job in after] == [job["id"] for job in before]
            assert job_id in [job["id"] for job in after]
            job = second.finished(job_id)
            assert job.status == "succeeded", job.error
            model = job.fine_tuned_model
            for process in [psutil.Process(second.process.pid), *descendants(second)]:
                with suppress(psutil.NoSuchProcess):  # its parent is gone already, and took it along
                    process.kill()
        with up_to_its_end(own_home) as third:
            assert third.key == key
            assert third.get("/readyz")["status"] == "ok"
            assert model in [entry["id"] for entry in third.get("/v1/models")["data"]]


@pytest.mark.long
def test_leftovers_of_an_earlier_up_are_waited_for(own_home: Path) -> None:
    log = own_home / "logs" / "postgres.log"
    with (own_home / "children.lock").open() as leftover:
        fcntl.flock(leftover, fcntl.LOCK_EX)  # as a child that is still ending holds it
        before = log.stat().st_size
        process = subprocess.Popen(
            [*FINETUNED, "up", "--home", str(own_home), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env=without_servers(),
        )
        time.sleep(3)
        assert process.poll() is None
        assert log.stat().st_size == before
    with process:
        assert process.stdout is not None
        assert "finetuned is ready" in process.stdout.readline()
        process.terminate()


@pytest.mark.long
def test_odd_paths_a_v6_address_and_two_workers_work(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with up_to_its_end(tmp_path / "a home" / ("x" * 100), "--host", "::1", "--workers", "2") as service:
        assert service.url.startswith("http://[::1]:")
        queues = sorted(worker["queue"] for worker in service.get("/v1/workers")["data"])
        assert len(queues) == 3
        assert queues.count("prepare") == 1
        postgres = find(service, "postgres")
        assert postgres is not None
        options = [given.split("=")[1] for given in postgres.cmdline() if given.startswith("unix_socket_directories=")]
        service.process.terminate()
        assert service.process.wait(timeout=20) == 0
        assert not Path(options[0]).exists()


def test_a_signal_while_it_starts_ends_it_too(own_home: Path) -> None:
    (own_home / "url").write_text("http://127.0.0.1:1")  # as one that was killed leaves it
    log = (own_home / "logs" / "postgres.log").stat().st_size
    process = subprocess.Popen(
        [*FINETUNED, "up", "--home", str(own_home), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=without_servers(),
    )
    with process:
        wait_for(lambda: (own_home / "logs" / "postgres.log").stat().st_size > log)
        assert not (own_home / "url").exists()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)

    assert (process.returncode, output) == (0, b"")
    assert children_lock_is_free(own_home)


@pytest.mark.long
def test_a_part_that_never_comes_up_is_told_with_its_last_words(own_home: Path) -> None:
    with subprocess.Popen(
        [*FINETUNED, "up", "--home", str(own_home), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=without_servers() | {"FINETUNED_STORAGE_URL": "nosuch://place"},
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        process.wait(timeout=20)

    assert any(" ended (exit 1); starting it again in " in line for line in told), told
    assert any(line.startswith("    ") for line in told), told


def test_a_taken_port_is_told_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("up", "--home", str(tmp_path), "--port", str(port))

    assert said.startswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use")
    assert children_lock_is_free(tmp_path)


def test_a_home_that_cannot_be_one_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "Choose another with --home" in refused("up", "--home", str(tmp_path / "file" / "home"), "--port", "0")
    assert "Choose another with --home" in refused("up", "--home", "/proc/home", "--port", "0")


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://someone:pass-word@127.0.0.1:1/finetuned"
    said = refused("up", "--home", str(tmp_path), "--port", "0", FINETUNED_DATABASE_URL=url)

    assert said.startswith("The database cannot be used: ")
    assert "pass-word" not in said


def test_a_key_of_another_database_is_told_in_words(own_home: Path) -> None:
    """As when a home was copied without its database, or the database replaced."""
    good = (own_home / "api-key").read_text()
    (own_home / "api-key").write_text("ft-of-another-database\n")
    try:
        assert "is not one of this database" in refused("up", "--home", str(own_home), "--port", "0")
    finally:
        (own_home / "api-key").write_text(good)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a user namespace")
def test_root_without_user_namespaces_learns_what_to_do(tmp_path: Path) -> None:
    # The limit is that of the new namespace alone.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    command = [*FINETUNED, "up", "--home", str(tmp_path), "--port", "0"]
    done = subprocess.run(
        ["/usr/bin/unshare", "--user", "--map-root-user", "/bin/sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        env=without_servers(),
    )

    assert done.returncode == 1
    assert "Start finetuned as an ordinary user, or set FINETUNED_DATABASE_URL" in done.stderr
    assert [path.name for path in tmp_path.glob("postgres*")] == []


def test_a_public_api_without_a_key_refuses_to_start(session: Session) -> None:
    environment: dict[str, Any] = server_urls()
    said = refused("api", "--host", EVERYWHERE, "--port", "0", **environment)
    assert said.startswith("Refusing to listen on 0.0.0.0: there is no API key yet.")

    with session.begin():
        create_key(session, "default", "tests")
    with subprocess.Popen(
        [*FINETUNED, "api", "--host", EVERYWHERE, "--port", "0"], env={**os.environ, **server_urls()}
    ) as api:
        me = psutil.Process(api.pid)
        listening = wait_for(lambda: [c for c in me.net_connections("inet") if c.status == psutil.CONN_LISTEN])
        url = f"http://127.0.0.1:{listening[0].laddr.port}"
        assert httpx.get(f"{url}/healthz", timeout=30, trust_env=False).status_code == 200
        api.terminate()


def server_urls() -> dict[str, str]:
    """Of the servers that the tests of this process use."""
    return {name: os.environ[name] for name in ("FINETUNED_DATABASE_URL", "FINETUNED_BROKER_URL")}


@pytest.mark.parametrize("command", ["worker", "sweeper"])
def test_the_parts_can_be_started_apart(session: Session, command: str) -> None:
    with subprocess.Popen(
        [*FINETUNED, command], env={**os.environ, **server_urls()}, stderr=subprocess.PIPE, text=True
    ) as part:
        me = psutil.Process(part.pid)
        wait_for(lambda: f"worker.{'main' if command == 'worker' else 'sweeper'}" in " ".join(me.cmdline()))
        wait_for(lambda: part.poll() is not None or catches(part.pid, signal.SIGTERM))
        assert part.poll() is None, part.stderr and part.stderr.read()
        part.terminate()
        assert part.wait(timeout=20) == 0
