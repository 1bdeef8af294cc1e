"""The call that comes by the hundred a second: a job by its id. One statement, on connections of the event loop's own.

Anything else goes through a session in a thread; here the way there and back takes longer than the answer.
"""

import asyncio
from typing import cast

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow, namedtuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import and_, bindparam, select
from sqlalchemy.dialects.postgresql import psycopg as dialect

from app import auth
from app.auth import ApiKey
from app.db import connection_options, get_engine
from app.errors import NotFound
from app.jobs.models import Job
from app.settings import get_settings

CONNECTIONS = 4

_JOB_OF_KEY = str(
    select(Job.__table__)
    .select_from(ApiKey)
    .outerjoin(Job, and_(Job.project_id == ApiKey.project_id, Job.id == bindparam("job_id")))
    .where(auth.is_valid(bindparam("sha256")))
    .compile(dialect=dialect.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
)


class Polls:
    """The connections, opened with the first poll."""

    def __init__(self) -> None:
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]] | None = None
        self._opening = asyncio.Lock()

    async def job(self, key: str, job_id: str) -> Job:
        """A job's columns, if the key is its project's. Raises `NotAuthenticated` or `NotFound`."""
        found = await self._first({"sha256": auth.digest(key), "job_id": job_id})
        if found is None:
            raise auth.refused()
        if found.id is None:
            raise NotFound(f"No such fine-tuning job: {job_id}", param="fine_tuning_job_id")
        return found

    async def close(self) -> None:
        """Give the connections back."""
        if self._pool is not None:
            await self._pool.close()

    async def _first(self, values: dict[str, str]) -> Job | None:
        """After a restart of the database each connection fails once, and is replaced."""
        pool = await self._opened()
        for failed in range(CONNECTIONS + 1):
            try:
                async with pool.connection() as connection, connection.cursor(row_factory=namedtuple_row) as cursor:
                    await cursor.execute(_JOB_OF_KEY, values)
                    return cast("Job | None", await cursor.fetchone())  # it has a job's columns
            except psycopg.OperationalError:
                if failed == CONNECTIONS:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _opened(self) -> "AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]":
        async with self._opening:
            if self._pool is None:
                self._pool = AsyncConnectionPool(
                    _dsn(),
                    min_size=1,
                    max_size=CONNECTIONS,
                    open=False,
                    kwargs={"autocommit": True},
                    configure=_decode_fast,
                    timeout=get_settings().database_connect_timeout.total_seconds(),
                )
                await self._pool.open()
        return self._pool


async def _decode_fast(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    set_json_loads(msgspec.json.decode, connection)


def _dsn() -> str:
    url = get_engine().url.set(drivername="postgresql")
    timeout_ms = int(get_settings().statement_timeout.total_seconds() * 1000)
    return make_conninfo(
        url.render_as_string(hide_password=False),
        application_name="finetuned",
        options=f"-c statement_timeout={timeout_ms}",
        **connection_options(),
    )
