"""The database of this process's tests, away for a while."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from app.db import get_engine


@contextmanager
def administrator() -> Iterator[psycopg.Connection]:
    """In another database of the same server."""
    url = get_engine().url.set(drivername="postgresql", database="postgres")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        yield connection


@contextmanager
def database_away() -> Iterator[None]:
    name = get_engine().url.database
    with administrator() as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            get_engine().dispose()


@contextmanager
def waited_for(leave: Callable[[], object]) -> Iterator[None]:
    """The database goes away before the body, and `leave`, called after it, ends once the database is back."""
    end = threading.Thread(target=leave)
    with database_away():
        yield
        end.start()
        end.join(timeout=2)
        assert end.is_alive()
    end.join(timeout=20)
    assert not end.is_alive()
