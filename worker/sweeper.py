"""Puts right what a crash left behind: rings again for work nobody heard, takes back what a silent worker held.

Any number may run; a Postgres advisory lock lets one of them sweep. It needs no broker to take work back.
"""

import logging
import signal
import threading
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import queue
from app.db import new_session
from app.jobs import lifecycle, retention
from app.monitoring import lines, traces
from app.plans import stored as plans
from app.settings import get_settings
from app.storage import get_storage
from app.webhooks import service as webhooks
from app.work import service, totals
from app.work.lifecycle import Claim
from worker import moves, tracing
from worker.deliverer import Deliverer
from worker.outcomes import Failed

log = logging.getLogger(__name__)

SWEEPER_LOCK = 0x73776565
WORKERS_KEPT = timedelta(days=7)
FILES_KEPT = timedelta(minutes=10)
"""How long the bytes of a deleted file stay: a download that has begun may end."""
DELIVERIES_KEPT = timedelta(days=30)
ABANDONED_AFTER = timedelta(hours=6)
"""How long nothing is written to what is arriving before its process is thought dead."""
BATCHES = 100
"""Of deletions in a round: leases are to be looked at in between."""


def sweep(session: Session, *, take_back: bool) -> list[str]:
    """One round, if no other sweeper is at it. Returns the queues to ring after the commit.

    `take_back` is False while leases may look expired although their workers live: right after a start of ours.
    """
    if not session.scalar(select(func.pg_try_advisory_xact_lock(SWEEPER_LOCK))):
        return []
    if take_back and _database_up_for(session) > get_settings().lease_timeout:
        for claim, where in service.silent(session):
            with lines.about(**claim.named()):
                _take_back(session, claim, host=str(where["host"]))
                tracing.tell(session, claim, None)
    lifecycle.go_on_where_there_is_room(session)
    service.forget_silent(session, WORKERS_KEPT)
    webhooks.forget(session, DELIVERIES_KEPT)
    plans.forget(session, get_settings().plans_kept)
    totals.count(session)
    return service.unheard(session)


def _take_back(session: Session, claim: Claim, *, host: str) -> None:
    """The worker has not been heard for a whole lease: another may try, unless this happened too often."""
    settings = get_settings()
    message = f"The worker on {host} has not been heard for {settings.lease_timeout.total_seconds():g} s."
    error = Failed("worker_lost", message).as_error()
    service.note_phases(session, claim, {})
    if claim.failed_attempts >= settings.max_retries:
        moves.fail(session, claim, error)
        return
    # The lease was the first wait; a job that loses one worker after the other waits longer each time.
    delays = (timedelta(0), *settings.retry_delays)
    delay = delays[min(claim.failed_attempts, len(delays) - 1)]
    moves.retry(session, claim, error, delay=delay, outcome="lease_expired")


def _database_up_for(session: Session) -> timedelta:
    up = session.scalar(select(func.now() - func.pg_postmaster_start_time()))
    assert isinstance(up, timedelta)  # noqa: S101  the difference of two times
    return up


def main() -> None:
    """Sweep, and deliver webhooks, until told to stop."""
    lines.configure()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    settings = get_settings()
    interval = settings.sweep_interval.total_seconds()
    rounds_before_expiry = settings.lease_timeout / settings.sweep_interval
    deliverer = Deliverer()
    deliverer.start()
    done = 0
    while not over.wait(interval if done else 0):
        _sweep_once(take_back=done > rounds_before_expiry)
        done += 1
    deliverer.close(settings.shutdown_grace)
    traces.close()


def _sweep_once(*, take_back: bool) -> None:
    try:
        with new_session() as session, session.begin():
            unheard = sweep(session, take_back=take_back)
        for queue_name in unheard:
            queue.ring(queue_name)
        with new_session() as session, session.begin():
            retention.hide_expired(session)
        storage = get_storage()
        storage.forget_abandoned(ABANDONED_AFTER)
        for _ in range(BATCHES):
            with new_session() as session, session.begin():
                if not retention.delete_unused_blobs(session, storage, age=FILES_KEPT):
                    break
    except (SQLAlchemyError, OSError) as error:
        log.warning("this round was not swept: %s", error)


if __name__ == "__main__":
    main()
