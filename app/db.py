"""The database: the base of all tables, the engine, sessions, ids."""

import secrets
import time
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import BigInteger, DateTime, Engine, Identity, MetaData, create_engine, event, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from sqlalchemy.pool import ConnectionPoolEntry

from app.settings import get_settings

Seq = Annotated[int, mapped_column(BigInteger, Identity(always=True), unique=True)]
"""Counts rows in the order of their birth: what lists are ordered and paged by."""
CreatedAt = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
Time = Annotated[datetime, mapped_column(DateTime(timezone=True))]
TRUSTED_FOR = 1.0
"""Seconds that a pooled connection may rest and still be thought alive."""


class Base(DeclarativeBase):
    """All tables; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # None is SQL's NULL, which the CHECK constraints speak of, not JSON's null.
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
    }


def connection_options() -> dict[str, int]:
    """libpq's: how soon a server that vanished without a word is given up; without them the kernel takes 15 minutes."""
    return {
        "connect_timeout": max(2, int(get_settings().database_connect_timeout.total_seconds())),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,  # milliseconds
    }


def conninfo(**more: str) -> str:
    """The database as psycopg itself takes it, for connections beside the engine's."""
    url = get_engine().url.set(drivername="postgresql")
    return make_conninfo(url.render_as_string(hide_password=False), **connection_options(), **more)


@lru_cache
def get_engine() -> Engine:
    """The engine of this process; made at first use, so that a forked child has its own."""
    settings = get_settings()
    timeout_ms = int(settings.statement_timeout.total_seconds() * 1000)
    engine = create_engine(
        settings.database_url,
        pool_size=settings.database_pool_size,
        pool_timeout=settings.statement_timeout.total_seconds(),
        json_deserializer=msgspec.json.decode,
        hide_parameters=True,  # errors are logged with their statement; its values may be secrets
        connect_args={
            **connection_options(),
            "options": f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout={timeout_ms}",
            "application_name": "finetuned",
        },
    )
    _watch_idle(engine)
    return engine


def _watch_idle(engine: Engine) -> None:
    """Ping a connection that has rested before it is used again, and replace it when it was lost.

    SQLAlchemy's `pool_pre_ping` asks each time, which is a way there and back more for every request.
    """

    @event.listens_for(engine, "checkin")
    def rest(_: Any, record: ConnectionPoolEntry) -> None:
        record.info["resting_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def wake(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() - record.info.get("resting_since", time.monotonic()) < TRUSTED_FOR:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.OperationalError as error:
            raise DisconnectionError from error  # the pool connects anew


def let_rest(session: Session) -> None:
    """Let this transaction rest as long as it takes: a bucket may be slow, and so many bytes take their time."""
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def new_session() -> Session:
    """A session of this process's engine; objects stay readable after the commit."""
    return Session(get_engine(), expire_on_commit=False)


def new_id(prefix: str) -> str:
    """An id that cannot be guessed: the prefix with its separator, and 24 hex digits."""
    return prefix + secrets.token_hex(12)
