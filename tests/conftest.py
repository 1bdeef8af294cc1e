"""Real servers for all tests: PostgreSQL and Valkey out of the wheels, on sockets of their own."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.auth import Project, authenticate, create_key
from app.cli import migrate
from app.cli.embedded import Postgres, RunFolder, Valkey
from app.db import Base, get_engine, new_session
from app.main import create_app
from app.queue import get_celery
from app.settings import get_settings
from app.storage import get_storage
from tests import hub, running, tiny
from tests.receiver import Receiver, receiving
from worker.devices import device_of


class SetSettings(Protocol):
    """By the names of their fields."""

    def __call__(self, **values: object) -> None: ...


os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long to look for requests that the server answers wrongly."""
    parser.addoption("--schema-examples", type=int, default=2, help="generated requests an operation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What only a GPU can show is skipped by name where there is none."""
    if device_of(0).kind == "cuda":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests reach this machine and nothing else."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOCAL:
            pytest.fail(f"a test reached for {address}")
        connect(self, address)  # type: ignore[arg-type]  # whatever a caller gives a socket

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A home for the whole run, with one tiny base model; short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        home = Path(folder)
        tiny.make_base(home / "models" / "tiny")
        yield home


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[None]:
    """PostgreSQL, migrated, and Valkey; the settings of this process point at them."""
    with ExitStack() as stack:
        run = RunFolder(home)
        stack.callback(run.close)
        postgres, valkey = Postgres(home, run.path, ()), Valkey(home, run.path, ())
        postgres.initialise()
        for child in (postgres.child(), valkey.child()):
            child.start()
            stack.callback(child.end_by, 0.0)
            stack.callback(child.ask_to_end)
            if child.name == "postgres":
                postgres.wait_until_ready(child)
        os.environ |= {
            "FINETUNED_HOME": str(home),
            "FINETUNED_DATABASE_URL": postgres.url,
            "FINETUNED_BROKER_URL": valkey.url,
        }
        forget_settings()
        migrate.upgrade()
        yield
        get_engine().dispose()


@pytest.fixture
def session(servers: None) -> Iterator[Session]:
    """A session on empty tables. They are emptied, not rolled back: claims are about several sessions that commit."""
    with new_session() as session:
        with session.begin():
            session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)} CASCADE"))
        yield session


@pytest.fixture
def set_settings() -> Iterator[SetSettings]:
    """Give settings another value until the test ends."""
    with pytest.MonkeyPatch.context() as patch:

        def set_them(**values: object) -> None:
            for name, value in values.items():
                patch.setenv(f"FINETUNED_{name.upper()}", str(value))
            get_settings.cache_clear()

        yield set_them
    get_settings.cache_clear()


@pytest.fixture
def key(session: Session) -> str:
    """The key of a project called `default`."""
    with session.begin():
        return create_key(session, "default", "tests")


@pytest.fixture
def project(session: Session, key: str) -> Project:
    with session.begin():
        return authenticate(session, key)


@pytest.fixture
def client(key: str) -> Iterator[TestClient]:
    """The API, called in this process by the project's key."""
    with TestClient(create_app(), headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def collector() -> Iterator[Receiver]:
    """Where the service's traces go."""
    with receiving() as collector:
        yield collector


@pytest.fixture(scope="session")
def service(collector: Receiver) -> Iterator[running.Service]:
    """All of it as `finetuned up` runs it, with short leases: api, workers, trainers, sweeper as processes."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        base = Path(folder) / "models" / "tiny"
        tiny.make_base(base)
        with (
            hub.serving(base, "acme/tiny") as address,
            running.up(
                Path(folder),
                FINETUNED_LOG_FORMAT="json",
                FINETUNED_WEBHOOK_ALLOW="127.0.0.0/8",
                NO_PROXY="127.0.0.1",
                OTEL_BSP_SCHEDULE_DELAY="200",  # milliseconds
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
                HF_ENDPOINT=address,
                HF_HOME=f"{folder}/hub",
                HF_HUB_OFFLINE="0",
            ) as service,
        ):
            yield service


def forget_settings() -> None:
    """What was read of the environment before it was set."""
    for cached in (get_settings, get_engine, get_celery, get_storage):
        cached.cache_clear()
