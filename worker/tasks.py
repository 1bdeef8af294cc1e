"""The one Celery task: its name and argument, no logic."""

from collections.abc import Callable

from celery import Celery

from app.queue import RUN


def register(celery: Celery, run: Callable[[str], None]) -> None:
    """Have a Celery app call `run` with the name of a queue that has work.

    A forged or doubled message does no harm: what there is to do are rows in Postgres.
    """
    celery.task(name=RUN)(run)
