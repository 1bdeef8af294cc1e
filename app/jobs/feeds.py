"""What happens to jobs, as it happens: one LISTEN connection of this process, one feed for each job that is followed.

However many follow a job, what is new is read from the database and encoded once. A notification says only that there
is something new; what it is comes from the table, so that a lost connection loses nothing.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.db import conninfo, new_session
from app.jobs import events
from app.jobs.models import Job, JobEvent, JobLog
from app.jobs.schemas import EventRead
from app.jobs.status import FINAL

log = logging.getLogger(__name__)

HEARTBEAT = 15.0
"""Seconds after which a follower is shown that the connection lives; proxies cut at 30 or 60."""
KEPT = 1000
"""Frames kept for those who follow; who is further behind reads the table."""
BATCH = 1000
RECONNECT = 1.0


class Frame(NamedTuple):
    """One new thing, encoded as it is sent."""

    seq: int
    data: bytes


class News(NamedTuple):
    """What a look into the tables found."""

    frames: list[Frame]
    ended: bool
    """The job had ended before the look, and this is all there will ever be."""


class Source(NamedTuple):
    """What can be followed of a job."""

    table: type[Any]
    encode: Callable[[Any], bytes]

    def newer(self, job_id: str, after: int) -> News:
        """Up to `BATCH` entries."""
        with new_session() as session, session.begin():
            ended = _has_ended(session, job_id)
            rows = session.scalars(
                select(self.table)
                .where(self.table.job_id == job_id, self.table.seq > after)
                .order_by(self.table.seq)
                .limit(BATCH)
            )
            frames = [Frame(row.seq, self.encode(row)) for row in rows]
        return News(frames, ended and len(frames) < BATCH)

    def newest(self, job_id: str) -> tuple[int, bool]:
        """The last entry's `seq`, 0 without any, and whether the job had ended before that was asked."""
        with new_session() as session, session.begin():
            ended = _has_ended(session, job_id)
            last = session.scalar(select(func.max(self.table.seq)).where(self.table.job_id == job_id))
        return last or 0, ended


def _has_ended(session: Session, job_id: str) -> bool:
    """Asked before a history is read: its last entry comes with the end, in one transaction."""
    return session.scalar(select(Job.status).where(Job.id == job_id)) in FINAL


def _as_sse(row: JobEvent) -> bytes:
    return f"id: {row.id}\ndata: {EventRead.of(row).model_dump_json()}\n\n".encode()


def _as_text(row: JobLog) -> bytes:
    return row.text.encode()


EVENTS = Source(JobEvent, _as_sse)
"""Server-sent events, each with its id."""
LOG = Source(JobLog, _as_text)
"""Plain text."""


class Feed:
    """What is new of one job, for all in this process who follow it."""

    def __init__(self, source: Source, job_id: str) -> None:
        self._source = source
        self._job_id = job_id
        self._starting = asyncio.Lock()
        self._frames: deque[Frame] = deque()
        self._complete_from: int | None = None
        self._seen = 0
        self._stale = False
        self._refreshing = False
        self._changed = asyncio.Event()
        self._silence: asyncio.Event | None = None
        self._ended = False
        self.followers = 0

    async def follow(self, after: int) -> AsyncIterator[list[Frame]]:
        """Everything newer than `after`, in order, until the job has ended; nothing now and then in a silence.

        What is woken a thousand times must do little: the silence is the feed's to notice, not each follower's.
        """
        await self._start()
        sent = after
        while True:
            frames = await self._newer(sent)
            if frames:
                sent = frames[-1].seq
                yield frames
                continue
            if self._ended:
                return
            changed = self._changed  # the look above did not wait, so nothing has happened since
            await changed.wait()
            if changed is self._silence:
                yield []

    def note_silence(self) -> None:
        """Wake all who follow, for nothing but a sign of life."""
        self._silence = self._changed
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def refresh(self) -> None:
        """Look for what is new. Notifications that come meanwhile make one more look, however many they are."""
        await self._start()
        self._stale = True
        if self._refreshing:
            return
        self._refreshing = True
        try:
            while self._stale:
                self._stale = False
                news = await run_in_threadpool(self._source.newer, self._job_id, self._seen)
                self._add(news)
                self._stale |= len(news.frames) == BATCH
        finally:
            self._refreshing = False

    async def _start(self) -> None:
        """From what is there now on, everything is kept."""
        async with self._starting:
            if self._complete_from is None:
                last, ended = await run_in_threadpool(self._source.newest, self._job_id)
                self._complete_from, self._seen, self._ended = last, last, ended

    def _add(self, news: News) -> None:
        for frame in news.frames:
            self._frames.append(frame)
            self._seen = frame.seq
        while len(self._frames) > KEPT:
            self._complete_from = self._frames.popleft().seq
        self._ended |= news.ended
        if news.frames or news.ended:
            self._wake()

    async def _newer(self, sent: int) -> list[Frame]:
        assert self._complete_from is not None  # noqa: S101  it has started
        if sent < self._complete_from:
            older = await run_in_threadpool(self._source.newer, self._job_id, sent)
            if older.frames:
                return older.frames
        newer: list[Frame] = []
        for frame in reversed(self._frames):
            if frame.seq <= sent:
                break
            newer.append(frame)
        return newer[::-1]


class Feeds:
    """All feeds of a process, and the connection that wakes them."""

    def __init__(self) -> None:
        self._feeds: dict[tuple[Source, str], Feed] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._looks: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()

    async def follow(self, source: Source, job_id: str, after: int) -> AsyncIterator[list[Frame]]:
        """A job's events or its log, newer than `after`, until it has ended; nothing now and then in a silence."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]
        with suppress(TimeoutError):  # a database that is away is waited for like any other silence
            async with asyncio.timeout(HEARTBEAT):
                await self._ready.wait()
        feed = self._feeds.setdefault((source, job_id), Feed(source, job_id))
        feed.followers += 1
        try:
            async for frames in feed.follow(after):
                yield frames
        finally:
            feed.followers -= 1
            if not feed.followers:
                self._feeds.pop((source, job_id), None)

    async def close(self) -> None:
        """Hang up."""
        for task in (*self._tasks, *self._looks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            for feed in self._feeds.values():
                feed.note_silence()

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(conninfo(), autocommit=True) as connection:
                    await connection.execute(f'LISTEN "{events.CHANNEL}"')
                    self._ready.set()
                    for feed in self._feeds.values():  # what was told while nobody listened
                        self._look_into(feed)
                    async for heard in connection.notifies():
                        for source in (EVENTS, LOG):
                            if (source, heard.payload) in self._feeds:
                                self._look_into(self._feeds[source, heard.payload])
            except psycopg.Error as error:
                log.warning("not listening: %s", error)
                self._ready.clear()
                await asyncio.sleep(RECONNECT)

    def _look_into(self, feed: Feed) -> None:
        look = asyncio.create_task(self._look(feed))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look(self, feed: Feed) -> None:
        while feed.followers:
            try:
                await feed.refresh()
            except SQLAlchemyError as error:
                log.warning("a feed was not refreshed: %s", error)
                await asyncio.sleep(RECONNECT)
            else:
                return
