"""Asking again of a database that is away: nobody who holds an attempt gives it up for a lost connection."""

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from app.settings import get_settings

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds: the database says nothing when it comes back."""

P = ParamSpec("P")
T = TypeVar("T")


def patient(ask: Callable[P, T]) -> Callable[P, T]:
    """Call it again until the database answers, for as long as a training goes on without: FINETUNED_DATABASE_PATIENCE.

    `ask`: one transaction, which does no harm when it is done twice: a connection may be lost in its commit. Raises
    `OperationalError` or `InterfaceError` after that time.
    """

    @wraps(ask)
    def until_answered(*args: P.args, **kwargs: P.kwargs) -> T:
        end = time.monotonic() + get_settings().database_patience.total_seconds()
        while True:
            try:
                return ask(*args, **kwargs)
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() > end:
                    raise
                log.warning("%s: the database is away, asking again: %s", ask.__name__, error.orig)
            time.sleep(PAUSE)

    return until_answered
