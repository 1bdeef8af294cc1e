"""One trace a job. Its spans come from whichever process did the work, and join by ids that follow from the job's id.

Where no endpoint is set nothing is loaded and nothing kept; where one is, spans are sent in the background, and dropped
when nobody takes them. A span is told once it is over, with its times.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Protocol

from app.settings import get_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that was done, from `begin` to `end` in Unix seconds, by the database's clock where that is known."""

    name: str
    begin: float
    end: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    parts: tuple["Span", ...] = ()


class Sender(Protocol):
    """Where spans go."""

    def send(self, job_id: str, span: Span, *, is_first: bool = False, caller: str | None = None) -> None:
        """Never waits, never raises."""

    def close(self, seconds: float) -> None:
        """Wait until all have left, or so long; what is left then is dropped."""


@lru_cache
def sender() -> Sender | None:
    """None where there is no endpoint. Loads OpenTelemetry at the first call, which takes half a second."""
    if not get_settings().otlp_endpoint:
        return None
    try:
        made: Sender = import_module("app.monitoring.otel").Otel()
    except ImportError as error:
        log.warning("an endpoint for traces is set, and the extra `otel` is not installed: %s", error)
        return None
    return made


def submitted(job_id: str, *, begin: float, seconds: float, caller: str | None) -> None:
    """The first span, which the others hang on; `caller`: the `traceparent` of the request, which is linked."""
    if (to := sender()) is not None:
        span = Span("submit", begin, begin + seconds, {"finetuned.job": job_id})
        to.send(job_id, span, is_first=True, caller=caller)


def told(job_id: str, *spans: Span) -> None:
    """What else was done for a job."""
    if (to := sender()) is not None:
        for span in spans:
            to.send(job_id, span)


def close(seconds: float = 2.0) -> None:
    """Before a process ends."""
    if (to := sender()) is not None:
        to.close(seconds)
        sender.cache_clear()
