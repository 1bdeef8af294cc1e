"""Questions that come by the hundred a second: one statement each, on connections of the event loop's own.

Anything else goes through a session in a thread; here the way there and back takes longer than the answer.
"""

import asyncio
from typing import Any

import msgspec
import psycopg
from psycopg.errors import QueryCanceled
from psycopg.rows import TupleRow, namedtuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import Select, TextClause
from sqlalchemy.dialects.postgresql import psycopg as dialect

from app.db import conninfo
from app.settings import get_settings

CONNECTIONS = 4
ONE_PLAN = "plan_cache_mode=force_generic_plan"
"""To plan the question for what a job waits for takes thrice as long as to answer it; one plan serves all values."""


def question(statement: Select[Any] | TextClause) -> str:
    """A statement as the connections take it; its bound parameters keep their names."""
    return str(statement.compile(dialect=dialect.dialect()))  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped


class Reads:
    """The connections, opened with the first question."""

    def __init__(self) -> None:
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]] | None = None
        self._opening = asyncio.Lock()

    async def first(self, question: str, **values: str | list[str]) -> Any | None:
        """The first row of an answer, its columns by name. Raises `psycopg.OperationalError`.

        After a restart of the database each connection fails once, and is replaced.
        """
        pool = await self._opened()
        for failed in range(CONNECTIONS + 1):
            try:
                async with pool.connection() as connection, connection.cursor(row_factory=namedtuple_row) as cursor:
                    await cursor.execute(question, values)
                    return await cursor.fetchone()
            except (QueryCanceled, PoolTimeout):
                raise
            except psycopg.OperationalError:
                if failed == CONNECTIONS:
                    raise
        raise AssertionError("the last try returns or raises")

    def connections(self) -> dict[str, int]:
        """How many are in use and how many are idle."""
        stats = self._pool.get_stats() if self._pool is not None else {}
        idle = stats.get("pool_available", 0)
        return {"in_use": stats.get("pool_size", 0) - idle, "idle": idle}

    async def close(self) -> None:
        """Give the connections back."""
        if self._pool is not None:
            await self._pool.close()

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
    timeout_ms = int(get_settings().statement_timeout.total_seconds() * 1000)
    options = f"-c statement_timeout={timeout_ms} -c default_transaction_read_only=on -c {ONE_PLAN}"
    return conninfo(application_name="finetuned", options=options)
