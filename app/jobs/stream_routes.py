"""/v1/fine_tuning/jobs/{id}/events/stream and /logs: what happens to a job, as it happens.

These are async: a thread each would end with the fortieth follower.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app import auth
from app.auth import Project
from app.db import new_session
from app.http import BearerDep, CallerDep, ReadsDep, SessionDep, content_of
from app.jobs import feeds, logs, service, tokens
from app.jobs.feeds import Feeds, Frame
from app.jobs.models import Job
from app.jobs.routes import JobId
from app.jobs.schemas import StreamTokenRead

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning jobs"])

STREAM = content_of("text/event-stream") | {
    204: {"description": "The job has ended, and there is nothing more to come."}
}
LOG_START = "x-log-start"
TEXT = content_of("text/plain")
TEXT[200]["headers"] = {LOG_START: {"description": "Bytes of the log before these.", "schema": {"type": "integer"}}}
NOT_BUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""For the proxies on the way."""


async def _follower(
    job_id: JobId,
    reads: ReadsDep,
    bearer: BearerDep,
    token: Annotated[str | None, Query(max_length=200, description="In place of a key, for an `EventSource`.")] = None,
) -> Project:
    """Who holds a key, or a token for this job's streams."""
    if bearer is None and token is not None:
        return await tokens.project_of(reads, job_id, token)
    return await auth.caller(reads, bearer.credentials if bearer else "")


FollowerDep = Annotated[Project, Depends(_follower)]


async def _feeds(request: Request) -> Feeds:
    found: Feeds = request.app.state.feeds
    return found


FeedsDep = Annotated[Feeds, Depends(_feeds)]


@router.post("/{job_id}/events/token")
def create_stream_token(job_id: JobId, caller: CallerDep, session: SessionDep) -> StreamTokenRead:
    """Make a short-lived token for the streams of one job, which a browser's `EventSource` can put into the address."""
    with session.begin():
        return StreamTokenRead.of(*tokens.make(session, service.get(session, caller, job_id)))


@router.get("/{job_id}/events/stream", response_class=StreamingResponse, responses=STREAM)
async def stream_events(
    job_id: JobId,
    caller: FollowerDep,
    live: FeedsDep,
    last_event_id: Annotated[str | None, Header(max_length=200, description="Id of the last event that came.")] = None,
    after: Annotated[
        str | None, Query(max_length=200, description="The same, for who sends no `Last-Event-ID`.")
    ] = None,
) -> Response:
    """Send a job's events as they happen, from the first or after the last that came, until the job has ended.

    The last event is `end`. 204 where there is nothing more to come, which tells an `EventSource` to stop asking.
    """

    def look_up() -> tuple[Job, int, bool]:
        with new_session() as session, session.begin():
            job = service.get(session, caller, job_id)
            seq = service.seq_of_event(session, job, last_event_id or after)
            return job, seq, job.finished_at is not None and not service.has_events_after(session, job, seq)

    job, seq, over = await run_in_threadpool(look_up)
    if over:
        return Response(status_code=204)
    news = live.follow(feeds.EVENTS, job.id, seq)
    return StreamingResponse(_as_stream(news, job.id), media_type="text/event-stream", headers=NOT_BUFFERED)


async def _as_stream(news: AsyncIterator[list[Frame]], job_id: str) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    async for frames in news:
        yield b"".join(frame.data for frame in frames) or b": heartbeat\n\n"
    status = await run_in_threadpool(_status, job_id)
    yield f'event: end\ndata: {{"id": "{job_id}", "status": "{status}"}}\n\n'.encode()


def _status(job_id: str) -> str:
    with new_session() as session, session.begin():
        return session.get_one(Job, job_id).status


@router.get("/{job_id}/logs", response_class=StreamingResponse, responses=TEXT)
async def get_log(
    job_id: JobId,
    caller: FollowerDep,
    live: FeedsDep,
    tail: Annotated[int, Query(ge=0, le=logs.MAX_LINES, description="The last so many lines.")] = 1000,
    follow: Annotated[bool, Query(description="Go on sending until the job has ended.")] = False,
    after: Annotated[int | None, Query(ge=0, description="In place of `tail`: what comes after so many bytes.")] = None,
) -> Response:
    """Retrieve what the job's trainers print, preparing and training, all attempts; plain text.

    Nothing is sent in a silence: plain text has no sign of life that would not be of the log, and a trainer may have
    nothing to print for hours. So a proxy may cut a followed log. Who counts goes on exactly where it was cut: with an
    `after` of the first answer's `x-log-start` and the bytes that have come since.
    """

    def look_up() -> logs.Part:
        with new_session() as session, session.begin():
            job = service.get(session, caller, job_id)
            return logs.tail(session, job.id, tail) if after is None else logs.after(session, job.id, after)

    part = await run_in_threadpool(look_up)
    kind, headers = "text/plain; charset=utf-8", {LOG_START: str(part.start)}
    if not follow:
        return Response(part.text, media_type=kind, headers=headers)
    news = live.follow(feeds.LOG, job_id, part.seq)
    return StreamingResponse(_as_text(part.text, news), media_type=kind, headers=NOT_BUFFERED | headers)


async def _as_text(text: bytes, news: AsyncIterator[list[Frame]]) -> AsyncIterator[bytes]:
    yield text
    async for frames in news:
        if frames:
            yield b"".join(frame.data for frame in frames)
