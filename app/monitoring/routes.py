"""/metrics"""

import secrets
from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from app import auth
from app.http import BearerDep, ReadsDep
from app.monitoring import requests
from app.monitoring.figures import Figures
from app.settings import get_settings

router = APIRouter(tags=["operation"])


class _Given(Collector):
    """Figures that are there already."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """Each of them."""
        yield from self._found


@router.get("/metrics", include_in_schema=False)  # its own lines of HELP describe it
async def get_metrics(request: Request, reads: ReadsDep, bearer: BearerDep) -> Response:
    """Show the figures for Prometheus.

    To whoever has the operator's token, where there is one: a database that is away is then no hindrance. Else to
    whoever has a key, as with the list of workers: there are no ids of projects in it, nor of jobs.
    """
    sent = bearer.credentials if bearer else ""
    token = get_settings().metrics_token
    if not token:  # an empty one is none
        await auth.caller(reads, sent)
    elif not secrets.compare_digest(sent.encode(), token.get_secret_value().encode()):
        raise auth.refused()
    figures: Figures = request.app.state.figures
    found = [*await figures.all(), *requests.figures(reads)]
    return Response(generate_latest(_Given(found)), media_type=CONTENT_TYPE_LATEST)
