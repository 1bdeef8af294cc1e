"""How a process of the service logs: as text for people, or as a JSON object a line, which says what the line is about.

What it is about (a job, an attempt, a request) is known to the thread or the task that logs; libraries' lines about it
carry it too. Loggers are used as everywhere: `logging.getLogger(__name__)`.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from app.settings import get_settings

_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039  which nobody changes in place
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
QUIET = ("httpx", "httpcore", "celery")
"""The first two log every address they ask, and some addresses are secrets; Celery logs every ring."""


def configure() -> None:
    """Log to standard error, in the format of the settings; what ends the process or a thread of it as well."""
    logging.basicConfig(level=logging.INFO, handlers=[handler(sys.stderr)])
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if get_settings().log_format == "json":
        sys.excepthook = _die
        threading.excepthook = _end_thread


def handler(stream: TextIO) -> logging.Handler:
    """Writes lines in the format of the settings."""
    made = logging.StreamHandler(stream)
    if get_settings().log_format == "text":
        made.setFormatter(logging.Formatter(TEXT))
        return made
    made.addFilter(_say_about)
    made.setFormatter(
        JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )
    )
    return made


@contextmanager
def about(**named: Any) -> Iterator[None]:
    """What is logged within is about that, and about what it was about before."""
    token = _about.set({**_about.get(), **named})
    try:
        yield
    finally:
        _about.reset(token)


def also_about(**named: Any) -> None:
    """The same to the end of this task: for a request, of which more is known while it goes on."""
    _about.set({**_about.get(), **named})


def following(target: Callable[[], None]) -> Callable[[], None]:
    """The target of a thread whose lines are about what those of this one are."""
    context = copy_context()
    return lambda: context.run(target)


def _say_about(record: logging.LogRecord) -> bool:
    record.__dict__.update(_about.get())
    return True


def _die(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        logging.getLogger(__name__).critical("the process ends", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)


def _end_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        name = args.thread.name if args.thread else "?"
        logging.getLogger(__name__).error("thread %s ends", name, exc_info=exc_info)
