"""The API: `create_app()`."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

import app.files.routes
import app.graders.routes
import app.jobs.routes
import app.jobs.stream_routes
import app.monitoring.routes
import app.plans.recommendation_routes
import app.plans.routes
import app.registry.permission_routes
import app.registry.routes
import app.reports.routes
import app.uploads.routes
import app.webhooks.routes
import app.work.routes
from app import http, openapi, queue
from app.db import new_session
from app.errors import Unavailable
from app.jobs.feeds import Feeds
from app.monitoring import traces
from app.monitoring.figures import Figures
from app.reads import Reads
from app.reports import policy
from app.work import service as work_service


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether jobs are taken, and whether they are worked on."""

    status: Literal["ok", "degraded"]
    database: Literal["ok"] = "ok"
    broker: Literal["ok", "down"]
    workers: int
    """Slots heard within the last 30 s."""


class BrokerWatch:
    """Remembers for some seconds whether the broker answers, so that probes do not wait for it again and again."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._asked_at = float("-inf")
        self._answers = False
        self._asking = asyncio.Lock()

    async def answers(self) -> bool:
        """Ask at most every few seconds; one question at a time."""
        async with self._asking:
            if time.monotonic() - self._asked_at > self._seconds:
                self._answers = await run_in_threadpool(queue.broker_answers)
                self._asked_at = time.monotonic()
        return self._answers


def create_app() -> FastAPI:
    """The whole API, its tables and broker named by the settings."""
    policy.current()  # a word in it that means nothing is said at the start
    feeds, reads = Feeds(), Reads()

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(traces.sender)
        yield
        await run_in_threadpool(traces.close)
        await feeds.close()
        await reads.close()

    api = FastAPIOffline(  # /docs needs no other host, which a browser in a closed network could not reach
        lifespan=alive,
        title="finetuned",
        summary="Fine-tunes language models on your own GPUs, behind the OpenAI fine-tuning API.",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=lambda route: route.name,  # a generated client's functions are called like ours
        redirect_slashes=False,
        responses={"4XX": {"model": http.ErrorRead}, "5XX": {"model": http.ErrorRead}},
    )
    http.install(api)
    describe = api.openapi

    def describe_with_examples() -> dict[str, Any]:
        """Made at the first request for it, and kept."""
        if api.openapi_schema is None:
            openapi.add_examples(describe())  # which keeps what it returns
        return describe()

    api.openapi = describe_with_examples  # type: ignore[method-assign]  # as FastAPI's documentation has it
    api.state.feeds, api.state.reads, api.state.figures = feeds, reads, Figures()
    for slice_ in (
        app.files.routes,
        app.uploads.routes,
        app.jobs.routes,
        app.jobs.stream_routes,
        app.reports.routes,
        app.plans.routes,
        app.plans.recommendation_routes,
        app.registry.routes,
        app.registry.permission_routes,
        app.graders.routes,
        app.webhooks.routes,
        app.work.routes,
        app.monitoring.routes,
    ):
        api.include_router(slice_.router)
    broker = BrokerWatch()

    @api.get("/healthz", tags=["operation"])
    async def get_health() -> Alive:
        """Say that the process answers."""
        return Alive()

    @api.get("/readyz", tags=["operation"], response_model=Ready, responses={503: {"model": http.ErrorRead}})
    async def get_readiness() -> Response:
        """200 when the database answers; `degraded` when the broker or the workers do not."""
        try:
            alive_workers = await run_in_threadpool(_count_workers)
        except SQLAlchemyError:
            return http.envelope(Unavailable("The database does not answer."))
        answers = await broker.answers()
        fine = answers and alive_workers > 0
        body = Ready(status="ok" if fine else "degraded", broker="ok" if answers else "down", workers=alive_workers)
        return http.answer(body)

    return api


def _count_workers() -> int:
    with new_session() as session, session.begin():
        session.execute(text("SELECT 1"))
        return sum(alive for _, _, alive in work_service.workers(session))
