"""PostgreSQL and Valkey out of the wheels: data that survives, doors that stay shut."""

import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from kombu import Connection
from sqlalchemy import create_engine, text

from app.cli.embedded import CannotStart, Postgres, RunFolder, Valkey
from app.cli.process import Child
from tests.running import wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A home with an initialised cluster, to be copied."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        home = Path(folder)
        run = RunFolder(home)
        Postgres(home, run.path, ()).initialise()
        yield home


@pytest.fixture
def own_home(cluster: Path) -> Iterator[Path]:
    """A home of the test's own; short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        shutil.copytree(cluster, folder, dirs_exist_ok=True)
        yield Path(folder)


@contextmanager
def running(home: Path) -> Iterator[tuple[Postgres, Child]]:
    """The server of a home, ended in order."""
    with ExitStack() as stack:
        run = RunFolder(home)
        stack.callback(run.close)
        postgres = Postgres(home, run.path, ())
        postgres.initialise()
        child = postgres.child()
        stack.callback(child.end_by, float("inf"))
        stack.callback(child.ask_to_end)
        child.start()
        postgres.wait_until_ready(child)
        yield postgres, child


def execute(postgres: Postgres, statement: str) -> list[Any]:
    engine = create_engine(postgres.url)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        found = list(result.scalars()) if result.returns_rows else []
    engine.dispose()
    return found


def test_what_was_committed_survives_a_kill(own_home: Path) -> None:
    with running(own_home) as (postgres, child):
        execute(postgres, "CREATE TABLE kept AS SELECT 42 AS number")
        assert child.process is not None
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()
        child.tend()
        wait_for(lambda: child.tend() is None and child.running)
        # Backends of the old server may keep the new one out for a moment, as they may under `up`.
        wait_for(lambda: answers(postgres, child), 20)
        assert execute(postgres, "SELECT number FROM kept") == [42]
    with running(own_home) as (postgres, _):
        assert execute(postgres, "SELECT number FROM kept") == [42]


def answers(postgres: Postgres, child: Child) -> bool:
    child.tend()
    try:
        return execute(postgres, "SELECT 1") == [1]
    except Exception:  # noqa: BLE001  whatever it is, it does not answer yet
        return False


def test_a_crash_while_initialising_leaves_no_half_cluster() -> None:
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        half = Path(folder) / "postgres.0123abcd.arriving"
        half.mkdir()
        (half / "PG_VERSION").write_text("18")
        with running(Path(folder)) as (postgres, _):
            assert execute(postgres, "SELECT 1") == [1]
        assert [path.name for path in Path(folder).glob("postgres*")] == ["postgres"]


@pytest.mark.parametrize("left", ["{other}\n/somewhere\n", ""])
def test_a_reused_number_in_the_pid_file_does_not_keep_it_from_starting(own_home: Path, left: str) -> None:
    """As after a reboot, a new container, a power failure, or in a copy of a home in use."""
    (own_home / "postgres" / "postmaster.pid").write_text(left.format(other=os.getpid()))
    (own_home / "run" / ".s.PGSQL.5432.lock").write_text(left.format(other=os.getpid()))

    with running(own_home) as (postgres, _):
        assert execute(postgres, "SELECT 1") == [1]


def test_the_pid_file_of_a_living_server_is_respected(own_home: Path) -> None:
    with running(own_home) as (postgres, _):
        second = Postgres(own_home, own_home / "run", ())
        second.initialise()
        assert (own_home / "postgres" / "postmaster.pid").exists()  # without it the first would end itself
        child = second.child()
        child.start()
        assert child.process is not None
        assert child.process.wait(timeout=10) != 0
        assert execute(postgres, "SELECT 1") == [1]


def test_a_server_that_ends_at_once_says_why(own_home: Path) -> None:
    (own_home / "postgres" / "PG_VERSION").write_text("9")
    with pytest.raises(CannotStart, match=r"(?s)PostgreSQL does not start.*not compatible"), running(own_home):
        pass


def test_only_its_own_user_can_reach_it(own_home: Path) -> None:
    with running(own_home) as (postgres, child):
        assert child.process is not None
        assert not psutil.Process(child.process.pid).net_connections("inet")
        assert stat.S_IMODE((own_home / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((own_home / "postgres").stat().st_mode) == 0o700
        (encoding,) = execute(postgres, "SHOW server_encoding")
        assert encoding == "UTF8"


@pytest.mark.parametrize("name", ["a home with spaces", "h" * 100, "ü", "50%&host=x", "a,b"])
def test_sockets_find_a_place_whatever_the_home_is_called(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    with running(home) as (postgres, _):
        assert execute(postgres, "SELECT 1") == [1]
        folder = Path(postgres.url.split("host=")[1])
        assert home not in folder.parents
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_valkey_answers_on_its_socket_and_nowhere_else(own_home: Path) -> None:
    valkey = Valkey(own_home, own_home / "run", ())
    child = valkey.child()
    child.start()
    try:
        wait_for(lambda: (own_home / "run" / "valkey.sock").exists())
        with Connection(valkey.url) as connection:
            channel: Any = connection.default_channel  # that of this broker, with a client of its own
            assert channel.client.ping()
        assert child.process is not None
        assert not psutil.Process(child.process.pid).net_connections("inet")
        assert stat.S_IMODE((own_home / "run" / "valkey.sock").stat().st_mode) == 0o700
    finally:
        child.ask_to_end()
        child.end_by(float("inf"))


def test_a_server_can_be_given_up_before_it_answers(own_home: Path) -> None:
    over = threading.Event()
    over.set()
    postgres = Postgres(own_home, own_home / "run", ())
    postgres.wait_until_ready(postgres.child(), over=over)  # of a server never started: it would raise

    with pytest.raises((CannotStart, psycopg.Error)):
        postgres.wait_until_ready(postgres.child())
