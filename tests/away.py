"""The database of this process's tests, away for a while."""

from collections.abc import Iterator
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
